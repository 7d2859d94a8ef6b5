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
	// claimGrace is how long a task may be out of the queue before it is claimed, and how
	// long one may be unreadable, or due by a clock that is wrong.
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
	var errs []error
	leader, err := p.Store.Lead(ctx, p.Instance, r.worker, leaderTTL)
	if err == nil && leader {
		err = p.Store.ReleaseLock(ctx, p.Instance)
	}
	if err != nil { // Redis refuses to write, for one: nobody can report, and nobody leads
		clear(r.seen) // nor does it count what is seen now
		defer clear(r.seen)
		leader, errs = false, append(errs, err)
	}
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
	s := r.see(rec, now)
	var errs []error
	own := rec.Node == r.e.p.Node
	if own && !r.e.isLive(id) {
		errs = append(errs, r.deadAttempt(ctx, rec, now, s))
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
		errs = append(errs, r.lead(ctx, rec, now, s))
	}
	return errors.Join(errs...)
}

// deadAttempt finds an attempt of this node whose lock can be taken: its worker is gone.
func (r *Reconciler) deadAttempt(ctx context.Context, rec run.Record, now time.Time, s *sight) error {
	if rec.Claimed != rec.Generation {
		return nil
	}
	quiet := r.quiet(rec, now, s)
	err := r.disk.at("lock "+rec.ID, lockLook, func() error { return r.takeUp(ctx, rec, quiet) })
	if err != nil && !errors.Is(err, dump.ErrHeld) {
		return fmt.Errorf("look whether the attempt of run %s lives: %w", rec.ID, err)
	}
	return nil
}

// takeUp ends the attempt that rec shows if it is dead; it has given no sign for quiet.
func (r *Reconciler) takeUp(ctx context.Context, rec run.Record, quiet time.Duration) error {
	lock, err := r.e.p.Dir.Lock(rec.ID, false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if quiet < goneGrace {
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
	if !fresh.Updated.Equal(rec.Updated) {
		quiet = 0
	}
	if dead, err := r.e.dead(ctx, fresh, quiet); err != nil || !dead {
		return err
	}
	r.e.p.Log.WithField("run", rec.ID).WithField("stage", rec.Stage).Warn("the attempt's worker is gone; going on with the stage")
	return r.e.crashed(ctx, fresh)
}
