package pipeline

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"

	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

// totals are those of the ground's instance.
func (g *ground) totals() run.Totals {
	g.t.Helper()
	all, err := g.store.Surveys(context.Background())
	require.NoError(g.t, err)
	require.Len(g.t, all, 1)
	return all[0].Totals
}

// holder is the worker whose attempt runs, and the others.
func (g *ground) holder(id, stage string) *process {
	g.t.Helper()
	g.waitStage(id, stage)
	var pid int
	for _, l := range g.journal() {
		if l.run == id && l.word == "begin" && l.stage == stage {
			pid = l.pid
		}
	}
	for _, p := range g.workers {
		if p.Process.Pid == pid {
			return p
		}
	}
	g.t.Fatalf("no worker has process number %d", pid)
	return nil
}

// Two workers at a time, one of which is killed and one stopped within a run: each
// attempt and each retry is counted once, with the time that the record says.
func TestTotalsCountKillsAndStopsOnce(t *testing.T) {
	g := newGround(t)
	for _, name := range []string{"hold-postgres", "hold-eventbus"} {
		g.control(name, "")
	}
	g.control("fail-archive", "2")
	g.worker()
	g.worker()
	good := g.begin()
	g.holder(good.ID, "postgres").kill9()
	g.free("hold-postgres")
	g.worker()
	g.holder(good.ID, "eventbus").term(t)
	g.free("hold-eventbus")
	good = g.waitOver(good.ID, run.Succeeded, time.Minute)
	g.control("perm-postgres", "")
	bad := g.begin()
	bad = g.waitOver(bad.ID, run.Failed, time.Minute)

	got := g.totals()
	require.Equal(t, map[run.State]int64{run.Succeeded: 1, run.Failed: 1}, got.Runs)
	require.Equal(t, map[run.Retried]int64{{Stage: "postgres", Kind: run.Crashed}: 1, {Stage: "eventbus", Kind: run.Interrupted}: 1, {Stage: "archive", Kind: run.Erred}: 2}, got.Retries)
	require.Equal(t, run.Failed, got.Last)
	want := map[run.Ended]time.Duration{}
	counted := map[run.Ended]int64{}
	for _, a := range slices.Concat(good.Attempts, bad.Attempts) {
		require.NotNil(t, a.Outcome)
		e := run.Ended{Stage: a.Stage, Outcome: *a.Outcome}
		want[e] += a.Ended.Sub(a.Started)
		counted[e]++
	}
	require.Len(t, got.Took, len(want))
	for e, sum := range want {
		require.Equal(t, counted[e], got.Took[e].Count, e)
		require.InDelta(t, sum.Seconds(), got.Took[e].Sum.Seconds(), 0.001*float64(counted[e]+1), e)
	}
	require.Equal(t, int64(1), counted[run.Ended{Stage: "postgres", Outcome: run.Crashed}])
}

// freezer stops one call to Redis, as nothing real does on demand.
type freezer struct {
	armed   atomic.Bool
	caught  chan struct{}
	release chan struct{}
}

func (f *freezer) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (f *freezer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if strings.Contains(cmd.String(), ":leader") && f.armed.CompareAndSwap(true, false) {
			close(f.caught)
			<-f.release
		}
		return next(ctx, cmd)
	}
}

func (f *freezer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestWorkerWhoseLoopHangsIsNotAlive(t *testing.T) {
	server := lab.Redis(t)
	rdb := server.Client()
	t.Cleanup(func() { _ = rdb.Close() })
	f := &freezer{caught: make(chan struct{}), release: make(chan struct{})}
	rdb.AddHook(f)
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	log := logrus.New()
	log.SetOutput(t.Output())
	dir := &dump.Directory{Dump: t.TempDir(), Temp: t.TempDir(), Instance: "catalog", Node: "node1"}
	w := New(Params{Store: run.NewStore(rdb, time.Now, time.Hour), Dir: dir, Instance: "catalog", Node: "node1", Now: now, Log: log}, rdb,
		run.Worker{ID: "w1", Node: "node1", PID: os.Getpid()})
	ctx := context.Background()
	require.NoError(t, w.Start(ctx))
	require.NoError(t, w.Alive(ctx))
	require.NoError(t, w.SignedIn(ctx))

	f.armed.Store(true)
	<-f.caught
	require.NoError(t, w.Alive(ctx), "not at once")
	ahead.Store(int64(turnLimit + time.Minute))
	require.ErrorContains(t, w.Alive(ctx), "reconciler: it has not gone round for 4m")
	close(f.release)
	eventually(t, func() bool { return w.Alive(ctx) == nil })

	// A Redis that answers and refuses writes. The worker's last sign is made to end soon.
	require.NoError(t, rdb.PExpire(ctx, "catalog-backup:catalog:worker:w1", 100*time.Millisecond).Err())
	require.NoError(t, rdb.ConfigSet(ctx, "min-replicas-to-write", "1").Err())
	eventually(t, func() bool { return w.SignedIn(ctx) != nil })
	require.ErrorContains(t, w.SignedIn(ctx), "Redis does not show worker w1")
	require.NoError(t, w.Alive(ctx))
	require.NoError(t, rdb.ConfigSet(ctx, "min-replicas-to-write", "0").Err())
	eventually(t, func() bool { return w.SignedIn(ctx) == nil })

	// Redis away ends no worker.
	require.NoError(t, server.Kill9())
	require.Error(t, w.SignedIn(ctx))
	require.NoError(t, w.Alive(ctx))
	turned := w.reconcile.beat.Last()
	eventually(t, func() bool { return w.reconcile.beat.Last().After(turned.Add(time.Second)) })
	require.NoError(t, server.Start())
	eventually(t, func() bool { return w.SignedIn(ctx) == nil })

	w.Shutdown()
	require.ErrorContains(t, w.SignedIn(ctx), "the worker is stopping")
	require.NoError(t, w.Alive(ctx))
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, time.Minute, 20*time.Millisecond)
}

// A worker that may not publish its queues is seen as live all the same, and the other way round.
func TestSigningInDependsOnNothingElse(t *testing.T) {
	rdb := lab.Redis(t).Client()
	t.Cleanup(func() { _ = rdb.Close() })
	ctx := context.Background()
	w := New(Params{Store: run.NewStore(rdb, nil, time.Hour), Dir: &dump.Directory{}, Instance: "catalog", Node: "node1", Now: time.Now, Log: logrus.New()}, rdb, run.Worker{ID: "w1", Node: "node1"})
	for refused, done := range map[string]string{"asynq:*": "catalog-backup:catalog:worker:w1", "catalog-backup:catalog:*": "asynq:queues"} {
		require.NoError(t, rdb.FlushAll(ctx).Err())
		acl := []any{"acl", "setuser", "default", "resetkeys", "~catalog-backup:epoch"}
		for _, keys := range []string{"~catalog-backup:instances", "~asynq:*", "~catalog-backup:catalog:*"} {
			if keys != "~"+refused {
				acl = append(acl, keys)
			}
		}
		require.NoError(t, rdb.Do(ctx, acl...).Err())
		require.ErrorContains(t, w.sign(ctx), "NOPERM", refused)
		require.NoError(t, rdb.Do(ctx, "acl", "setuser", "default", "allkeys").Err())
		require.EqualValues(t, 1, rdb.Exists(ctx, done).Val(), refused)
	}
}
