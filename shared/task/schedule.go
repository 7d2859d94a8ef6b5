package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
)

const (
	// TickType is a task of the schedulers: one tick of one plan.
	TickType = "schedule:tick"
	// VerifyType is a task of the workers: verify the newest set of their node.
	VerifyType = "schedule:verify"
)

// Tick is the payload of both. It holds names and times only.
type Tick struct {
	Install  string    `json:"install"` // epoch of the Redis that it was made in
	Instance string    `json:"instance"`
	Plan     string    `json:"plan"`
	At       time.Time `json:"tick"`
	Job      string    `json:"job"`
	Type     string    `json:"type"`    // full or incremental, of a backup
	Overlap  string    `json:"overlap"` // skip or queue
	Latest   time.Time `json:"latest"`  // end of the catch-up window: what nobody has taken by then is not begun
	Until    time.Time `json:"until"`   // the plan's next tick: what waits until then never begins
}

// ScheduleQueue is the queue of an instance's ticks. It has one dot more than the
// queue of a node, so that it is none.
func ScheduleQueue(instance string) string { return instance + ".schedule.ticks" }

// TickID is `<install>:<plan>:<tick-unix>`, the id of the tick's task and
// the idempotency key of the run that it opens.
func TickID(t Tick) string {
	return fmt.Sprintf("%s:%s:%d", t.Install, t.Plan, t.At.Unix())
}

// VerifyID is the id of the verification that the tick asks for.
func VerifyID(t Tick) string { return TickID(t) + ":verify" }

// EnqueueTick puts a tick into its queue. Its id stays taken for retention and
// catchUp, so that no scheduler can do so twice while the tick may still be caught
// up. fresh is false where it had been enqueued before.
func (e *Enqueuer) EnqueueTick(ctx context.Context, t Tick, catchUp time.Duration) (fresh bool, err error) {
	return e.tick(ctx, TickType, TickID(t), ScheduleQueue(t.Instance), t, retention+catchUp)
}

// EnqueueVerify hands the tick's verification to the workers of the instance.
func (e *Enqueuer) EnqueueVerify(ctx context.Context, t Tick) error {
	_, err := e.tick(ctx, VerifyType, VerifyID(t), Queue(t.Instance, ""), t, retention)
	return err
}

func (e *Enqueuer) tick(ctx context.Context, kind, id, queue string, t Tick, keep time.Duration) (bool, error) {
	t.At, t.Latest, t.Until = t.At.UTC(), t.Latest.UTC(), t.Until.UTC()
	body, err := json.Marshal(t)
	if err != nil {
		return false, err
	}
	err = e.put(ctx, queue, asynq.NewTask(kind, body), asynq.TaskID(id), asynq.Retention(keep))
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("enqueue the tick %s of plan %s: %w", t.At.Format(time.RFC3339), t.Plan, err)
	}
	return true, nil
}

// ReadTick takes a tick's payload.
func ReadTick(t *asynq.Task) (Tick, error) {
	var p Tick
	if err := json.Unmarshal(t.Payload(), &p); err != nil {
		return p, fmt.Errorf("read the payload of a tick: %w", err)
	}
	return p, nil
}
