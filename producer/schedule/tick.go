package schedule

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"catalog-backup/producer/start"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
)

// errWaits makes asynq deliver the tick again; it never counts.
var errWaits = errors.New("the tick waits for the active run to end")

// ProcessTask is asynq's handler of the ticks.
func (s *Service) ProcessTask(ctx context.Context, t *asynq.Task) error {
	tick, err := task.ReadTick(t)
	if err != nil || t.Type() != task.TickType || tick.Instance != s.instance {
		s.p.Log.WithError(err).Warn("dropped a task that is no tick of ours")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	epoch, err := s.runs.Epoch(ctx, s.p.FreshEpoch())
	if err != nil {
		return err
	}
	if epoch != tick.Install {
		return nil // of a Redis whose data is gone
	}
	old, known, err := s.store.Tick(ctx, tick.Plan, tick.At)
	if err != nil {
		return err
	}
	if known && old.Result.Final() {
		return nil // delivered again
	}
	isPaused, err := s.store.Paused(ctx)
	if err != nil {
		return err
	}
	if p, ok := isPaused[tick.Plan]; ok {
		return s.note(ctx, tick, schedule.Tick{Result: schedule.Skipped, Reason: text("the plan was paused by %s while the tick waited", p.By)})
	}
	if old.Result.Begun() {
		// it waits, or is under way: its own limits hold
	} else if late, err := s.tooLate(ctx, tick); late || err != nil {
		return err
	}
	if tick.Job == schedule.Verify {
		return s.verify(ctx, tick)
	}
	return s.open(ctx, tick)
}

// tooLate gives up a tick that nobody took within the catch-up window: all schedulers
// were gone after one had enqueued it, or somebody paused the queue. One that opened
// its run, and died before it could say so, is not late.
func (s *Service) tooLate(ctx context.Context, tick task.Tick) (bool, error) {
	if !s.p.Clock.Now().After(tick.Latest) {
		return false, nil
	}
	id, err := s.runs.OfTick(ctx, s.instance, task.TickID(tick))
	if err != nil || id != "" {
		return false, err
	}
	return true, s.note(ctx, tick, schedule.Tick{Result: schedule.Skipped, Reason: text("no scheduler took it within the catch-up window, until %s", tick.Latest.Format(time.RFC3339))})
}

// open opens the tick's run.
func (s *Service) open(ctx context.Context, tick task.Tick) error {
	starter := s.starter
	r, err := starter.Open(ctx, start.Request{Instance: s.instance, Requested: set.Type(tick.Type), Tick: task.TickID(tick)})
	var busy *run.BusyError
	switch {
	case errors.As(err, &busy):
		return s.overlap(ctx, tick, &busy.Run.ID, "run "+busy.Run.ID+" was active")
	case errors.Is(err, run.ErrNotFound): // opened long ago, and the record is gone
		return s.note(ctx, tick, schedule.Tick{Result: schedule.Opened})
	case err != nil:
		if !s.p.Clock.Now().Before(tick.Until) {
			return s.note(ctx, tick, schedule.Tick{Result: schedule.Failed, Reason: text("no run could be opened until the plan's next tick: %s", oneLine(err))})
		}
		return err
	}
	if r.State == run.Queued && r.Claimed == 0 {
		if err := starter.HandOver(ctx, r); err != nil {
			s.p.Log.WithError(err).WithField("run", r.ID).Warn("the run is recorded; a worker will take it up by itself")
		}
	}
	return s.note(ctx, tick, schedule.Tick{Result: schedule.Opened, Run: &r.ID})
}

// overlap deals with a tick that finds other work active: id names it, where it is a run.
func (s *Service) overlap(ctx context.Context, tick task.Tick, id *string, what string) error {
	t := schedule.Tick{Run: id}
	switch {
	case tick.Overlap != schedule.Queue:
		t.Result, t.Reason = schedule.Skipped, &what
	case !s.p.Clock.Now().Before(tick.Until):
		t.Result, t.Reason = schedule.Skipped, text("it waited until the plan's next tick; then still %s", what)
	default:
		t.Result, t.Reason = schedule.Waiting, &what
		if err := s.note(ctx, tick, t); err != nil {
			return err
		}
		return errWaits
	}
	return s.note(ctx, tick, t)
}

// verify hands a verification to the workers, if the plan's last one is over.
func (s *Service) verify(ctx context.Context, tick task.Tick) error {
	busy, err := s.verifying(ctx, tick)
	if err != nil {
		return err
	}
	if busy != nil {
		return s.overlap(ctx, tick, nil, "the verification of "+busy.At.Format(time.RFC3339)+" was at work")
	}
	if err := s.starter.Queue.EnqueueVerify(ctx, tick); err != nil {
		return err
	}
	return s.note(ctx, tick, schedule.Tick{Result: schedule.Verifying})
}

// verifying is an earlier tick of the plan whose verification is not over. One whose
// task is gone is given up.
func (s *Service) verifying(ctx context.Context, tick task.Tick) (*schedule.Tick, error) {
	recent, err := s.store.Recent(ctx, tick.Plan, keepMissed)
	if err != nil {
		return nil, err
	}
	for _, t := range recent {
		if t.Result != schedule.Verifying || !t.At.Before(tick.At) {
			continue
		}
		other := tick
		other.At = t.At
		info, err := s.inspector.GetTaskInfo(task.Queue(s.instance, ""), task.VerifyID(other))
		gone := errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound)
		if err != nil && !gone {
			return nil, fmt.Errorf("look for the task of an earlier verification: %w", err)
		}
		if !gone && info.State != asynq.TaskStateCompleted && info.State != asynq.TaskStateArchived {
			return &t, nil
		}
		if err := s.note(ctx, other, schedule.Tick{Result: schedule.Failed, Reason: text("its task was deleted or archived by hand")}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// note writes down what became of the tick, and logs it the first time.
func (s *Service) note(ctx context.Context, tick task.Tick, t schedule.Tick) error {
	t.At = tick.At
	old, _, err := s.store.Tick(ctx, tick.Plan, tick.At)
	if err != nil {
		return err
	}
	noted, err := s.store.Note(ctx, tick.Plan, t)
	if err != nil || !noted || old.Result == t.Result {
		return err
	}
	fields := logrus.Fields{"plan": tick.Plan, "tick": tick.At.Format(time.RFC3339), "result": t.Result}
	if t.Run != nil {
		fields["run"] = *t.Run
	}
	if t.Reason != nil {
		fields["reason"] = *t.Reason
	}
	log := s.p.Log.WithFields(fields)
	if t.Result == schedule.Skipped || t.Result == schedule.Failed {
		log.Warn("tick")
	} else {
		log.Info("tick")
	}
	return nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
