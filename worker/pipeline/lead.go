package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
)

// lead fails a run whose node is lost, and looks at the task of its current generation.
func (r *Reconciler) lead(ctx context.Context, rec run.Record, now time.Time, s *sight) error {
	if lost, err := r.nodeLost(ctx, rec, now, s); lost || err != nil {
		return err
	}
	if rec.Claimed == rec.Generation {
		return nil // its attempt lives, or its node finds it dead: a new task would end one that works
	}
	id := task.ID(rec.Epoch, task.Payload{Run: rec.ID, Instance: rec.Instance, Stage: rec.Stage, Generation: rec.Generation})
	queue := task.Queue(rec.Instance, rec.Node)
	info, err := r.inspector.GetTaskInfo(queue, id)
	if rec.Node != "" && (errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound)) && rec.Stage == FirstStage {
		queue = task.Queue(rec.Instance, "") // claimed from the instance's queue
		info, err = r.inspector.GetTaskInfo(queue, id)
	}
	switch {
	case errors.Is(err, asynq.ErrTaskNotFound), errors.Is(err, asynq.ErrQueueNotFound):
		return r.e.enqueue(ctx, rec, rec.Stage, rec.Generation)
	case err != nil:
		if r.idle(s) < claimGrace {
			return err // of Redis, perhaps
		}
		return r.replace(ctx, rec, queue, id, "cannot be read: "+r.e.text(err))
	case info.State == asynq.TaskStateArchived && rec.Stage == run.Cleanup,
		info.State == asynq.TaskStateCompleted,
		// Taken out of the queue and not claimed: its worker died in between. asynq
		// would take minutes to notice; a worker that is only slow finds its claim stale.
		info.State == asynq.TaskStateActive && r.quiet(rec, now, s) > claimGrace:
		return r.anew(ctx, rec)
	case info.State == asynq.TaskStateArchived:
		return r.e.stopRun(ctx, rec, run.Failed, fmt.Sprintf("the task of stage %s was archived by hand, or by asynq (%s)", rec.Stage, info.LastErr))
	case r.idle(s) > max(claimGrace, r.e.p.Limits.grace()):
		return r.neverComes(ctx, rec, queue, id, info)
	case info.State == asynq.TaskStateScheduled, info.State == asynq.TaskStateRetry:
		return r.hurry(queue, rec, now, info)
	}
	return nil
}

// neverComes replaces a task that has been due for long, though there are workers who
// take tasks from its queue: asynq's lists have lost it, or drop it at each delivery.
func (r *Reconciler) neverComes(ctx context.Context, rec run.Record, queue, id string, info *asynq.TaskInfo) error {
	if q, err := r.inspector.GetQueueInfo(queue); err == nil && q.Paused {
		return nil
	}
	live, err := r.e.p.Store.Workers(ctx, rec.Instance)
	if err != nil || !slices.ContainsFunc(live, func(w run.Worker) bool { return rec.Node == "" || w.Node == rec.Node }) {
		return err
	}
	return r.replace(ctx, rec, queue, id, fmt.Sprintf("is %s, but does not come", info.State))
}

// replace is anew for a task that may still lie in the queue.
func (r *Reconciler) replace(ctx context.Context, rec run.Record, queue, id, why string) error {
	if r.first("replace " + rec.ID + rec.Stage) {
		r.e.p.Log.WithFields(logrus.Fields{"run": rec.ID, "stage": rec.Stage}).Warn("the task in asynq's queue " + queue + " " + why + "; making a new one")
	}
	_ = r.inspector.DeleteTask(queue, id) // what stays does nothing: its generation is an old one
	return r.anew(ctx, rec)
}

// hurry hands out a task that lies there though its time has come: whoever put it
// there, or should take it out, goes by a clock that is wrong.
func (r *Reconciler) hurry(queue string, rec run.Record, now time.Time, info *asynq.TaskInfo) error {
	if waits(rec, now) > -claimGrace || info.NextProcessAt.IsZero() { // zero: asynq's list has lost it
		return nil
	}
	if off := info.NextProcessAt.Sub(now); off < skew && off > -skew {
		return nil
	}
	if r.first("hurry " + info.ID) {
		r.e.p.Log.WithFields(logrus.Fields{"run": rec.ID, "stage": rec.Stage}).Warn("the task is due, but lies in the queue until " +
			info.NextProcessAt.UTC().Format(time.RFC3339) + ": the clock of a worker's host is wrong; handing it out")
	}
	return r.inspector.RunTask(queue, info.ID)
}

// anew replaces a task that will do nothing any more.
func (r *Reconciler) anew(ctx context.Context, rec run.Record) error {
	fresh, err := r.e.p.Store.Get(ctx, rec.ID)
	if err != nil || fresh.Generation != rec.Generation || fresh.Claimed != rec.Claimed {
		return err
	}
	return r.e.enqueueAnew(ctx, rec)
}

// nodeLost fails a run whose node has had no worker for too long and frees the
// lock. What lies on that node is swept when a worker comes back there. The silence of
// Redis counts for nobody: the leader itself must have seen none for a while.
func (r *Reconciler) nodeLost(ctx context.Context, rec run.Record, now time.Time, s *sight) (bool, error) {
	p := r.e.p
	if rec.Node == "" || rec.Node == p.Node {
		return false, nil
	}
	seen, err := p.Store.NodeSeen(ctx, rec.Instance, rec.Node)
	if err != nil {
		return false, err
	}
	if !seen.Equal(s.node) {
		s.node, s.nodeMoved = seen, p.Now()
	}
	watched := p.Now().Sub(later(s.nodeMoved, s.moved))
	silent := max(age(later(seen, rec.Updated), now), watched)
	if silent < p.Limits.NodeLostAfter || watched < min(nodeLook, p.Limits.NodeLostAfter) {
		return false, nil
	}
	why := fmt.Sprintf("no worker of node %s has been there for %s, and the run's staging is on it: start a worker there before the next run, it clears what is left", rec.Node, p.Limits.NodeLostAfter)
	_, err = p.Store.Stop(ctx, rec, rec.Generation, run.Failed, why, true)
	return true, err
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
