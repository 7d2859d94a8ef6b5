package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"

	"github.com/stretchr/testify/require"
)

// A worker is frozen in the middle of a stage with its tools, and holds the run's lock,
// PostgreSQL's for backups and the WAL, so that a cancel is not obeyed. A person abandons the
// run; the next one makes its set beside the frozen attempt, at the first try, and ends its
// tools and its slot. It wakes up then, touches nothing of that set, and is swept away.
func TestAbandonedBesideAFrozenWorker(t *testing.T) {
	s := newSite(t, 100_000, "")
	s.startWorker()
	first := s.begin()
	s.inStage(first, "postgres")
	const locks = "select count(*) from pg_locks where locktype = 'advisory'"
	s.eventually(10*time.Second, "pgBackRest has its lock", func() bool { return s.pg.Psql(locks) == "1" })
	frozen, ended := s.worker, s.ended
	require.NoError(t, frozen.Process.Signal(syscall.SIGSTOP))
	t.Cleanup(func() { _ = frozen.Process.Kill(); <-ended })
	tools := s.freezeTools()
	require.Equal(t, "1", s.pg.Psql(locks), "they were frozen in time")
	require.Contains(t, s.pg.Psql("select slot_name from pg_replication_slots where active"), strings.ReplaceAll(first, "-", "_"))

	_, code := s.producer("cancel", first)
	require.Zero(t, code)
	_, code = s.producer("abandon", first)
	require.Equal(t, 2, code, "nobody can be asked here")
	out, code := s.producer("abandon", "--yes", "--json", first)
	require.Zero(t, code)
	var said struct {
		Answer, State, Node string
		Left                []string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &said))
	require.Equal(t, "abandoned", said.Answer)
	require.Equal(t, "host1", said.Node)
	require.Contains(t, strings.Join(said.Left, "\n"), s.config.Backup.TempDir+"/"+first)
	dir := &dump.Directory{Dump: s.dump(), Temp: s.config.Backup.TempDir, Instance: "catalog", Node: "host1"}
	lock, err := dir.Lock(first, false)
	require.ErrorIs(t, err, dump.ErrHeld, "it was closed over its lock: %v", lock)

	s.startWorker()
	second := s.over(s.begin(), 60*time.Second)
	require.Equal(t, run.Succeeded, second.State, second.Error)
	for _, a := range second.Attempts {
		require.Equal(t, 1, a.Attempt, "stage %s was tried again", a.Stage)
	}
	require.Contains(t, strings.Join(second.Notes, "\n"), first, "whose slot it ended")
	require.Equal(t, "0", s.pg.Psql("select count(*) from pg_replication_slots"))
	for _, pid := range tools {
		p, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		require.True(t, err != nil || len(p) == 0, "process %d lives: %s", pid, p)
	}
	_, err = os.Stat(filepath.Join(s.config.Backup.TempDir, first))
	require.NoError(t, err, "its files stay while it holds the lock")
	require.NoError(t, frozen.Process.Signal(syscall.SIGCONT))
	s.restored(second, nil)
	r, err := s.record(first)
	require.NoError(t, err)
	require.Equal(t, run.Failed, r.State)
	for _, a := range r.Attempts {
		require.NotNil(t, a.Outcome, "every attempt is closed")
	}
	_, code = s.offline("verify", second.Set, "--dir", s.dump(), "--json")
	require.Zero(t, code, "the set of the next run is as it was")
	holder, err := s.store.Holder(context.Background(), "catalog")
	require.NoError(t, err)
	require.Empty(t, holder)
}

// freezeTools freezes the worker's pgBackRest and its keeper, and gives their numbers.
func (s *site) freezeTools() []int {
	s.t.Helper()
	var frozen []int
	freeze := func(pid int) {
		require.NoError(s.t, syscall.Kill(pid, syscall.SIGSTOP))
		frozen = append(frozen, pid)
		s.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	}
	tools := s.with("pgbackrest", "--config=")
	require.NotEmpty(s.t, tools)
	for _, pid := range tools {
		freeze(pid)
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		require.NoError(s.t, err)
		var parent int
		_, err = fmt.Sscanf(string(stat[strings.LastIndex(string(stat), ")")+2:]), "%1s %d", new(string), &parent)
		require.NoError(s.t, err)
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parent)); err == nil && strings.HasPrefix(string(line), "keeper") {
			freeze(parent)
		}
	}
	require.Greater(s.t, len(frozen), len(tools), "the keeper is among them")
	return frozen
}
