package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"

	"github.com/stretchr/testify/require"
)

// A worker is frozen in the middle of a stage and holds the run's lock, so that a cancel
// is not obeyed. A person abandons the run; the next one makes its set beside the frozen
// attempt, which wakes up then, touches nothing of it, and is swept away.
func TestAbandonedBesideAFrozenWorker(t *testing.T) {
	s := newSite(t, 100_000, "")
	s.startWorker()
	first := s.begin()
	s.inStage(first, "postgres")
	frozen, ended := s.worker, s.ended
	require.NoError(t, frozen.Process.Signal(syscall.SIGSTOP))
	t.Cleanup(func() { _ = frozen.Process.Kill(); <-ended })

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
