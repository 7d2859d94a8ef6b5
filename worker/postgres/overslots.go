package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"catalog-backup/worker/stage"
)

// slotPrefix begins the names of our replication slots.
const slotPrefix = "catalog_backup_"

// slotNames are catalog_backup_<run>_<8 hex>, the run with _ for -; a slot's name has
// 63 characters of [a-z0-9_] at most. Earlier versions had 16 hex and no run.
var slotNames = regexp.MustCompile(`^` + slotPrefix + `([a-z0-9_]{1,39})_[0-9a-f]{8}$`)

// slotName names the slot of a run's attempt; random are 8 hex digits.
func slotName(run, random string) string {
	name := slotPrefix + strings.ReplaceAll(run, "-", "_") + "_" + random
	if !slotNames.MatchString(name) {
		return slotPrefix + random // a run that a slot cannot name
	}
	return name
}

// slotRun is the run in a slot's name; "" if it names none.
func slotRun(name string) string {
	m := slotNames.FindStringSubmatch(name)
	if m == nil {
		return ""
	}
	return strings.ReplaceAll(m[1], "_", "-")
}

// leftSlot is a temporary slot of ours that another session holds. Its worker is frozen,
// or gone without a word to the server, or works for another instance or Redis.
type leftSlot struct {
	name string
	pid  int32 // of the server's process
	lsn  string
}

// endLeftSlots ends the sessions that hold WAL for runs that are over, and for earlier
// attempts at this one. What it cannot know, or may not end, is a warning.
func endLeftSlots(ctx context.Context, c *pgx.Conn, o Options, found *stage.Findings) error {
	if o.RunOver == nil {
		return nil
	}
	rows, err := c.Query(ctx, `select slot_name::text, active_pid, coalesce(restart_lsn::text, '') from pg_replication_slots
		where temporary and slot_type = 'physical' and active_pid is not null and left(slot_name::text, length($1)) = $1 order by 1`, slotPrefix)
	if err != nil {
		return queryError(ctx, "the replication slots", err)
	}
	left, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (s leftSlot, err error) { return s, r.Scan(&s.name, &s.pid, &s.lsn) })
	if err != nil {
		return queryError(ctx, "the replication slots", err)
	}
	for _, s := range left {
		s.judge(ctx, c, o, found)
	}
	return ended(ctx, "end the replication slots of runs that are over")
}

func (s leftSlot) judge(ctx context.Context, c *pgx.Conn, o Options, found *stage.Findings) {
	const remedy = "the server keeps all WAL from %s on until that session ends; where its worker is frozen or gone, end it: select pg_terminate_backend(%d)"
	run := slotRun(s.name)
	if run == "" {
		found.Warn("session %d of PostgreSQL holds the temporary replication slot %s of a backup by an earlier version: "+remedy, s.pid, s.name, s.lsn, s.pid)
		return
	}
	over := run == o.Run // who backs a run up has proved that no other attempt at it lives
	var err error
	if !over {
		over, err = o.RunOver(ctx, run)
	}
	switch {
	case err != nil:
		found.Warn("session %d of PostgreSQL holds the temporary replication slot %s of run %s, and whether that is over is not known (%v): "+remedy, s.pid, s.name, run, err, s.lsn, s.pid)
		return
	case !over:
		return // of another instance
	}
	if err := s.end(ctx, c); err != nil {
		found.Warn("session %d of PostgreSQL still holds the temporary replication slot %s of run %s, whose attempt is over: %v: "+remedy, s.pid, s.name, run, err, s.lsn, s.pid)
		return
	}
	found.Note("ended session %d of PostgreSQL: it held the WAL from %s on, by the replication slot %s of run %s, whose attempt is over (its worker is frozen, or went without a word)", s.pid, s.lsn, s.name, run)
}

// slotEndLimit is how long a session may take to end.
const slotEndLimit = 5 * time.Second

// end ends the session, if it holds the slot still, and waits until the slot is gone.
func (s leftSlot) end(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active_pid = $2", s.name, s.pid)
	if err != nil {
		return errors.New(reason(err))
	}
	ctx, stop := context.WithTimeout(ctx, slotEndLimit)
	defer stop()
	for {
		var held bool
		if err := c.QueryRow(ctx, "select exists (select from pg_replication_slots where slot_name = $1)", s.name).Scan(&held); err != nil {
			return errors.New(reason(err))
		}
		if !held {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it does not end within %s", slotEndLimit)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lockHolder names the session that holds pgBackRest's advisory lock on the cluster; ""
// if there is none, or it cannot be asked. The number is pgBackRest's own
// (PG_BACKUP_ADVISORY_LOCK in src/db/db.c).
func (o Options) lockHolder(ctx context.Context) string {
	cfg, err := o.parseDSN()
	if err != nil {
		return ""
	}
	c, err := connect(ctx, cfg)
	if err != nil {
		return ""
	}
	defer closeConn(c.PgConn())
	var pid int32
	var since string
	err = c.QueryRow(ctx, `select l.pid, coalesce(to_char(a.backend_start at time zone 'UTC', ', "since" YYYY-MM-DD HH24:MI:SS "UTC"'), '')
		from pg_locks l left join pg_stat_activity a on a.pid = l.pid
		where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and (l.classid::bigint << 32) | l.objid::bigint = 12340078987004321 limit 1`).Scan(&pid, &since)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("session %d of PostgreSQL holds its lock%s: if that is the tool of a run that was closed over a frozen worker (see the warnings of this run), end it: select pg_terminate_backend(%d)", pid, since, pid)
}
