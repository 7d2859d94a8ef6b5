package pipeline

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// asynq's times are those of whichever host enqueues or hands out. Here they are an
// hour off, by hand.

func (g *ground) taskID(r run.Record) string {
	return task.ID(r.Epoch, task.Payload{Run: r.ID, Stage: r.Stage, Generation: r.Generation})
}

// A retry that lies in the queue for an hour begins when its wait is over. One that is
// handed out before is not begun.
func TestRetryByAWrongClock(t *testing.T) {
	for _, ahead := range []bool{true, false} {
		t.Run(fmt.Sprintf("ahead %v", ahead), func(t *testing.T) {
			t.Parallel()
			g := newGround(t)
			g.opts.Limits.Backoff = 3 * time.Second
			g.control("fail-postgres", "1")
			g.worker()
			r := g.begin()
			g.eventually(5*time.Second, "the run waits", func() bool { r = g.get(r.ID); return r.NotBefore != nil })
			in, ctx := asynq.NewInspectorFromRedisClient(g.rdb), context.Background()
			g.eventually(5*time.Second, "so does its task", func() bool {
				i, err := in.GetTaskInfo("catalog.node1", g.taskID(r))
				return err == nil && i.State == asynq.TaskStateScheduled
			})
			if ahead {
				require.NoError(t, g.rdb.ZAdd(ctx, "asynq:{catalog.node1}:scheduled", redis.Z{Score: float64(time.Now().Add(time.Hour).Unix()), Member: g.taskID(r)}).Err())
			} else {
				require.NoError(t, in.RunTask("catalog.node1", g.taskID(r)))
			}
			r = g.waitOver(r.ID, run.Succeeded, 20*time.Second)
			g.clean(r)
			require.GreaterOrEqual(t, waited(t, r, "postgres"), 2*time.Second)
		})
	}
}

// waited is the time between the first two attempts at the stage.
func waited(t *testing.T, r run.Record, stage string) time.Duration {
	t.Helper()
	var at []run.Attempt
	for _, a := range r.Attempts {
		if a.Stage == stage {
			at = append(at, a)
		}
	}
	require.GreaterOrEqual(t, len(at), 2)
	return at[1].Started.Sub(*at[0].Ended)
}

// asynq gives a task whose attempt lives to a worker of another node: its lease looked
// expired to a host whose clock is ahead. The attempt goes on, and nothing is put in its place.
func TestTaskOfALiveAttemptReachesAnotherNode(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.control("hold-prepare", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, FirstStage)
	w.signal(syscall.SIGSTOP) // so that it neither extends the lease again, nor takes the task itself
	g.expireLease("catalog")
	g.worker(func(o *workerOptions) { o.Node, o.Dump, o.Temp = "node2", t.TempDir(), t.TempDir() })
	in := asynq.NewInspectorFromRedisClient(g.rdb)
	g.eventually(time.Minute, "the task is done with at the other node", func() bool {
		i, err := in.GetTaskInfo("catalog", g.taskID(g.get(r.ID)))
		return err == nil && i.State == asynq.TaskStateCompleted
	})
	w.signal(syscall.SIGCONT)
	require.Equal(t, int64(1), g.get(r.ID).Generation)
	g.free("hold-prepare")
	r = g.waitOver(r.ID, run.Succeeded, 15*time.Second)
	require.Equal(t, map[run.Outcome]int{run.Good: 4}, outcomes(r))
}

// A task of a claimed generation that is archived or completed by foreign hands does not
// end its attempt.
func TestLiveAttemptIsNotReplaced(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.opts.Limits.CloseAfter = time.Minute
	g.worker()
	r := g.failInPostgres("hang-cleanup")
	g.eventually(10*time.Second, "the cleanup is claimed", func() bool {
		r = g.get(r.ID)
		return r.Stage == run.Cleanup && r.Claimed == r.Generation
	})
	// As asynq's recoverer would archive it.
	ctx, id := context.Background(), g.taskID(r)
	pipe := g.rdb.TxPipeline()
	pipe.LRem(ctx, "asynq:{catalog.node1}:active", 0, id)
	pipe.ZRem(ctx, "asynq:{catalog.node1}:lease", id)
	pipe.ZAdd(ctx, "asynq:{catalog.node1}:archived", redis.Z{Score: float64(time.Now().Unix()), Member: id})
	pipe.HSet(ctx, "asynq:{catalog.node1}:t:"+id, "state", "archived")
	_, err := pipe.Exec(ctx)
	require.NoError(t, err)
	g.looks(3)
	require.Equal(t, r.Generation, g.get(r.ID).Generation, "the cleanup lives")
	g.free("hang-cleanup")
	r = g.waitOver(r.ID, run.Failed, 15*time.Second)
	require.Equal(t, 1, r.Cleanups)
	g.clean(r)
}

// looks waits until the leader has looked n times: each time it keeps its leadership.
func (g *ground) looks(n int) {
	g.t.Helper()
	key := fmt.Sprintf("catalog-backup:%s:leader", g.opts.Instance)
	var last time.Duration
	g.eventually(15*time.Second, "the reconciler looks", func() bool {
		left := g.rdb.PTTL(context.Background(), key).Val()
		if left > last && last > 0 {
			n--
		}
		last = left
		return n <= 0
	})
}
