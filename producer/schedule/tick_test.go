package schedule

import (
	"encoding/json"
	"sync"
	"testing"
	"time"

	"catalog-backup/producer/start"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
)

// deliver gives a tick to a scheduler, as asynq does.
func (h *hand) deliver(x task.Tick) error {
	b, err := json.Marshal(x)
	require.NoError(h.y.t, err)
	return h.ProcessTask(ctx, asynq.NewTask(task.TickType, b))
}

// one has the schedulers enqueue one tick of the plan, and returns it.
func (y *yard) one(h *hand, at string) task.Tick {
	y.t.Helper()
	y.at(at, 1)
	all := y.tasks()
	require.NotEmpty(y.t, all)
	return all[len(all)-1]
}

func (y *yard) last(plan string) schedule.Tick {
	y.t.Helper()
	all, err := y.store.Recent(ctx, plan, 1)
	require.NoError(y.t, err)
	require.NotEmpty(y.t, all)
	return all[0]
}

// otherRun opens a run by hand.
func (y *yard) otherRun() run.Record {
	y.t.Helper()
	r, err := y.runs.Start(ctx, run.Request{ID: run.NewID(y.clock.Now(), []byte{1, 2, 3, 4, 5}), Instance: "catalog", Requested: "full", Type: "full", FirstStage: run.Prepare, Epoch: "x"})
	require.NoError(y.t, err)
	return r
}

// finish ends a run, as its cancel does while nobody has begun it.
func (y *yard) finish(r run.Record) {
	y.t.Helper()
	answer, err := y.runs.Cancel(ctx, r)
	require.NoError(y.t, err)
	require.Equal(y.t, run.CancelClosed, answer)
}

func daily(t *testing.T, more string) (*yard, *hand) {
	y := newYard(t, "2026-11-23T01:00:00Z", "schedules: [{name: nightly, cron: '30 2 * * *', type: incremental"+more+"}]")
	h := y.scheduler("a").run()
	t.Cleanup(h.end)
	return y, h
}

func TestATickOpensOneRun(t *testing.T) {
	y, h := daily(t, "")
	tick := y.one(h, "2026-11-23T02:30:00Z")
	other := y.scheduler("b")
	var wait sync.WaitGroup
	for range 4 { // asynq may deliver twice at once
		wait.Go(func() { _ = h.deliver(tick) })
		wait.Go(func() { _ = other.deliver(tick) })
	}
	wait.Wait()
	require.NoError(t, h.deliver(tick))
	r, err := y.runs.Current(ctx, "catalog")
	require.NoError(t, err)
	require.Equal(t, []any{run.Queued, "incremental", task.TickID(tick)}, []any{r.State, r.Requested, r.Tick})
	got := y.last("nightly")
	require.Equal(t, schedule.Opened, got.Result)
	require.Equal(t, r.ID, *got.Run)
	stages, err := asynq.NewInspectorFromRedisClient(y.rdb).ListPendingTasks("catalog")
	require.NoError(t, err)
	require.Len(t, stages, 1, "the first stage is enqueued")
	y.finish(r)
	require.NoError(t, h.deliver(tick), "delivered once more, after the run")
	require.NoError(t, other.deliver(tick))
	again, err := y.runs.Current(ctx, "catalog")
	require.NoError(t, err)
	require.Equal(t, r.ID, again.ID)
	require.True(t, again.State.Over())
}

func TestASchedulerThatDiesAfterOpening(t *testing.T) {
	for after := 1; after < 15; after++ {
		y, h := daily(t, "")
		tick := y.one(h, "2026-11-23T02:30:00Z")
		victim := y.scheduler("b")
		victim.fate.arm(after, true)
		_ = victim.deliver(tick)
		require.NoError(t, h.deliver(tick), "after %d commands", after)
		runs, err := y.runs.Open(ctx, "catalog")
		require.NoError(t, err)
		require.Len(t, runs, 1, "after %d commands", after)
		require.Equal(t, runs[0], *y.last("nightly").Run)
		if !victim.fate.dead() {
			require.Greater(t, after, 5)
			return
		}
	}
	t.Fatal("a tick takes fewer commands than that")
}

func TestATickThatNobodyTookInTime(t *testing.T) {
	y, h := daily(t, "")
	tick := y.one(h, "2026-11-23T02:30:00Z")
	y.at("2026-11-23T03:30:01Z", 1)
	require.NoError(t, h.deliver(tick))
	require.Equal(t, schedule.Skipped, y.last("nightly").Result)
	require.Equal(t, "no scheduler took it within the catch-up window, until 2026-11-23T03:30:00Z", *y.last("nightly").Reason)
	_, err := y.runs.Current(ctx, "catalog")
	require.ErrorIs(t, err, run.ErrNotFound)

	y, h = daily(t, "")
	tick = y.one(h, "2026-11-23T02:30:00Z")
	_, err = h.starter.Open(ctx, start.Request{Instance: "catalog", Requested: "incremental", Tick: task.TickID(tick)})
	require.NoError(t, err, "and the scheduler dies, before it can say so")
	y.at("2026-11-23T03:30:01Z", 1)
	require.NoError(t, h.deliver(tick))
	require.Equal(t, schedule.Opened, y.last("nightly").Result)
}

func TestOverlapSkip(t *testing.T) {
	y, h := daily(t, "")
	busy := y.otherRun()
	tick := y.one(h, "2026-11-23T02:30:00Z")
	require.NoError(t, h.deliver(tick))
	got := y.last("nightly")
	require.Equal(t, schedule.Skipped, got.Result)
	require.Equal(t, busy.ID, *got.Run)
	require.Equal(t, "run "+busy.ID+" was active", *got.Reason)
	y.finish(busy)
	require.NoError(t, h.deliver(tick))
	require.Equal(t, schedule.Skipped, y.last("nightly").Result, "skipped is skipped")
}

func TestOverlapQueue(t *testing.T) {
	y, h := daily(t, ", overlap: queue")
	busy := y.otherRun()
	tick := y.one(h, "2026-11-23T02:30:00Z")
	require.ErrorIs(t, h.deliver(tick), errWaits)
	require.Equal(t, schedule.Waiting, y.last("nightly").Result)
	y.at("2026-11-23T09:00:00Z", 1)
	require.ErrorIs(t, h.deliver(tick), errWaits)
	y.finish(busy)
	require.NoError(t, h.deliver(tick))
	require.Equal(t, schedule.Opened, y.last("nightly").Result)
}

func TestAWaitingTickGivesUpAtTheNextOne(t *testing.T) {
	y, h := daily(t, ", overlap: queue")
	busy := y.otherRun()
	tick := y.one(h, "2026-11-23T02:30:00Z")
	require.ErrorIs(t, h.deliver(tick), errWaits)
	y.at("2026-11-24T02:30:00Z", 1)
	require.NoError(t, h.deliver(tick))
	got, ok, err := y.store.Tick(ctx, "nightly", tick.At)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, schedule.Skipped, got.Result)
	require.Equal(t, "it waited until the plan's next tick; then still run "+busy.ID+" was active", *got.Reason)
}

func TestAWaitingTickOfAPausedPlan(t *testing.T) {
	y, h := daily(t, ", overlap: queue")
	y.otherRun()
	tick := y.one(h, "2026-11-23T02:30:00Z")
	require.ErrorIs(t, h.deliver(tick), errWaits)
	_, err := y.store.Pause(ctx, "nightly", "me@host")
	require.NoError(t, err)
	require.NoError(t, h.deliver(tick))
	require.Equal(t, "the plan was paused by me@host while the tick waited", *y.last("nightly").Reason)
}

func TestTicksThatAreNotOurs(t *testing.T) {
	y, h := daily(t, "")
	tick := y.one(h, "2026-11-23T02:30:00Z")
	foreign, old := tick, tick
	foreign.Instance, old.Install = "other", "of a Redis whose data is gone"
	require.NoError(t, h.deliver(foreign))
	require.NoError(t, h.deliver(old))
	require.NoError(t, h.ProcessTask(ctx, asynq.NewTask(task.TickType, []byte("{"))))
	require.NoError(t, h.ProcessTask(ctx, asynq.NewTask("other:type", []byte("{}"))))
	_, err := y.runs.Current(ctx, "catalog")
	require.ErrorIs(t, err, run.ErrNotFound)
}

func TestAVerificationGoesToTheWorkers(t *testing.T) {
	y := newYard(t, "2026-11-23T01:00:00Z", "schedules: [{name: check, cron: '0 * * * *', job: verify}]")
	h := y.scheduler("a").run()
	t.Cleanup(h.end)
	first := y.one(h, "2026-11-23T02:00:00Z")
	require.NoError(t, h.deliver(first))
	require.NoError(t, h.deliver(first))
	in := asynq.NewInspectorFromRedisClient(y.rdb)
	list, err := in.ListPendingTasks("catalog")
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, []string{task.VerifyID(first), task.VerifyType}, []string{list[0].ID, list[0].Type})
	require.True(t, list[0].Deadline.After(time.Now().AddDate(10, 0, 0)), "asynq's default of 30 minutes must not apply")
	require.Equal(t, schedule.Verifying, y.last("check").Result)

	second := y.one(h, "2026-11-23T03:00:00Z")
	require.NoError(t, h.deliver(second))
	require.Equal(t, schedule.Skipped, y.last("check").Result)
	require.Equal(t, "the verification of 2026-11-23T02:00:00Z was at work", *y.last("check").Reason)

	require.NoError(t, in.DeleteTask("catalog", task.VerifyID(first)), "somebody deletes its task")
	third := y.one(h, "2026-11-23T04:00:00Z")
	require.NoError(t, h.deliver(third))
	require.Equal(t, schedule.Verifying, y.last("check").Result)
	got, _, err := y.store.Tick(ctx, "check", first.At)
	require.NoError(t, err)
	require.Equal(t, schedule.Failed, got.Result)
}
