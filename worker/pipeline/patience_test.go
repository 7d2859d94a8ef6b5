package pipeline

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

func TestPatienceEndsBeforeTheNodeIsLost(t *testing.T) {
	for lost, want := range map[time.Duration]time.Duration{time.Hour: 45 * time.Minute, 24 * time.Hour: 23*time.Hour + 45*time.Minute,
		2 * time.Minute: time.Minute, time.Minute: 30 * time.Second, 6 * time.Minute: 4*time.Minute + 30*time.Second} {
		require.Equal(t, want, Limits{NodeLostAfter: lost}.patience(), lost.String())
	}
}

// Redis is away for longer than queue.redis_grace: that is said once, and nothing is
// thrown away, neither a stage under way nor one that waits to report.
func TestWorkGoesOnWithoutRedis(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.opts.Limits.RedisGrace = 300 * time.Millisecond
	g.control("hold-postgres", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	require.NoError(t, g.redis.Kill9())
	said := func(n int) func() bool {
		return func() bool {
			return strings.Count(w.log.String(), "level=error msg=\"Redis has not answered for ") == n
		}
	}
	g.eventually(10*time.Second, "it is said", said(1))
	g.free("hold-postgres")
	g.eventually(5*time.Second, "the stage is done", func() bool { return g.count(r.ID, "over", "postgres") == 1 })
	g.eventually(10*time.Second, "it is said of the waiting, too", said(2))
	require.NoError(t, g.redis.Start())
	r = g.waitOver(r.ID, run.Succeeded, 15*time.Second)
	g.clean(r)
	require.Equal(t, map[run.Outcome]int{run.Good: 4}, outcomes(r))
	require.True(t, said(2)(), w.log.String())
}

// Near queue.node_lost_after the attempt ends and leaves word; it counts as an interruption.
func TestAttemptEndsBeforeItsNodeIsLost(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.opts.Limits.NodeLostAfter = 3 * time.Second // so it waits half of that
	g.control("hold-postgres", "")
	g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	require.NoError(t, g.redis.Kill9())
	g.eventually(10*time.Second, "the attempt leaves word", func() bool {
		m, _ := filepath.Glob(filepath.Join(g.opts.Temp, r.ID, "postgres.*", endName))
		return len(m) == 1
	})
	g.free("hold-postgres")
	require.NoError(t, g.redis.Start())
	r = g.waitOver(r.ID, run.Succeeded, 15*time.Second)
	g.clean(r)
	require.Equal(t, map[run.Outcome]int{run.Good: 4, run.Interrupted: 1}, outcomes(r))
}

// The run's time goes on while Redis is away.
func TestTimeLimitWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.opts.Limits.Timeout = 2 * time.Second
	g.control("hold-postgres", "")
	g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	require.NoError(t, g.redis.Kill9())
	g.eventually(15*time.Second, "the attempt ends", func() bool { return g.count(r.ID, "over", "postgres") == 1 })
	require.NoError(t, g.redis.Start())
	r = g.waitOver(r.ID, run.Failed, 15*time.Second)
	require.Contains(t, r.Error, "chef_timeout")
	g.clean(r)
}

// A panic in a look ends neither the reconciler nor the look at other runs, and is told.
func TestReconcilerOutlivesAPanic(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	r := g.begin()
	ctx := context.Background()
	_, err := g.store.Claim(ctx, r.ID, FirstStage, 1, "node1", run.NewToken(), time.Hour)
	require.NoError(t, err)
	log, text := logrus.New(), &lab.Buffer{}
	log.SetOutput(text)
	e := NewEngine(Params{Store: g.store, Dir: nil, Instance: "catalog", Node: "node1", Now: time.Now, Log: log, Limits: g.opts.Limits})
	rec := NewReconciler(e, asynq.NewInspectorFromRedisClient(g.rdb), "me", 10*time.Millisecond)
	rec.Start()
	g.eventually(5*time.Second, "it is told", func() bool { return strings.Contains(text.String(), "a panic: ") })
	g.looks(2)
	rec.Shutdown()
	require.Equal(t, 1, strings.Count(text.String(), "a panic: "), "once: %s", text)
}

// Fields of another shape are told once, at error, and the run goes on.
func TestOddFieldsAreTold(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.control("hold-postgres", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	require.NoError(t, g.rdb.HSet(context.Background(), "catalog-backup:run:"+r.ID, "warnings", "no list", "attempt:1", "{").Err())
	said := "counts as missing: "
	g.eventually(5*time.Second, "it is told", func() bool { return strings.Count(w.log.String(), said) == 2 })
	g.looks(2)
	require.Equal(t, 2, strings.Count(w.log.String(), said))
	g.free("hold-postgres")
	g.clean(g.waitOver(r.ID, run.Succeeded, 15*time.Second))
}
