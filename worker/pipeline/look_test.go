package pipeline

import (
	"context"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

// A looker is a reconciler without a worker: the test looks, and says how long by the
// reconciler's own clock. Redis is a real one.
type looker struct {
	*Reconciler
	g   *ground
	own time.Time
}

func newLooker(t *testing.T, node string) *looker {
	t.Parallel()
	l := &looker{g: newGround(t), own: time.Now()}
	l.g.store = run.NewStore(l.g.rdb, nil, time.Hour)
	limits := l.g.opts.Limits
	limits.Timeout, limits.CloseAfter = 6*time.Hour, 10*time.Minute
	log := logrus.New()
	log.SetOutput(t.Output())
	d := &dump.Directory{Dump: l.g.opts.Dump, Temp: l.g.opts.Temp, Instance: "catalog", Node: node}
	p := Params{Store: l.g.store, Enqueuer: l.g.enqueuer(), Dir: d, Instance: "catalog", Node: node, Limits: limits, Log: log,
		Now: func() time.Time { return l.own }}
	for _, n := range []string{FirstStage, "postgres", "eventbus", "archive"} {
		p.Stages = append(p.Stages, waiting{l.g.opts, n, d})
	}
	l.Reconciler = NewReconciler(NewEngine(p), asynq.NewInspectorFromRedisClient(l.g.rdb), "me", time.Second)
	return l
}

// look looks after the time has gone by.
func (l *looker) look(later time.Duration) error {
	l.own = l.own.Add(later)
	return l.Look(context.Background())
}

func (l *looker) set(r run.Record, fields ...any) {
	l.g.t.Helper()
	require.NoError(l.g.t, l.g.rdb.HSet(context.Background(), "catalog-backup:run:"+r.ID, fields...).Err())
}

// claimed is a run that node1 has begun, and not ended.
func (l *looker) claimed() run.Record {
	l.g.t.Helper()
	r := l.g.begin()
	_, err := l.g.store.Claim(context.Background(), r.ID, FirstStage, 1, "node1", "token234", l.e.p.Limits.Timeout)
	require.NoError(l.g.t, err)
	return l.g.get(r.ID)
}

// stamp is a time from now, as a record has it.
func stamp(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339Nano) }

// Redis's clock was ahead, by hours or by a year, and went back: every time of the record
// is one to come. Each bound holds by what the reconciler has watched itself.
func TestRedisClockWasAhead(t *testing.T) {
	for _, ahead := range []time.Duration{23 * time.Hour, 370 * 24 * time.Hour} {
		spoil := func(l *looker, r run.Record, fields ...any) {
			at := stamp(ahead)
			l.set(r, append([]any{"created", at, "updated", at, "deadline", at}, fields...)...)
		}
		t.Run("queued "+ahead.String(), func(t *testing.T) {
			l := newLooker(t, "node1")
			r := l.g.begin()
			spoil(l, r)
			require.NoError(t, l.look(0))
			require.NoError(t, l.look(l.e.p.Limits.Timeout))
			require.Equal(t, run.Queued, l.g.get(r.ID).State)
			require.NoError(t, l.look(deadlineGrace+time.Second))
			require.Equal(t, run.Failed, l.g.get(r.ID).State)
			require.Contains(t, l.g.get(r.ID).Error, "no worker began the run")
		})
		t.Run("begun "+ahead.String(), func(t *testing.T) {
			l := newLooker(t, "node1")
			r := l.claimed()
			lock, err := l.e.p.Dir.Lock(r.ID, true) // its worker is frozen
			require.NoError(t, err)
			defer lock.Release()
			spoil(l, r, "started", stamp(ahead))
			require.NoError(t, l.look(0))
			require.NoError(t, l.look(l.e.p.Limits.Timeout))
			require.Equal(t, FirstStage, l.g.get(r.ID).Stage)
			require.NoError(t, l.look(deadlineGrace+time.Second))
			require.Equal(t, run.Cleanup, l.g.get(r.ID).Stage)
			require.Contains(t, l.g.get(r.ID).Error, "chef_timeout")
		})
		t.Run("cancelled "+ahead.String(), func(t *testing.T) {
			l := newLooker(t, "node1")
			r := l.claimed()
			lock, err := l.e.p.Dir.Lock(r.ID, true)
			require.NoError(t, err)
			defer lock.Release()
			spoil(l, r, "started", stamp(ahead), "cancel", "1", "cancel_since", stamp(ahead))
			require.NoError(t, l.look(0))
			require.NoError(t, l.look(boundGrace))
			require.Equal(t, FirstStage, l.g.get(r.ID).Stage)
			require.NoError(t, l.look(time.Second))
			require.Equal(t, run.Cancelled, l.g.get(r.ID).Ending)
		})
		t.Run("in the commit "+ahead.String(), func(t *testing.T) {
			l := newLooker(t, "node1")
			r := l.claimed()
			lock, err := l.e.p.Dir.Lock(r.ID, true)
			require.NoError(t, err)
			defer lock.Release()
			spoil(l, r, "committed", "1", "started", stamp(ahead))
			require.NoError(t, l.look(0))
			require.NoError(t, l.look(l.e.p.Limits.Timeout+l.e.p.Limits.CloseAfter))
			require.Equal(t, FirstStage, l.g.get(r.ID).Stage, "whether it gives signs is not to be seen")
			require.NoError(t, l.look(time.Second))
			require.Equal(t, run.Cleanup, l.g.get(r.ID).Stage)
		})
		t.Run("attempt without staging "+ahead.String(), func(t *testing.T) {
			l := newLooker(t, "node1")
			r := l.claimed()
			spoil(l, r)
			require.NoError(t, l.look(0))
			require.Equal(t, r.Generation, l.g.get(r.ID).Generation)
			require.NoError(t, l.look(goneGrace))
			require.Equal(t, r.Generation+1, l.g.get(r.ID).Generation, "it is dead")
		})
	}
}

// A worker that has another chef_timeout than the one that began the run goes by the run's.
func TestWorkersWithOtherTimeLimits(t *testing.T) {
	for _, own := range []time.Duration{time.Minute, 24 * time.Hour} {
		t.Run(own.String(), func(t *testing.T) {
			l := newLooker(t, "node1")
			r := l.claimed()
			lock, err := l.e.p.Dir.Lock(r.ID, true) // its worker lives
			require.NoError(t, err)
			defer lock.Release()
			limit := l.e.p.Limits.Timeout
			l.e.p.Limits.Timeout = own
			require.NoError(t, l.look(0))
			for _, deadline := range []string{stamp(limit), "damaged"} {
				l.set(r, "deadline", deadline)
				require.NoError(t, l.look(limit/2-time.Second))
				require.Equal(t, FirstStage, l.g.get(r.ID).Stage, deadline)
			}
			require.NoError(t, l.look(deadlineGrace+3*time.Second))
			require.Equal(t, run.Cleanup, l.g.get(r.ID).Stage)
			require.Contains(t, l.g.get(r.ID).Error, "chef_timeout (6h0m0s)")
		})
	}
}

// A retry that waits for a time that a clock was ahead by is due.
func TestRetryWaitsNoLongerThanTheLongestWait(t *testing.T) {
	now := time.Now()
	r := func(d time.Duration) run.Record { at := now.Add(d); return run.Record{NotBefore: &at} }
	require.Equal(t, longestWait, waits(r(longestWait), now))
	require.Less(t, waits(r(longestWait+time.Second), now), -claimGrace)
	require.Equal(t, -time.Second, waits(r(-time.Second), now))

	g := newGround(t)
	g.control("fail-postgres", "1")
	g.opts.Limits.Backoff = time.Minute
	g.worker()
	run1 := g.begin()
	g.eventually(10*time.Second, "it waits", func() bool { return g.get(run1.ID).NotBefore != nil })
	at := stamp(23 * time.Hour)
	require.NoError(t, g.rdb.HSet(context.Background(), "catalog-backup:run:"+run1.ID, "not_before", at, "updated", at).Err())
	g.clean(g.waitOver(run1.ID, run.Succeeded, 15*time.Second))
}

// What Redis does not answer counts for nobody: a node is lost only after the leader
// itself has watched it silent.
func TestNodeIsLostOnlyByOwnSight(t *testing.T) {
	l := newLooker(t, "node2")
	r, ctx := l.claimed(), context.Background()
	state := func() run.State { return l.g.get(r.ID).State }
	old := stamp(-2 * time.Hour) // Redis was away so long
	l.set(r, "updated", old)
	require.NoError(t, l.g.rdb.HSet(ctx, "catalog-backup:catalog:nodes", "node1", old).Err())
	require.NoError(t, l.look(0))
	require.NoError(t, l.look(nodeLook-time.Second))
	require.Equal(t, run.Running, state())

	require.NoError(t, l.g.redis.Kill9())
	require.Error(t, l.look(time.Second))
	require.NoError(t, l.g.redis.Start())
	require.NoError(t, l.look(2*time.Hour))
	require.Equal(t, run.Running, state(), "it has just come back")

	require.NoError(t, l.look(nodeLook-time.Second))
	require.NoError(t, l.g.store.SignIn(ctx, "catalog", run.Worker{ID: "w", Node: "node1"}))
	require.NoError(t, l.look(2*time.Second))
	require.Equal(t, run.Running, state(), "its node gave a sign")

	l.set(r, "updated", stamp(23*time.Hour)) // by a clock that was ahead
	require.NoError(t, l.look(0))
	require.NoError(t, l.look(l.e.p.Limits.NodeLostAfter-time.Second))
	require.Equal(t, run.Running, state())
	require.NoError(t, l.look(time.Second))
	require.Equal(t, run.Failed, state())
}

// Redis refuses to write for longer than queue.close_after: nobody could report. Who
// closes a cleanup watches it again from then on.
func TestNobodyIsJudgedWhileRedisRefusesToWrite(t *testing.T) {
	l := newLooker(t, "node1")
	r, ctx := l.claimed(), context.Background()
	lock, err := l.e.p.Dir.Lock(r.ID, true)
	require.NoError(t, err)
	defer lock.Release()
	l.set(r, "stage", run.Cleanup, "ending", "failed", "ending_since", stamp(-time.Hour))
	require.NoError(t, l.look(0))
	require.NoError(t, l.g.rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	require.ErrorContains(t, l.look(time.Hour), "OOM")
	require.NoError(t, l.g.rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	require.NoError(t, l.look(time.Second))
	require.Equal(t, run.Running, l.g.get(r.ID).State)
	require.NoError(t, l.look(patientLook))
	require.Equal(t, run.Failed, l.g.get(r.ID).State)
}

// A leader's key that is none: the worker does not lead, and looks after its own runs.
func TestOwnRunsAreLookedAfterWithoutALeader(t *testing.T) {
	l := newLooker(t, "node1")
	r, ctx := l.claimed(), context.Background()
	require.NoError(t, l.g.rdb.RPush(ctx, "catalog-backup:catalog:leader", "x").Err())
	l.set(r, "cancel", "1", "claimed", 0)
	_ = l.look(0)
	require.Equal(t, run.Cancelled, l.g.get(r.ID).Ending)
}

// While a worker of an earlier version is frozen behind its staging, every later run is
// refused: the error says so, and what to do.
func TestClosedRunNamesTheStagingOfAnEarlierVersion(t *testing.T) {
	l := newLooker(t, "node1")
	r := l.claimed()
	lock, err := l.e.p.Dir.Lock(r.ID, true)
	require.NoError(t, err)
	defer lock.Release()
	staging := l.e.p.Dir.PostgresParent()
	markAs(t, staging, r.ID)
	l.set(r, "stage", run.Cleanup, "ending", "cancelled", "ending_since", stamp(-time.Hour))
	require.NoError(t, l.look(0))
	require.NoError(t, l.look(patientLook))
	r = l.g.get(r.ID)
	require.Equal(t, run.Cancelled, r.State)
	require.Contains(t, r.Error, staging+", the staging of a worker of an earlier version")
	require.NotContains(t, r.Error, "is in no later run's way")
}
