package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/worker/stage"
)

const (
	overRun  = "20261123t184702z-aaaaaaaa"
	openRun  = "20261123t184703z-bbbbbbbb"
	lostRun  = "20261123t184704z-cccccccc"
	thisRun  = "20261123t184705z-dddddddd"
	olderOne = slotPrefix + "0123456789abcdef"
)

func TestSlotName(t *testing.T) {
	name := slotName(overRun, "0123abcd")
	require.Equal(t, "catalog_backup_20261123t184702z_aaaaaaaa_0123abcd", name)
	require.Equal(t, overRun, slotRun(name))
	for _, run := range []string{"", "Run", "run;drop", strings.Repeat("r", 40)} {
		require.Equal(t, "catalog_backup_0123abcd", slotName(run, "0123abcd"))
	}
	for _, name := range []string{olderOne, "catalog_backup_0123abcd", "standby", "catalog_backup_x_0123abcd_", ""} {
		require.Empty(t, slotRun(name))
	}
}

// Sessions hold slots, as a frozen worker does, until the server has none left and pgBackRest's
// lock besides. The next run ends those of runs that are over, and says what it left alone.
func TestSlotsOfRunsThatAreOver(t *testing.T) {
	p := lab.Postgres(t)
	o := options(p)
	o.Run = thisRun
	o.RunOver = func(_ context.Context, run string) (bool, error) {
		if run == lostRun {
			return false, errors.New("it has no record")
		}
		return run == overRun, nil
	}
	cfg, err := o.parseDSN()
	require.NoError(t, err)
	hold := func(name string) {
		c, err := connectReplication(t.Context(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { closeConn(c) })
		_, err = c.Exec(t.Context(), "CREATE_REPLICATION_SLOT "+name+" TEMPORARY PHYSICAL RESERVE_WAL").ReadAll()
		require.NoError(t, err)
	}
	kept := []string{slotName(openRun, "00000002"), slotName(lostRun, "00000003"), olderOne, "somebody_elses"}
	ended := []string{slotName(overRun, "00000001"), slotName(thisRun, "00000004")}
	for _, name := range append(kept, ended...) {
		hold(name)
	}
	p.Psql("select pg_create_physical_replication_slot('s' || g) from generate_series(1, 4) g")
	require.Equal(t, "10", p.Psql("select count(*) from pg_replication_slots"))

	unasked := o
	unasked.RunOver = nil
	_, _, err = Preflight(t.Context(), unasked, newWork(t))
	saysWith(t, err, "no free replication slot")

	// A role may not end the session of a superuser: that is said, and the backup goes on.
	p.Psql("create role lesser login")
	cfg.User = "lesser"
	lesser, err := connect(t.Context(), cfg)
	require.NoError(t, err)
	defer closeConn(lesser.PgConn())
	var said stage.Findings
	require.NoError(t, endLeftSlots(t.Context(), lesser, o, &said))
	require.Empty(t, said.Notes)
	require.Len(t, said.Warnings, 4)
	require.Equal(t, "10", p.Psql("select count(*) from pg_replication_slots"))

	pids := map[string]string{}
	for _, name := range append(kept, ended...) {
		pids[name] = p.Psql("select active_pid from pg_replication_slots where slot_name = '" + name + "'")
	}
	f, found, err := Preflight(t.Context(), o, newWork(t))
	require.NoError(t, err)
	notes, warnings := strings.Join(found.Notes, "\n"), strings.Join(found.Warnings, "\n")
	for _, name := range ended {
		require.Contains(t, notes, "ended session "+pids[name])
		require.Contains(t, notes, name)
	}
	for _, name := range []string{slotName(lostRun, "00000003"), olderOne} {
		require.Contains(t, warnings, name)
		require.Contains(t, warnings, "pg_terminate_backend("+pids[name]+")")
	}
	require.Len(t, found.Warnings, 2)
	require.Equal(t, "4", p.Psql("select count(*) from pg_replication_slots where temporary"))
	for _, name := range kept {
		require.Equal(t, pids[name], p.Psql("select active_pid from pg_replication_slots where slot_name = '"+name+"'"))
	}

	// The tool of a run that is over may be on another host: then the error names its session.
	tool, err := pgx.Connect(t.Context(), p.DSN())
	require.NoError(t, err)
	defer tool.Close(context.Background())
	var pid int
	require.NoError(t, tool.QueryRow(t.Context(), "select pg_backend_pid() from pg_advisory_lock(12340078987004321)").Scan(&pid))
	_, _, err = Backup(t.Context(), o, newWork(t), f, stage.NoProgress{})
	saysWith(t, err, fmt.Sprintf("session %d of PostgreSQL holds its lock, since %d-", pid, time.Now().UTC().Year()), fmt.Sprintf("pg_terminate_backend(%d)", pid))
	require.False(t, stage.IsPermanent(err))
}
