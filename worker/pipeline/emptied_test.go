package pipeline

import (
	"context"
	"slices"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
)

// Redis is emptied while a worker lives. asynq's inspector, and with it asynqmon and
// the reconciler, know the queues and tasks of the next run all the same; an attempt at it
// whose worker is killed is found by its lock.
func TestQueuesAreKnownAgainInAnEmptiedRedis(t *testing.T) {
	g := newGround(t)
	in := asynq.NewInspectorFromRedisClient(g.rdb)
	both := func() bool {
		q, err := in.Queues()
		slices.Sort(q)
		return err == nil && slices.Equal(q, []string{"catalog", "catalog.node1"})
	}
	a := g.worker()
	g.clean(g.waitOver(g.begin().ID, run.Succeeded, 15*time.Second)) // the worker has published what it enqueues to
	require.True(t, both())
	require.NoError(t, g.redis.FlushAll())
	g.eventually(2*signInterval, "an idle worker publishes its queues", both)

	g.control("hold-postgres", "")
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	info, err := in.GetTaskInfo("catalog.node1", task.ID(g.get(r.ID).Epoch, task.Payload{Run: r.ID, Stage: "postgres", Generation: 2}))
	require.NoError(t, err)
	require.Equal(t, asynq.TaskStateActive, info.State)
	a.kill9()
	g.worker()
	g.free("hold-postgres")
	g.clean(g.waitOver(r.ID, run.Succeeded, 20*time.Second))
}

// A worker's client of before publishes what it enqueues in an emptied Redis at once,
// without waiting for the next sign of life.
func TestAnEnqueuedTaskIsFoundAtOnceInAnEmptiedRedis(t *testing.T) {
	g := newGround(t)
	q := g.enqueuer()
	p := task.Payload{Run: "20261123t184702z-abcdefgh", Instance: "catalog", Stage: "postgres", Generation: 2}
	for range 2 {
		require.NoError(t, q.Enqueue(context.Background(), "e", "node1", p, nil))
		_, err := asynq.NewInspectorFromRedisClient(g.rdb).GetTaskInfo("catalog.node1", task.ID("e", p))
		require.NoError(t, err)
		require.NoError(t, g.redis.FlushAll())
	}
}
