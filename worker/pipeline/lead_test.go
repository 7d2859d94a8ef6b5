package pipeline

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
)

// A task that is there, and never comes or cannot be read, is replaced.
func TestTaskThatNeverComes(t *testing.T) {
	ctx := context.Background()
	for name, x := range map[string]struct {
		spoil func(l *looker, r run.Record, key string)
		after time.Duration
	}{
		"its list is gone": {func(l *looker, _ run.Record, _ string) { l.g.rdb.Del(ctx, "asynq:{catalog}:pending") }, boundGrace},
		"unreadable":       {func(l *looker, _ run.Record, key string) { l.g.rdb.HSet(ctx, key, "msg", "garbage") }, claimGrace},
		"a ghost": {func(l *looker, _ run.Record, key string) {
			l.g.rdb.Del(ctx, key)
			l.g.rdb.HSet(ctx, key, "result", "x")
		}, claimGrace},
		"a state that is none": {func(l *looker, _ run.Record, key string) { l.g.rdb.HSet(ctx, key, "state", "zzz") }, claimGrace},
		"scheduled, and its list is gone": {func(l *looker, r run.Record, key string) {
			l.g.rdb.Del(ctx, key, "asynq:{catalog}:pending")
			at := time.Now().Add(time.Minute)
			require.NoError(l.g.t, l.e.p.Enqueuer.Enqueue(ctx, r.Epoch, "", task.Payload{Run: r.ID, Instance: "catalog", Stage: FirstStage, Generation: 1}, &at))
			l.g.rdb.Del(ctx, "asynq:{catalog}:scheduled")
		}, boundGrace},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLooker(t, "node1")
			require.NoError(t, l.g.store.SignIn(ctx, "catalog", run.Worker{ID: "w", Node: "node2"}))
			r := l.g.begin()
			x.spoil(l, r, "asynq:{catalog}:t:"+l.g.taskID(r))
			_ = l.look(0)
			_ = l.look(x.after - time.Second)
			require.EqualValues(t, 1, l.g.get(r.ID).Generation)
			require.NoError(t, l.look(2*time.Second))
			r = l.g.get(r.ID)
			require.EqualValues(t, 2, r.Generation)
			i, err := l.inspector.GetTaskInfo("catalog", l.g.taskID(r))
			require.NoError(t, err)
			require.Equal(t, asynq.TaskStatePending, i.State)
			require.NoError(t, l.look(boundGrace))
			require.EqualValues(t, 2, l.g.get(r.ID).Generation, "the new one gets its time")
		})
	}
}

// One that waits for good reason is not.
func TestTaskThatWaits(t *testing.T) {
	ctx := context.Background()
	l := newLooker(t, "node1")
	r := l.g.begin()
	same := func(why string) {
		t.Helper()
		require.NoError(t, l.look(0))
		require.NoError(t, l.look(time.Hour))
		require.EqualValues(t, 1, l.g.get(r.ID).Generation, why)
	}
	same("no worker is there")
	require.NoError(t, l.inspector.PauseQueue("catalog"))
	require.NoError(t, l.g.store.SignIn(ctx, "catalog", run.Worker{ID: "w", Node: "node2"}))
	same("the queue is paused")
	require.NoError(t, l.inspector.UnpauseQueue("catalog"))
	l.set(r, "not_before", stamp(time.Minute))
	same("its time has not come")
}

// Redis goes back to a moment before the set was made, or even reserved, of a run whose
// set stands by then: it makes no second one, and ends as what it is.
func TestRolledBackRunMakesNoSecondSet(t *testing.T) {
	for _, at := range []string{"queued", "prepare", "eventbus"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			g := newGround(t)
			then := filepath.Join(t.TempDir(), "then")
			var r run.Record
			if at == "queued" {
				r = g.begin()
				require.NoError(t, g.redis.Snapshot(then))
				g.worker()
			} else {
				g.control("hold-"+at, "")
				g.worker()
				r = g.begin()
				g.waitStage(r.ID, at)
				require.NoError(t, g.redis.Snapshot(then))
				g.free("hold-" + at)
			}
			r = g.waitOver(r.ID, run.Succeeded, 20*time.Second)
			g.clean(r)
			begun := g.count(r.ID, "begin", FirstStage)
			require.NoError(t, g.redis.Rollback(then))
			again := g.waitOver(r.ID, run.Succeeded, 20*time.Second)
			require.NotEqual(t, r.Ended, again.Ended, "it had gone back")
			g.clean(again)
			require.Equal(t, begun, g.count(r.ID, "begin", FirstStage), "nothing is done again")
			require.Equal(t, r.Set, again.Set)
			require.Equal(t, filepath.Join(g.opts.Dump, set.ID(r.Set).ManifestName()), again.Manifest)
			l, err := set.List(g.opts.Dump)
			require.NoError(t, err)
			require.Len(t, l.Sets, 1)
			g.another()
		})
	}
}

// The same run, whose set is not to be seen whole for a while: whether it stands is not
// known, and it makes no second one meanwhile.
func TestRolledBackRunWaitsForItsSet(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.opts.Limits.Errors = 1000
	then := filepath.Join(t.TempDir(), "then")
	r := g.begin()
	require.NoError(t, g.redis.Snapshot(then))
	g.worker()
	r = g.waitOver(r.ID, run.Succeeded, 20*time.Second)
	g.clean(r)
	archive := filepath.Join(g.opts.Dump, set.ID(r.Set).MainName())
	require.NoError(t, os.Rename(archive, archive+".aside"))
	require.NoError(t, g.redis.Rollback(then))
	g.eventually(20*time.Second, "it is tried again", func() bool { return outcomes(g.get(r.ID))[run.Erred] > 0 })
	require.Contains(t, g.get(r.ID).Error, "look at the archives of set "+r.Set)
	require.NoError(t, os.Rename(archive+".aside", archive))
	again := g.waitOver(r.ID, run.Succeeded, 20*time.Second)
	g.clean(again)
	require.Equal(t, r.Set, again.Set)
	require.Equal(t, 1, g.count(r.ID, "begin", FirstStage))
}

// markAs makes dir the staging of an earlier version's worker.
func markAs(t *testing.T, dir, runID string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	text := fmt.Sprintf(`{"run":%q,"fence":1,"instance":"catalog","node":"node1"}`, runID)
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".catalog-backup-owner"), []byte(text), 0o600))
}
