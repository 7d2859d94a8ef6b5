package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"catalog-backup/shared/health"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"
	"catalog-backup/worker/dump"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
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
	disk      looks
	seen      map[string]*sight
	last      string          // what the last look came to grief on
	told      map[string]bool // what was logged of open runs, so that it is once
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
	// deadlineGrace is how long an attempt has to end by itself when the run's time is over.
	deadlineGrace = 5 * time.Second
	// lockLook is how long the look whether a lock is free may take.
	lockLook = 2 * time.Second
	// skew is how far asynq's times may be from Redis's before a task is taken to lie there
	// by the clock of a host that goes wrong. Longer than busyDelay.
	skew = 10 * time.Second
)

// NewReconciler makes the reconciler of a worker; it looks every interval.
func NewReconciler(e *Engine, in *asynq.Inspector, worker string, interval time.Duration) *Reconciler {
	return &Reconciler{e: e, inspector: in, worker: worker, interval: interval, beat: health.NewBeat(e.p.Now), seen: map[string]*sight{}, told: map[string]bool{},
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
			err := guarded(func() error { return r.Look(ctx) })
			if ctx.Err() == nil {
				r.complain(err)
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

// complain logs what a look came to grief on, once as long as it stays the same.
func (r *Reconciler) complain(err error) {
	if err == nil {
		r.last = ""
		return
	}
	text := r.e.text(err)
	if same, _, _ := strings.Cut(text, "goroutine "); same != r.last { // a panic's stack is never the same
		r.last = same
		r.e.p.Log.WithField("error", text).Warn("the reconciler could not look after all runs; it tries on")
	}
}

// Look goes over all open runs of the instance once.
func (r *Reconciler) Look(ctx context.Context) error {
	p := r.e.p
	now, err := p.Store.Time(ctx)
	var open []string
	if err == nil {
		open, err = p.Store.Open(ctx, p.Instance)
	}
	if err != nil {
		clear(r.seen)
		return err
	}
	r.forget(open)
	r.e.giveUp(open)
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
	for _, id := range open { // none keeps another from being looked after
		errs = append(errs, guarded(func() error { return r.lookAt(ctx, id, now, leader) }))
	}
	return errors.Join(errs...)
}

// forget drops what was seen of runs that are not open any more.
func (r *Reconciler) forget(open []string) {
	maps.DeleteFunc(r.seen, func(id string, _ *sight) bool { return !slices.Contains(open, id) })
	if len(open) == 0 {
		clear(r.told)
	}
}

// first tells whether nothing of that kind was logged of an open run before.
func (r *Reconciler) first(what string) bool {
	before := r.told[what]
	r.told[what] = true
	return !before
}

func (r *Reconciler) lookAt(ctx context.Context, id string, now time.Time, leader bool) error {
	rec, err := r.e.p.Store.Get(ctx, id)
	if err != nil || rec.State.Over() {
		return err
	}
	for _, odd := range rec.Odd {
		if r.first(id + odd) {
			r.e.p.Log.WithField("run", id).Error("a field of the run's record is of another shape and counts as missing: " + odd)
		}
	}
	s := r.see(rec)
	var errs []error
	own := rec.Node == r.e.p.Node
	if own && !r.e.isLive(id) {
		errs = append(errs, r.deadAttempt(ctx, rec, now))
	}
	switch {
	case rec.Ending != "":
		errs = append(errs, r.closeLate(ctx, rec, now, leader, s))
	case own || leader:
		if how, why := r.overdue(rec, now, s); how != "" {
			return errors.Join(append(errs, r.e.stopRun(ctx, rec, how, why))...)
		}
	}
	if leader {
		errs = append(errs, r.lead(ctx, rec, now))
	}
	return errors.Join(errs...)
}

// deadAttempt finds an attempt of this node whose lock can be taken: its worker is gone.
func (r *Reconciler) deadAttempt(ctx context.Context, rec run.Record, now time.Time) error {
	if rec.Claimed != rec.Generation {
		return nil
	}
	err := r.disk.at("lock "+rec.ID, lockLook, func() error { return r.takeUp(ctx, rec, now) })
	if err != nil && !errors.Is(err, dump.ErrHeld) {
		return fmt.Errorf("look whether the attempt of run %s lives: %w", rec.ID, err)
	}
	return nil
}

func (r *Reconciler) takeUp(ctx context.Context, rec run.Record, now time.Time) error {
	lock, err := r.e.p.Dir.Lock(rec.ID, false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if now.Sub(rec.Updated) < goneGrace {
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
	if dead, err := r.e.dead(ctx, fresh); err != nil || !dead {
		return err
	}
	r.e.p.Log.WithField("run", rec.ID).WithField("stage", rec.Stage).Warn("the attempt's worker is gone; going on with the stage")
	return r.e.crashed(ctx, fresh)
}

// lead fails a run whose node is lost, and looks at the task of its current generation.
func (r *Reconciler) lead(ctx context.Context, rec run.Record, now time.Time) error {
	if lost, err := r.nodeLost(ctx, rec, now); lost || err != nil {
		return err
	}
	id := task.ID(rec.Epoch, task.Payload{Run: rec.ID, Instance: rec.Instance, Stage: rec.Stage, Generation: rec.Generation})
	queue := task.Queue(rec.Instance, rec.Node)
	info, err := r.inspector.GetTaskInfo(queue, id)
	if rec.Node != "" && (errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound)) && rec.Stage == FirstStage {
		queue = task.Queue(rec.Instance, "") // claimed from the instance's queue
		info, err = r.inspector.GetTaskInfo(queue, id)
	}
	if rec.Claimed == rec.Generation {
		return nil // its attempt lives, or its node finds it dead: a new task would end one that works
	}
	switch {
	case errors.Is(err, asynq.ErrTaskNotFound), errors.Is(err, asynq.ErrQueueNotFound):
		return r.e.enqueue(ctx, rec, rec.Stage, rec.Generation)
	case err != nil:
		return err
	case info.State == asynq.TaskStateArchived && rec.Stage == run.Cleanup,
		info.State == asynq.TaskStateCompleted,
		// Taken out of the queue and not claimed: its worker died in between. asynq
		// would take minutes to notice; a worker that is only slow finds its claim stale.
		info.State == asynq.TaskStateActive && now.Sub(rec.Updated) > claimGrace:
		return r.anew(ctx, rec)
	case info.State == asynq.TaskStateArchived:
		return r.e.stopRun(ctx, rec, run.Failed, fmt.Sprintf("the task of stage %s was archived by hand, or by asynq (%s)", rec.Stage, info.LastErr))
	case info.State == asynq.TaskStateScheduled, info.State == asynq.TaskStateRetry:
		return r.hurry(queue, rec, now, info)
	}
	return nil
}

// hurry hands out a task that lies there though its time has come: whoever put it
// there, or should take it out, goes by a clock that is wrong.
func (r *Reconciler) hurry(queue string, rec run.Record, now time.Time, info *asynq.TaskInfo) error {
	if rec.NotBefore != nil && now.Sub(*rec.NotBefore) < claimGrace {
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
// lock. What lies on that node is swept when a worker comes back there.
func (r *Reconciler) nodeLost(ctx context.Context, rec run.Record, now time.Time) (bool, error) {
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
	if now.Sub(seen) < p.Limits.NodeLostAfter {
		return false, nil
	}
	why := fmt.Sprintf("no worker of node %s has been there for %s, and the run's staging is on it: start a worker there before the next run, it clears what is left", rec.Node, p.Limits.NodeLostAfter)
	_, err = p.Store.Stop(ctx, rec, rec.Generation, run.Failed, why, true)
	return true, err
}
