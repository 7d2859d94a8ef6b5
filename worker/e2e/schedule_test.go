package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

// due writes plans that have a tick in the minute that began half a minute ago or
// before, and says that they had been looked at until then.
func (s *site) due(plans string) (store *schedule.Store, tick time.Time) {
	s.t.Helper()
	tick = time.Now().UTC().Add(-30 * time.Second).Truncate(time.Minute)
	text, err := os.ReadFile(s.config.Path)
	require.NoError(s.t, err)
	text = append(text, fmt.Sprintf("schedules:\n"+plans, fmt.Sprintf("%d %d * * *", tick.Minute(), tick.Hour()))...)
	require.NoError(s.t, os.WriteFile(s.config.Path, text, 0o600))
	c, err := config.Load(s.config.Path, func(string) string { return "" })
	require.NoError(s.t, err)
	past := schedule.NewStore(s.rdb, "catalog", func() time.Time { return tick.Add(-time.Minute) })
	for _, p := range schedule.Plans(c) {
		_, err := past.Seen(context.Background(), p)
		require.NoError(s.t, err)
	}
	return schedule.NewStore(s.rdb, "catalog", time.Now), tick
}

// scheduler starts `producer schedule run`.
func (s *site) scheduler() *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "producer"), "schedule", "run", "--config", s.config.Path)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(s.t, cmd.Start())
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// A set made by a plan, and one verified by a plan, on the real servers.
func TestScheduledBackupAndVerification(t *testing.T) {
	s := newSite(t, 2000, "")
	s.startWorker()
	store, tick := s.due("  - {name: nightly, cron: %[1]q}\n")
	scheduler := s.scheduler()
	result := func(plan string, at time.Time) schedule.Tick {
		x, _, err := store.Tick(context.Background(), plan, at)
		require.NoError(t, err)
		return x
	}
	s.eventually(time.Minute, "the tick opens a run", func() bool { return result("nightly", tick).Result == schedule.Opened })
	r := s.over(*result("nightly", tick).Run, 2*time.Minute)
	require.Equal(t, run.Succeeded, r.State, r.Error)
	require.NoError(t, scheduler.Process.Kill())

	text, err := os.ReadFile(s.config.Path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.config.Path, text[:len(text)-len(fmt.Sprintf("schedules:\n  - {name: nightly, cron: %q}\n", fmt.Sprintf("%d %d * * *", tick.Minute(), tick.Hour())))], 0o600))
	store, tick = s.due("  - {name: check, cron: %[1]q, job: verify}\n  - {name: again, cron: %[1]q, job: verify}\n")
	s.scheduler()
	for _, plan := range []string{"check", "again"} {
		s.eventually(time.Minute, "the set is verified", func() bool { return result(plan, tick).Result.Final() })
		x := result(plan, tick)
		require.Equal(t, schedule.Good, x.Result, "%v", x.Reason)
		require.Equal(t, r.Set, *x.Set)
	}
	proofs, err := set.ReadProofs(s.dump(), set.ID(r.Set))
	require.NoError(t, err)
	require.Len(t, proofs.Proofs, 2)
	require.True(t, proofs.Proofs[1].Good)
	out, code := s.producer("schedule", "list", "--json")
	require.Zero(t, code)
	require.Contains(t, out, `"result": "good"`)
}
