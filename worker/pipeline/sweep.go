package pipeline

import (
	"context"
	"errors"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"
)

// Sweep removes what runs left that are not open any more: after Redis was lost,
// after a node came back. A commit that was cut short is finished if its run has
// no record that says it failed.
func Sweep(ctx context.Context, store *run.Store, d *dump.Directory, instance string) error {
	left, err := d.Leftovers() // with an error: what could be read goes on
	errs := []error{err, d.RemoveLoneLocks()}
	for _, id := range left {
		errs = append(errs, sweepRun(ctx, store, d, instance, id))
	}
	if ctx.Err() == nil {
		errs = append(errs, d.RemoveDebris())
	}
	return errors.Join(errs...)
}

// sweepRunLimit bounds one run, whose processes may not end, so that it does not keep
// the next ones. Removing needs no time limit.
const sweepRunLimit = 20 * time.Second

func sweepRun(ctx context.Context, store *run.Store, d *dump.Directory, instance, id string) error {
	ctx, stop := context.WithTimeout(ctx, sweepRunLimit)
	defer stop()
	r, err := store.Get(ctx, id)
	known := err == nil
	if err != nil && !errors.Is(err, run.ErrNotFound) {
		return err // Redis is away: nothing is known
	}
	if known && !r.State.Over() {
		return reopen(ctx, store, instance, r)
	}
	lock, err := d.LockToClean(id)
	if errors.Is(err, dump.ErrHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	_, err = d.Clean(ctx, id, !known || r.State == run.Succeeded)
	return err
}

// reopen makes an open run known again whose instance has lost it, so that it comes to
// an end. Where another run was begun meanwhile, it ends at once: two never work.
func reopen(ctx context.Context, store *run.Store, instance string, r run.Record) error {
	if r.Instance != instance {
		return nil // of another instance, whose workers see to it; or the field is damaged
	}
	beside, err := store.Reopen(ctx, r)
	if err == nil && beside != "" {
		_, err = store.Stop(ctx, r, 0, run.Failed, "Redis lost the keys that told of this run, and run "+beside+" was begun meanwhile", false)
	}
	return err
}
