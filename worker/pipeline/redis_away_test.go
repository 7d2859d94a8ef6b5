package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// Trap 3: asynq may run one task twice at once. A frozen worker still holds the
// staging; the other one waits, and nothing of the stage happens twice.
func TestFrozenWorkerIsNotOvertaken(t *testing.T) {
	g := newGround(t)
	g.control("hold-postgres", "")
	a := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	a.signal(syscall.SIGSTOP)
	g.expireLease("catalog.node1")
	g.worker()
	in := asynq.NewInspectorFromRedisClient(g.rdb)
	g.eventually(15*time.Second, "asynq hands the task to the other worker", func() bool {
		i, err := in.GetTaskInfo("catalog.node1", task.ID(r.Epoch, task.Payload{Run: r.ID, Stage: "postgres", Generation: 2}))
		return err == nil && i.LastErr != "" && i.LastErr != "asynq: task lease expired"
	})
	require.Equal(t, 1, g.count(r.ID, "begin", "postgres"))
	a.signal(syscall.SIGCONT)
	g.free("hold-postgres")
	r = g.waitOver(r.ID, run.Succeeded, 15*time.Second)
	g.clean(r)
	require.Equal(t, 1, g.count(r.ID, "begin", "postgres"))
	require.Equal(t, 1, g.count(r.ID, "end", "postgres"))
}

// A lost lease alone does not make an attempt stop.
func TestLostLeaseDoesNotLoseTheWork(t *testing.T) {
	g := newGround(t)
	g.control("hold-postgres", "")
	g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	require.NoError(t, g.redis.Kill9())
	time.Sleep(300 * time.Millisecond) // Redis is away for a while
	require.NoError(t, g.redis.Start())
	g.expireLease("catalog.node1")
	g.worker()
	g.free("hold-postgres")
	r = g.waitOver(r.ID, run.Succeeded, 20*time.Second)
	g.clean(r)
	require.Equal(t, 1, g.count(r.ID, "begin", "postgres"))
}

// Trap 4: asynq loses the success of a stage that ends while Redis is away.
func TestStageThatEndsWhileRedisIsAway(t *testing.T) {
	g := newGround(t)
	g.control("hold-postgres", "")
	g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	require.NoError(t, g.redis.Kill9())
	g.free("hold-postgres")
	g.eventually(5*time.Second, "the stage is done", func() bool { return g.count(r.ID, "over", "postgres") == 1 })
	time.Sleep(2 * time.Second) // longer than the client's own retries
	require.NoError(t, g.redis.Start())
	r = g.waitOver(r.ID, run.Succeeded, 15*time.Second)
	g.clean(r)
	require.Equal(t, 1, g.count(r.ID, "begin", "postgres"))
	require.Equal(t, map[run.Outcome]int{run.Good: 4}, outcomes(r), "nothing counts as a failure")
}

// … and when the worker dies too before Redis is back, the result is on disk.
func TestStageThatEndsWhileRedisIsAwayAndWorkerDies(t *testing.T) {
	g := newGround(t)
	g.control("hold-postgres", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	require.NoError(t, g.redis.Kill9())
	g.free("hold-postgres")
	g.eventually(5*time.Second, "the stage's result is on disk", func() bool {
		m, _ := filepath.Glob(filepath.Join(g.opts.Temp, r.ID, "postgres.*", "result.json"))
		return len(m) == 1
	})
	w.kill9()
	require.NoError(t, g.redis.Start())
	g.worker()
	r = g.waitOver(r.ID, run.Succeeded, 15*time.Second)
	g.clean(r)
	require.Equal(t, 1, g.count(r.ID, "begin", "postgres"), "the work was not done twice")
	require.Equal(t, map[run.Outcome]int{run.Good: 4}, outcomes(r), "its work is done: no crash is counted")
}

// Trap 5: Redis comes back empty. asynq notices nothing.
func TestEmptiedRedisStopsTheRun(t *testing.T) {
	g := newGround(t)
	g.control("hold-postgres", "")
	g.control("hold-eventbus", "")
	g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	g.free("hold-postgres")
	g.waitStage(r.ID, "eventbus")
	require.NoError(t, g.redis.FlushAll())
	g.eventually(5*time.Second, "the attempt stops", func() bool { return g.count(r.ID, "over", "eventbus") == 1 })
	g.free("hold-eventbus")
	g.eventually(5*time.Second, "its staging is swept", func() bool {
		_, err1 := os.Stat(filepath.Join(g.opts.Temp, r.ID))
		_, err2 := os.Stat(filepath.Join(g.opts.Dump, "pgbackrest"))
		return err1 != nil && err2 != nil
	})
	g.clean(g.waitOver(g.begin().ID, run.Succeeded, 15*time.Second))
}

// expireLease makes asynq take every active task of the queue for lost.
func (g *ground) expireLease(queue string) {
	g.t.Helper()
	key := "asynq:{" + queue + "}:lease"
	for _, id := range g.rdb.ZRange(context.Background(), key, 0, -1).Val() {
		require.NoError(g.t, g.rdb.ZAdd(context.Background(), key, redis.Z{Score: float64(time.Now().Add(-5 * time.Minute).Unix()), Member: id}).Err())
	}
}
