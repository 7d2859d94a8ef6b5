package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"catalog-backup/shared/health"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"
	"catalog-backup/worker/dump"

	"github.com/hibiken/asynq"
)

// Reconciler mends what kills, lost messages and foreign hands left behind. Each
// worker looks after the dead attempts of its own node; one leader looks after
// tasks that are missing, archived or completed without effect.
type Reconciler struct {
	e         *Engine
	inspector *asynq.Inspector
	worker    string
	interval  time.Duration
	beat      *health.Beat
	done      chan struct{}
	stopped   chan struct{}
}

const (
	leaderTTL = 4 * time.Second
	// goneGrace is how old the last sign of an attempt must be whose staging is missing:
	// one that lives gives a sign at every pulse, and ends when it notices.
	goneGrace = 5 * time.Second
	// claimGrace is how long a task may be out of the queue before it is claimed.
	claimGrace = 5 * time.Second
)

// NewReconciler makes the reconciler of a worker; it looks every interval.
func NewReconciler(e *Engine, in *asynq.Inspector, worker string, interval time.Duration) *Reconciler {
	return &Reconciler{e: e, inspector: in, worker: worker, interval: interval, beat: health.NewBeat(e.p.Now),
		done: make(chan struct{}), stopped: make(chan struct{})}
}

// Start begins in the background, with a first look at once.
func (r *Reconciler) Start() {
	r.beat.Turn()
	go func() {
		defer close(r.stopped)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { <-r.done; cancel() }()
		for {
			if err := r.Look(ctx); err != nil && ctx.Err() == nil {
				r.e.p.Log.WithError(err).Debug("the reconciler could not look")
			}
			r.beat.Turn()
			if !r.e.sleep(ctx, r.interval) {
				return
			}
		}
	}()
}

// Shutdown ends it.
func (r *Reconciler) Shutdown() {
	close(r.done)
	<-r.stopped
}

// Look goes over all open runs of the instance once.
func (r *Reconciler) Look(ctx context.Context) error {
	p := r.e.p
	open, err := p.Store.Open(ctx, p.Instance)
	if err != nil {
		return err
	}
	leader, err := p.Store.Lead(ctx, p.Instance, r.worker, leaderTTL)
	if err != nil {
		return err
	}
	if leader {
		if err := p.Store.ReleaseLock(ctx, p.Instance); err != nil {
			return err
		}
	}
	var errs []error
	for _, id := range open {
		rec, err := p.Store.Get(ctx, id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if rec.State.Over() {
			continue
		}
		if rec.Node == p.Node && !r.e.isLive(id) {
			errs = append(errs, r.deadAttempt(ctx, rec))
		}
		if leader {
			errs = append(errs, r.lead(ctx, rec))
		}
	}
	return errors.Join(errs...)
}

// deadAttempt finds an attempt of this node whose lock can be taken: its worker is gone.
func (r *Reconciler) deadAttempt(ctx context.Context, rec run.Record) error {
	if rec.Claimed != rec.Generation {
		return nil
	}
	lock, err := r.e.p.Dir.Lock(rec.ID, false)
	switch {
	case errors.Is(err, dump.ErrHeld):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if r.e.p.Now().Sub(rec.Updated) < goneGrace {
			return nil
		}
	case err != nil:
		return err
	default:
		defer lock.Release()
	}
	fresh, err := r.e.p.Store.Get(ctx, rec.ID)
	if err != nil || fresh.Generation != rec.Generation || fresh.Claimed != rec.Claimed {
		return err
	}
	r.e.p.Log.WithField("run", rec.ID).WithField("stage", rec.Stage).Warn("the attempt's worker is gone; going on with the stage")
	return r.e.crashed(ctx, fresh)
}

// lead looks at the task of the run's current generation.
func (r *Reconciler) lead(ctx context.Context, rec run.Record) error {
	p := r.e.p
	if lost, err := r.nodeLost(ctx, rec); lost || err != nil {
		return err
	}
	if d := rec.Deadline; d != nil && p.Now().After(d.Add(5*time.Second)) && rec.Ending == "" && !rec.Committed {
		return r.e.stopRun(ctx, rec, run.Failed, fmt.Sprintf("the run took longer than alation.backup.chef_timeout (%s): raise it, or find out what was slow", p.Limits.Timeout))
	}
	if rec.Cancel && rec.Ending == "" && !rec.Committed && rec.Claimed != rec.Generation {
		return r.e.stopRun(ctx, rec, run.Cancelled, "cancelled") // between two attempts, or waiting to retry
	}
	id := task.ID(rec.Epoch, task.Payload{Run: rec.ID, Instance: rec.Instance, Stage: rec.Stage, Generation: rec.Generation})
	info, err := r.inspector.GetTaskInfo(task.Queue(rec.Instance, rec.Node), id)
	if rec.Node != "" && (errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound)) && rec.Stage == FirstStage {
		info, err = r.inspector.GetTaskInfo(task.Queue(rec.Instance, ""), id) // claimed from the instance's queue
	}
	claimed := rec.Claimed == rec.Generation
	switch {
	case errors.Is(err, asynq.ErrTaskNotFound), errors.Is(err, asynq.ErrQueueNotFound):
		if claimed {
			return nil // its attempt lives, or its node finds it dead
		}
		return r.e.enqueue(ctx, rec, rec.Stage, rec.Generation)
	case err != nil:
		return err
	case info.State == asynq.TaskStateArchived && rec.Stage == run.Cleanup,
		info.State == asynq.TaskStateCompleted && !claimed,
		// Taken out of the queue and not claimed: its worker died in between. asynq
		// would take minutes to notice; a worker that is only slow finds its claim stale.
		info.State == asynq.TaskStateActive && !claimed && p.Now().Sub(rec.Updated) > claimGrace:
		return r.anew(ctx, rec)
	case info.State == asynq.TaskStateArchived && !claimed:
		return r.e.stopRun(ctx, rec, run.Failed, fmt.Sprintf("the task of stage %s was archived by hand, or by asynq (%s)", rec.Stage, info.LastErr))
	}
	return nil
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
// lock. What lies on that node is swept when a worker comes back there.
func (r *Reconciler) nodeLost(ctx context.Context, rec run.Record) (bool, error) {
	p := r.e.p
	if rec.Node == "" || rec.Node == p.Node {
		return false, nil
	}
	seen, err := p.Store.NodeSeen(ctx, rec.Instance, rec.Node)
	if err != nil {
		return false, err
	}
	if seen.Before(rec.Updated) {
		seen = rec.Updated
	}
	if p.Now().Sub(seen) < p.Limits.NodeLostAfter {
		return false, nil
	}
	why := fmt.Sprintf("no worker of node %s has been there for %s, and the run's staging is on it: start a worker there before the next run, it clears what is left", rec.Node, p.Limits.NodeLostAfter)
	_, err = p.Store.Stop(ctx, rec, 0, run.Failed, why, true)
	return true, err
}
