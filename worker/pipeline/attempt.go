package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus"
)

// attempt does one stage, from the claim to its report.
func (e *Engine) attempt(bg context.Context, r run.Record, lock *dump.Lock) error {
	log := e.p.Log.WithFields(logrus.Fields{"run": r.ID, "stage": r.Stage, "attempt": r.Attempt})
	s := e.stage(r.Stage)
	if s == nil {
		return e.stopRun(bg, r, run.Failed, fmt.Sprintf("this worker knows no stage %q: run producer and workers of one version", r.Stage))
	}
	ends, err := e.ends(bg, r)
	if err != nil {
		return e.report(bg, r, "", err)
	}
	ctx, cancel := context.WithCancelCause(bg)
	c := &counter{}
	dir := e.attemptDir(r.ID, r.Stage, r.Hold())
	a := &Attempt{Run: r, Stage: r.Stage, Hold: r.Hold(), Dir: dir, Progress: c, engine: e, ends: ends, lock: lock, counter: c}
	pumped := make(chan struct{})
	go func() { defer close(pumped); e.pump(ctx, cancel, a, lock) }()
	stop := func() { cancel(nil); <-pumped }
	defer stop()
	slow := time.AfterFunc(closeLook, func() {
		log.Warnf("the stage has not begun yet, as the disk of %s or %s is slow or hangs; waiting on", e.p.Dir.Temp, e.p.Dir.Dump)
	})
	found, err := until(ctx, func() (earlier, error) { return e.begin(ctx, r, dir) })
	slow.Stop()
	if err != nil || found.set != nil || found.done != "" {
		stop()
		return e.reportEarlier(bg, r, found, err)
	}
	begin := e.p.Now()
	log.Info("stage begins")
	result, err := runStage(ctx, s, a)
	cause := context.Cause(ctx)
	if err == nil {
		err = dump.WriteResult(dir, result)
	}
	stop()
	if err == nil { // a good stage has done its whole, whatever the estimate was
		c.done.Store(c.total.Load())
		_ = e.pulse(bg, a, &rate{}, e.p.Now())
	}
	if err != nil && cause != nil && !a.committed.Load() {
		err = cause
	}
	log = log.WithField("took", e.p.Now().Sub(begin).Round(time.Millisecond).String())
	if err != nil {
		log.WithField("error", e.text(err)).Warn("stage ends badly")
		e.removeQuietly(dir)
		return e.report(bg, r, "", err)
	}
	log.Info("stage is done")
	return e.report(bg, r, filepath.Base(dir), nil)
}

// earlier is what an attempt finds before its stage begins.
type earlier struct {
	set  *set.Manifest // the run's set stands already
	done string        // the staging of an attempt that had finished the work
}

// begin looks for what there is already, and makes the attempt's staging where that is
// nothing. The disk may hang: until waits for it.
func (e *Engine) begin(ctx context.Context, r run.Record, dir string) (earlier, error) {
	m, err := e.standing(r)
	if err != nil || m != nil {
		return earlier{set: m}, err
	}
	if err := e.endLeftovers(ctx, r.ID); err != nil {
		return earlier{}, err
	}
	done, err := e.finished(ctx, r)
	if err != nil || done != "" {
		return earlier{done: done}, err
	}
	if err := context.Cause(ctx); err != nil {
		return earlier{}, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return earlier{}, fmt.Errorf("make the staging of an attempt: %w", err)
	}
	return earlier{}, nil
}

// reportEarlier ends an attempt whose stage does not begin.
func (e *Engine) reportEarlier(bg context.Context, r run.Record, found earlier, err error) error {
	if err == nil && found.set != nil {
		return e.reportStanding(bg, r, found.set)
	}
	if err == nil {
		e.p.Log.WithFields(logrus.Fields{"run": r.ID, "stage": r.Stage}).Info("an earlier attempt had finished the work; going on from it")
	}
	return e.report(bg, r, found.done, err)
}

// ends is when the run's time is over by this process's own clock, which goes on
// while Redis is away.
func (e *Engine) ends(bg context.Context, r run.Record) (time.Time, error) {
	ctx, stop := e.untilStopped(bg)
	defer stop()
	var now time.Time
	err := e.untilAnswer(ctx, r.ID, func(ctx context.Context) (err error) {
		now, err = e.p.Store.Time(ctx)
		return err
	})
	return e.p.Now().Add(e.p.Limits.deadline(r, now).Sub(now)), err
}

// runStage turns a panic of a stage into its error.
func runStage(ctx context.Context, s Stage, a *Attempt) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("stage %s panicked: %v; this is a bug, please report it: %s", s.Name(), p, debug.Stack())
		}
	}()
	return s.Run(ctx, a)
}

// pump reports progress and ends the attempt when the record, the worker, the
// clock or the staging say so.
func (e *Engine) pump(ctx context.Context, cancel context.CancelCauseFunc, a *Attempt, lock *dump.Lock) {
	tick := time.NewTicker(e.p.Pulse)
	defer tick.Stop()
	quiet := e.listen(a.Run.ID)
	var speed rate
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.stopCh:
			if !a.committed.Load() {
				cancel(errStopping)
			}
			return
		case <-tick.C:
		}
		now := e.p.Now()
		err := e.pulse(ctx, a, &speed, now)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil || a.committed.Load():
			quiet.answered(now)
		case isAnswer(err):
			cancel(err)
			return
		case quiet.tooLong(now, err):
			cancel(fmt.Errorf("%w: %w", errRedisAway, err))
			return
		}
		if lock != nil && !a.committed.Load() && !lock.Holds() {
			cancel(errLockLost)
			return
		}
		if now.After(a.ends) && !a.committed.Load() {
			cancel(errTimeout)
			return
		}
	}
}

func (e *Engine) pulse(ctx context.Context, a *Attempt, speed *rate, now time.Time) error {
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	done := a.counter.done.Load()
	var d, t *int64
	if total := a.counter.total.Load(); total > 0 {
		done = min(done, total)
		t = &total
	}
	if t != nil || done > 0 {
		d = &done
	}
	return e.p.Store.Progress(ctx, a.Run.ID, a.Hold, a.Run.Epoch, d, t, speed.add(now, done))
}

// report tells the record how the attempt ended and enqueues what comes next.
// While Redis is away it waits; what it cannot tell, it leaves in the staging.
func (e *Engine) report(bg context.Context, r run.Record, result string, err error) error {
	ctx, stop := e.untilStopped(bg)
	defer stop()
	told := e.untilAnswer(ctx, r.ID, func(ctx context.Context) error { return e.tell(ctx, r, result, err) })
	if !isAnswer(told) {
		if err != nil && !errors.Is(err, run.ErrFenced) && !errors.Is(err, run.ErrEpoch) {
			e.leaveEnd(r, err)
		}
		e.p.Log.WithField("run", r.ID).WithError(told).Warn("could not report the end of a stage; the next worker finds it in the staging")
		return told
	}
	return nil
}

// untilStopped gives a context that ends some seconds after the worker is told to
// stop: it has only a moment to wait for Redis.
func (e *Engine) untilStopped(bg context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(bg)
	go func() {
		select {
		case <-ctx.Done():
		case <-e.stopCh:
			if e.sleep(ctx, 5*time.Second) {
				cancel(errStopping)
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (e *Engine) tell(ctx context.Context, r run.Record, result string, err error) error {
	switch {
	case err == nil:
		return e.advance(ctx, r, result)
	case errors.Is(err, run.ErrCancel):
		return e.stopRun(ctx, r, run.Cancelled, "cancelled")
	case errors.Is(err, run.ErrFenced), errors.Is(err, run.ErrEpoch):
		e.ended(ctx) // what this attempt leaves is swept
		return nil
	case errors.Is(err, errTimeout):
		return e.stopRun(ctx, r, run.Failed, fmt.Sprintf("stage %s: the run took longer than alation.backup.chef_timeout (%s): raise it, or find out what was slow", r.Stage, e.p.Limits.of(r)))
	case errors.Is(err, errStopping), errors.Is(err, errRedisAway):
		return e.again(ctx, r, run.Retry{Kind: run.Interrupted, Error: e.text(err), Budget: e.p.Limits.Interruptions})
	}
	return e.again(ctx, r, e.erred(r, err))
}

// advance moves the record on. The last stage's staging goes first, since a run
// that has succeeded has left nothing but its set.
func (e *Engine) advance(ctx context.Context, r run.Record, result string) error {
	next := e.next(r.Stage)
	if next == "" {
		// However the attempt ended, a run has succeeded only if its set stands.
		m, err := e.stands(ctx, r)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			e.p.Log.WithFields(logrus.Fields{"run": r.ID, "error": e.text(err)}).Error("the last stage is done, but its set cannot be read; trying again")
			return e.again(ctx, r, e.erred(r, err))
		}
		if m == nil {
			return e.stopRun(ctx, r, run.Failed, fmt.Sprintf("the set %s is not in %s, though it was made: did something else remove it? run the backup again", r.Set, e.p.Dir.Dump))
		}
		e.tidy(ctx, r)
	}
	return e.proceed(ctx, r, next, result)
}

// tidy leaves nothing of the run but its set, and shows that.
func (e *Engine) tidy(ctx context.Context, r run.Record) {
	if _, err := e.p.Dir.Clean(ctx, r.ID, true); err != nil {
		e.p.Log.WithField("run", r.ID).WithError(err).Warn("the set is good, but staging stays; the sweeper will try again")
	}
	if e.p.Publish != nil {
		e.p.Publish(ctx)
	}
}

// proceed ends the stage well: next is to come, or with "" the run has succeeded.
func (e *Engine) proceed(ctx context.Context, r run.Record, next, result string) error {
	generation, err := e.p.Store.Advance(ctx, r, r.Stage, r.Hold(), next, result)
	if errors.Is(err, run.ErrCancel) {
		return e.stopRun(ctx, r, run.Cancelled, "cancelled")
	}
	if err != nil {
		return err
	}
	if next == "" {
		e.p.Log.WithFields(logrus.Fields{"run": r.ID, "set": r.Set}).Info("the run succeeded")
		e.ended(ctx)
		return nil
	}
	return e.enqueue(ctx, r, next, generation)
}

func (e *Engine) ended(ctx context.Context) {
	if e.p.Ended != nil {
		e.p.Ended(ctx)
	}
}
