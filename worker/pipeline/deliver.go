package pipeline

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus"
)

// early tells whether the task came before its time: asynq goes by the clock of
// whichever host enqueues it, and of whichever hands it out.
func (e *Engine) early(ctx context.Context, r run.Record) (bool, error) {
	if r.NotBefore == nil {
		return false, nil
	}
	now, err := e.p.Store.Time(ctx)
	return waits(r, now) > time.Second, err // asynq knows whole seconds
}

// misplaced sends a task to the node with the staging. One whose attempt there has
// begun is dropped: the node itself finds out whether that lives.
func (e *Engine) misplaced(ctx context.Context, r run.Record) error {
	if r.Claimed == r.Generation {
		return nil
	}
	return e.enqueueAnew(ctx, r)
}

// deliver takes the run's lock and does the stage.
func (e *Engine) deliver(ctx context.Context, r run.Record) error {
	lock, err := e.lock(ctx, r)
	if errors.Is(err, dump.ErrHeld) || errors.Is(err, errStopping) {
		return errBusy
	}
	if err != nil {
		return e.unlocked(ctx, r, err)
	}
	defer lock.Release()
	r, ok, err := e.claimAs(ctx, r, run.NewToken())
	if err != nil || !ok {
		return err
	}
	e.setLive(r.ID, true)
	defer e.setLive(r.ID, false)
	if r.Stage == run.Cleanup {
		return e.cleanup(ctx, r)
	}
	return e.attempt(ctx, r, lock)
}

// unlocked ends a try that could not take the lock for another reason than that
// somebody holds it. Where the generation is claimed its attempt may live; the
// reconciler finds out once the lock can be taken.
func (e *Engine) unlocked(ctx context.Context, r run.Record, err error) error {
	if r.Claimed == r.Generation {
		return errBusy
	}
	e.p.Log.WithFields(logrus.Fields{"run": r.ID, "stage": r.Stage, "error": e.text(err)}).Error("could not take the lock of the run; trying again")
	return e.again(ctx, r, e.erred(r, err))
}

// claimAs makes this worker's attempt, with the token, the holder of the stage; false: there is nothing
// to do. The caller holds the run's lock.
func (e *Engine) claimAs(bg context.Context, r run.Record, token string) (run.Record, bool, error) {
	ctx, stop := e.untilStopped(bg)
	defer stop()
	var c run.Claim
	err := e.untilAnswer(ctx, r.ID, func(ctx context.Context) (err error) {
		if c, err = e.p.Store.Claim(ctx, r.ID, r.Stage, r.Generation, e.p.Node, token, e.p.Limits.Timeout); err == nil {
			r, err = e.p.Store.Get(ctx, r.ID)
		}
		return err
	})
	if err != nil {
		return r, false, err
	}
	switch c.Kind {
	case "ok", "claimed":
		if r.Token == token { // also where the answer to the claim was lost, and it was asked again
			return r, true, nil
		}
		if c.Kind == "ok" {
			return r, false, nil
		}
		if dead, err := e.dead(ctx, r, 0); err != nil || !dead {
			return r, false, errors.Join(err, errBusy)
		}
		return r, false, e.crashed(ctx, r)
	case "cancel":
		return r, false, e.stopRun(ctx, r, run.Cancelled, "cancelled")
	case "elsewhere":
		return r, false, e.misplaced(ctx, r)
	}
	return r, false, e.leaveNothing(ctx, r.ID)
}

// dead tells whether the attempt that has the run is gone, to who has taken its lock.
// Where its staging is missing, the lock proves nothing: one that lives gives signs. quiet
// is how long the caller has seen none.
func (e *Engine) dead(ctx context.Context, r run.Record, quiet time.Duration) (bool, error) {
	_, err := soon(ctx, lockLook, func() (os.FileInfo, error) { return os.Lstat(e.p.Dir.RunDir(r.ID)) })
	if err == nil || errors.Is(err, errHangs) {
		return err == nil, hung(err, e.p.Dir.Temp)
	}
	now, err := e.p.Store.Time(ctx)
	return max(quiet, age(r.Updated, now)) >= goneGrace, err
}

// leaveNothing removes the staging that taking the lock has made again, if the run
// ended just before. The caller holds the lock.
func (e *Engine) leaveNothing(ctx context.Context, id string) error {
	r, err := e.p.Store.Get(ctx, id)
	if err != nil || !r.State.Over() {
		return nil // the next task of the run, or the sweeper, finds it
	}
	_, err = e.p.Dir.Clean(ctx, id, r.State == run.Succeeded)
	return err
}

// lock waits a moment: the reconciler takes the lock for an instant to see whether an attempt lives.
func (e *Engine) lock(bg context.Context, r run.Record) (*dump.Lock, error) {
	ctx, stop := e.untilStopped(bg)
	defer stop()
	lock := func() (*dump.Lock, error) { return e.p.Dir.Lock(r.ID, true) }
	if r.Stage == run.Cleanup { // makes nothing: the disk may be full
		lock = func() (*dump.Lock, error) { return e.p.Dir.LockToClean(r.ID) }
	}
	for deadline := e.p.Now().Add(time.Second); ; {
		l, err := take(ctx, e.diskLimit(), lock)
		if !errors.Is(err, dump.ErrHeld) || e.p.Now().After(deadline) {
			return l, hung(err, e.p.Dir.Temp)
		}
		if !e.sleep(ctx, 20*time.Millisecond) {
			return nil, err
		}
	}
}

// take takes a lock and does not wait for a disk that hangs: a lock that it gives later is
// given back.
func take(ctx context.Context, limit time.Duration, lock func() (*dump.Lock, error)) (*dump.Lock, error) {
	var mu sync.Mutex
	var got *dump.Lock
	over := false
	_, err := soon(ctx, limit, func() (struct{}, error) {
		l, err := lock()
		mu.Lock()
		defer mu.Unlock()
		if over && err == nil {
			l.Release()
		} else {
			got = l
		}
		return struct{}{}, err
	})
	mu.Lock()
	defer mu.Unlock()
	over = true
	if got != nil {
		return got, nil
	}
	return nil, err
}
