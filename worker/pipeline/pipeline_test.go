package pipeline

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func TestRunGoesThroughItsStages(t *testing.T) {
	g := newGround(t)
	g.worker()
	begin := time.Now()
	r := g.begin()
	r = g.waitOver(r.ID, run.Succeeded, 10*time.Second)
	t.Logf("four stages of %s took %s", g.opts.Duration, time.Since(begin))
	g.clean(r)
	require.NotEmpty(t, r.Set)
	require.Len(t, r.Attempts, 4)
	for _, a := range r.Attempts {
		require.Equal(t, run.Good, *a.Outcome)
		require.Equal(t, 1, a.Attempt)
	}
	require.Zero(t, r.Cleanups)
}

// The hand-over from one stage to the next stays under 300 ms: the median of
// nine, since the machine may be busy.
func TestHopLatency(t *testing.T) {
	g := newGround(t)
	g.worker()
	var hops []time.Duration
	for range 3 {
		r := g.waitOver(g.begin().ID, run.Succeeded, 20*time.Second)
		var ended int64
		for _, l := range g.journal() {
			switch {
			case l.run != r.ID:
			case l.word == "end":
				ended = l.at
			case l.word == "begin" && ended != 0:
				hops = append(hops, time.Duration(l.at-ended))
			}
		}
	}
	slices.Sort(hops)
	t.Logf("%v", hops)
	require.Len(t, hops, 9)
	require.Less(t, hops[4], 300*time.Millisecond)
}

func TestSecondRunIsRefusedUntilTheFirstIsOver(t *testing.T) {
	g := newGround(t)
	g.worker()
	g.control("hold-postgres", "")
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	_, err := g.store.Start(context.Background(), run.Request{ID: run.NewID(time.Now(), []byte("other")), Instance: "catalog", FirstStage: FirstStage})
	var busy *run.BusyError
	require.ErrorAs(t, err, &busy)
	require.Equal(t, r.ID, busy.Run.ID)
	require.Equal(t, "postgres", busy.Run.Stage)
	g.free("hold-postgres")
	g.clean(g.waitOver(r.ID, run.Succeeded, 10*time.Second))
	g.clean(g.waitOver(g.begin().ID, run.Succeeded, 10*time.Second))
}

// Trap 1: without a deadline of ours asynq stops every task after 30 minutes.
func TestTasksHaveNoTimeoutOfAsynq(t *testing.T) {
	g := newGround(t)
	r := g.begin()
	in := asynq.NewInspectorFromRedisClient(g.rdb)
	info, err := in.GetTaskInfo("catalog", task.ID(r.Epoch, task.Payload{Run: r.ID, Stage: FirstStage, Generation: 1}))
	require.NoError(t, err)
	require.Zero(t, info.Timeout, "asynq's default is 30 minutes")
	require.Greater(t, time.Until(info.Deadline), 10*365*24*time.Hour)
	require.Greater(t, info.MaxRetry, 1_000_000)
	require.GreaterOrEqual(t, info.Retention, 7*24*time.Hour)
}

// Trap 2: asynq's recoverer gives up a killed last attempt without calling any hook.
func TestKilledLastAttemptIsCleanedUp(t *testing.T) {
	g := newGround(t)
	g.opts.Limits.Crashes = 0
	g.control("hold-eventbus", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "eventbus")
	w.kill9()
	require.DirExists(t, filepath.Join(g.opts.Dump, "pgbackrest"))
	begin := time.Now()
	g.worker()
	r = g.waitOver(r.ID, run.Failed, 10*time.Second)
	t.Logf("failed and clean %s after the restart", time.Since(begin))
	require.Equal(t, 1, r.Cleanups)
	require.Contains(t, r.Error, "the worker died")
	g.clean(r)
	g.free("hold-eventbus")
	g.clean(g.waitOver(g.begin().ID, run.Succeeded, 10*time.Second))
}

func TestRestartedWorkerGoesOn(t *testing.T) {
	for _, at := range []string{"prepare", "postgres", "eventbus", "archive"} {
		t.Run(at, func(t *testing.T) {
			g := newGround(t)
			g.control("hold-"+at, "")
			w := g.worker()
			r := g.begin()
			g.waitStage(r.ID, at)
			w.kill9()
			g.free("hold-" + at)
			begin := time.Now()
			g.worker()
			r = g.waitOver(r.ID, run.Succeeded, 10*time.Second)
			t.Logf("done %s after the restart", time.Since(begin))
			g.clean(r)
			require.Equal(t, 1, outcomes(r)[run.Crashed])
			// What asynq brings back later finds an older generation and touches nothing.
			g.expireLease("catalog")
			g.expireLease("catalog.node1")
			n := len(g.journal())
			g.worker()
			g.eventually(10*time.Second, "asynq has brought the dead task back and it is over", func() bool {
				in := asynq.NewInspectorFromRedisClient(g.rdb)
				for _, q := range []string{"catalog", "catalog.node1"} {
					if i, err := in.GetQueueInfo(q); err != nil || i.Active+i.Pending+i.Retry+i.Scheduled > 0 {
						return false
					}
				}
				return true
			})
			require.Len(t, g.journal(), n)
		})
	}
}

func outcomes(r run.Record) map[run.Outcome]int {
	n := map[run.Outcome]int{}
	for _, a := range r.Attempts {
		if a.Outcome != nil {
			n[*a.Outcome]++
		}
	}
	return n
}

// Trap 6: asynq's cancel goes by the task id alone, across queues and databases.
func TestCancelStopsOnlyItsRun(t *testing.T) {
	server := lab.Redis(t)
	a, b := newGroundOn(t, server, 5, "catalog"), newGroundOn(t, server, 6, "catalog")
	id := run.NewID(time.Now(), []byte("twins"))
	for _, g := range []*ground{a, b} {
		g.control("hold-postgres", "")
		g.worker()
		g.beginAs(id)
	}
	a.waitStage(id, "postgres")
	b.waitStage(id, "postgres")
	// asynq's own cancel, as from its dashboard, stops nobody: neither this run nor its twin.
	in := asynq.NewInspectorFromRedisClient(a.rdb)
	require.NoError(t, in.CancelProcessing(task.ID(a.get(id).Epoch, task.Payload{Run: id, Stage: "postgres", Generation: 2})))
	time.Sleep(300 * time.Millisecond)
	require.Zero(t, a.count(id, "over", "postgres")+b.count(id, "over", "postgres"))
	begin := time.Now()
	answer, err := a.store.Cancel(context.Background(), a.get(id))
	require.NoError(t, err)
	require.Equal(t, run.CancelAsked, answer)
	r := a.waitOver(id, run.Cancelled, 5*time.Second)
	t.Logf("cancelled and clean after %s", time.Since(begin))
	a.clean(r)
	require.Equal(t, 1, r.Cleanups)
	time.Sleep(300 * time.Millisecond)
	require.Zero(t, b.count(id, "over", "postgres"), "the other installation's run goes on")
	require.NotEqual(t, a.get(id).Epoch, b.get(id).Epoch)
	b.free("hold-postgres")
	b.clean(b.waitOver(id, run.Succeeded, 10*time.Second))
}

func TestCancelBeforeAnybodyBegan(t *testing.T) {
	g := newGround(t)
	r := g.begin()
	answer, err := g.store.Cancel(context.Background(), r)
	require.NoError(t, err)
	require.Equal(t, run.CancelClosed, answer)
	require.Equal(t, run.Cancelled, g.get(r.ID).State)
	g.worker()
	g.clean(g.waitOver(g.begin().ID, run.Succeeded, 10*time.Second))
	require.Zero(t, g.count(r.ID, "begin", "prepare"))
}

func TestCancelWhileWaitingToRetry(t *testing.T) {
	g := newGround(t)
	g.opts.Limits.Backoff = time.Hour
	g.control("fail-postgres", "1")
	g.worker()
	r := g.begin()
	g.eventually(5*time.Second, "the run waits", func() bool { return g.get(r.ID).NotBefore != nil })
	_, err := g.store.Cancel(context.Background(), g.get(r.ID))
	require.NoError(t, err)
	g.clean(g.waitOver(r.ID, run.Cancelled, 5*time.Second))
}

// Trap 7: SIGTERM at the last attempt must not fail the run.
func TestSIGTERMHandsTheStageOn(t *testing.T) {
	g := newGround(t)
	g.opts.Limits.Errors, g.opts.Limits.Crashes = 0, 0
	g.control("hold-postgres", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	begin := time.Now()
	w.term(t)
	t.Logf("the worker ended %s after SIGTERM", time.Since(begin))
	mid := g.get(r.ID)
	require.Equal(t, run.Running, mid.State)
	require.Equal(t, 1, outcomes(mid)[run.Interrupted])
	require.Zero(t, mid.Errors+mid.Crashes)
	g.free("hold-postgres")
	g.worker()
	g.clean(g.waitOver(r.ID, run.Succeeded, 10*time.Second))
}

func TestErrorsAreRetriedUntilTheBudgetIsSpent(t *testing.T) {
	g := newGround(t)
	g.worker()
	g.control("fail-postgres", "3")
	r := g.waitOver(g.begin().ID, run.Succeeded, 20*time.Second)
	require.Equal(t, 3, outcomes(r)[run.Erred])
	g.clean(r)
	g.control("fail-eventbus", "4")
	r = g.waitOver(g.begin().ID, run.Failed, 20*time.Second)
	require.Equal(t, 4, outcomes(r)[run.Erred])
	require.Equal(t, "stage eventbus fails for now", r.Error)
	require.Equal(t, 1, r.Cleanups)
	g.clean(r)
}

func TestPermanentErrorIsNotRetried(t *testing.T) {
	g := newGround(t)
	g.worker()
	g.control("perm-archive", "")
	r := g.waitOver(g.begin().ID, run.Failed, 10*time.Second)
	require.Equal(t, 1, outcomes(r)[run.Erred])
	require.Equal(t, 1, g.count(r.ID, "begin", "archive"))
	g.clean(r)
}

func TestTimeLimitEndsTheRun(t *testing.T) {
	g := newGround(t)
	g.opts.Limits.Timeout = time.Second
	g.control("hold-eventbus", "")
	g.worker()
	r := g.waitOver(g.begin().ID, run.Failed, 10*time.Second)
	require.Contains(t, r.Error, "chef_timeout")
	g.clean(r)
}

func TestTimeLimitEndsARunWithoutAnAttempt(t *testing.T) {
	g := newGround(t)
	g.opts.Limits.Timeout = time.Second
	g.opts.Limits.Backoff = time.Hour
	g.control("fail-eventbus", "1")
	g.worker()
	g.clean(g.waitOver(g.begin().ID, run.Failed, 15*time.Second))
}

func TestOtherNodeLeavesTheStagingAlone(t *testing.T) {
	g := newGround(t)
	g.control("hold-eventbus", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "eventbus")
	w.kill9()
	other := func(o *workerOptions) {
		o.Node, o.Dump, o.Temp = "node2", t.TempDir(), t.TempDir()
		o.Limits.NodeLostAfter = 3 * time.Second
	}
	g.worker(other)
	r = g.waitOver(r.ID, run.Failed, 15*time.Second)
	require.Contains(t, r.Error, "node1")
	require.DirExists(t, filepath.Join(g.opts.Dump, "pgbackrest"), "only its own node may clear it")
	g.free("hold-eventbus")
	g.worker()
	g.clean(r)
}

func TestForeignHandsOnTheQueue(t *testing.T) {
	g := newGround(t)
	in := asynq.NewInspectorFromRedisClient(g.rdb)
	r := g.begin()
	require.NoError(t, in.DeleteTask("catalog", task.ID(r.Epoch, task.Payload{Run: r.ID, Stage: FirstStage, Generation: 1})))
	g.worker()
	g.clean(g.waitOver(r.ID, run.Succeeded, 10*time.Second)) // deleted by the dashboard, or never enqueued by a killed producer
	g.workers[0].term(t)
	r = g.begin()
	require.NoError(t, in.ArchiveTask("catalog", task.ID(r.Epoch, task.Payload{Run: r.ID, Stage: FirstStage, Generation: 1})))
	g.worker()
	r = g.waitOver(r.ID, run.Failed, 10*time.Second)
	require.Contains(t, r.Error, "archived by hand")
}

// A worker may die after its set stands and its staging is gone, before the record
// says so. Then the set counts, whatever was asked for meanwhile.
func TestKilledAfterTheCommit(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		g := newGround(t)
		ctx := context.Background()
		r := g.begin()
		id := set.NewID(time.Now(), "1.2.3")
		for _, name := range []string{"prepare", "postgres", "eventbus", "archive"} {
			r = g.get(r.ID)
			c, err := g.store.Claim(ctx, r.ID, name, r.Generation, "node1", "token234", time.Hour)
			require.NoError(t, err)
			require.Equal(t, "ok", c.Kind)
			require.NoError(t, g.store.Note(ctx, r.ID, c.Hold, run.Facts{Set: string(id)}))
			if name != "archive" {
				_, err = g.store.Advance(ctx, r, name, c.Hold, map[string]string{"prepare": "postgres", "postgres": "eventbus", "eventbus": "archive"}[name], "x")
				require.NoError(t, err)
			}
		}
		m := set.Manifest{Format: set.FormatName, Version: set.FormatVersion, Set: string(id), Run: r.ID, Instance: "catalog", Warnings: []string{"mind"},
			Archives: []set.Archive{{Kind: set.MainArchive, Name: id.MainName(), Size: 4}}}
		b, err := json.Marshal(m)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(g.opts.Dump, id.MainName()), []byte("main"), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(g.opts.Dump, id.ManifestName()), b, 0o600))
		if cancelled {
			_, err := g.store.Stop(ctx, g.get(r.ID), 0, run.Cancelled, "cancelled", false)
			require.NoError(t, err)
		}
		g.worker()
		r = g.waitOver(r.ID, run.Succeeded, 20*time.Second)
		g.clean(r)
		if cancelled {
			require.Equal(t, []string{"mind"}, r.Warnings)
			require.Equal(t, filepath.Join(g.opts.Dump, id.ManifestName()), r.Manifest)
		}
	}
}

// A worker may die after it took a task out of the queue and before it claimed the stage.
func TestKilledBeforeTheClaim(t *testing.T) {
	g := newGround(t)
	r := g.begin()
	ctx := context.Background()
	id := task.ID(r.Epoch, task.Payload{Run: r.ID, Stage: FirstStage, Generation: 1})
	require.Equal(t, id, g.rdb.RPopLPush(ctx, "asynq:{catalog}:pending", "asynq:{catalog}:active").Val())
	require.NoError(t, g.rdb.ZAdd(ctx, "asynq:{catalog}:lease", redis.Z{Score: float64(time.Now().Add(30 * time.Second).Unix()), Member: id}).Err())
	require.NoError(t, g.rdb.HSet(ctx, "asynq:{catalog}:t:"+id, "state", "active").Err())
	g.worker()
	g.clean(g.waitOver(r.ID, run.Succeeded, 10*time.Second))
}

func TestStagingRemovedUnderTheAttempt(t *testing.T) {
	g := newGround(t)
	g.control("hold-eventbus", "")
	g.worker()
	r := g.begin()
	g.waitStage(r.ID, "eventbus")
	require.NoError(t, os.RemoveAll(filepath.Join(g.opts.Temp, r.ID)))
	g.eventually(5*time.Second, "the attempt notices", func() bool { return g.count(r.ID, "over", "eventbus") > 0 })
	g.free("hold-eventbus")
	r = g.waitOver(r.ID, run.Succeeded, 20*time.Second)
	g.clean(r)
}

func TestForeignFilesSurvive(t *testing.T) {
	g := newGround(t)
	foreign := filepath.Join(g.opts.Dump, "202001010101_1-2-3_alation_backup.tar.gz")
	require.NoError(t, os.WriteFile(foreign, []byte("an older backup of the catalog's own"), 0o644))
	now := set.NewID(time.Now(), "1.2.3")
	same := filepath.Join(g.opts.Dump, now.MainName()) // the very name that the next run would take
	require.NoError(t, os.WriteFile(same, []byte("foreign"), 0o644))
	g.worker()
	r := g.waitOver(g.begin().ID, run.Succeeded, 10*time.Second)
	require.NotEqual(t, string(now), r.Set)
	require.NoError(t, os.MkdirAll(filepath.Join(g.opts.Dump, "pgbackrest", "archive"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(g.opts.Dump, "pgbackrest", "archive", "x"), []byte("theirs"), 0o644))
	bad := g.waitOver(g.begin().ID, run.Failed, 10*time.Second)
	require.Contains(t, bad.Error, "pgbackrest")
	require.Contains(t, bad.Error, "move it away")
	g.worker()
	for _, f := range []string{foreign, same, filepath.Join(g.opts.Dump, "pgbackrest", "archive", "x")} {
		require.FileExists(t, f)
	}
}
