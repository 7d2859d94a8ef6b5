package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"catalog-backup/shared/health"
)

// turnLimit is how long a loop may take for one round. With a Redis that swallows
// everything it takes half a minute a call; what is slower than this hangs.
const turnLimit = 3 * time.Minute

// Alive tells whether the worker's loops go round. A Redis that is away does not stop
// them: an attempt works on meanwhile, and must not be ended for it.
func (w *Worker) Alive(ctx context.Context) error {
	if w.stopping.Load() {
		return nil // the loops end one after the other
	}
	for _, c := range []health.Check{w.reconcile.beat.Check("reconciler", turnLimit), w.signing.Check("signs of life", turnLimit)} {
		if err := c.Do(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	return nil
}

// SignedIn tells whether Redis shows this worker as live. Since a sign is a write, it
// does not where Redis refuses those.
func (w *Worker) SignedIn(ctx context.Context) error {
	if w.stopping.Load() {
		return errors.New("the worker is stopping")
	}
	in, err := w.p.Store.SignedIn(ctx, w.p.Instance, w.who.ID)
	if err == nil && !in {
		err = fmt.Errorf("Redis does not show worker %s: it was away, or it refuses writes; the worker signs in every %s, see its log", w.who.ID, signInterval)
	}
	return err
}
