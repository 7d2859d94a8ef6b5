package pipeline

import (
	"context"
	"errors"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus"
)

// standing finds the set of a run whose record is at a stage before the one that makes it:
// a Redis that went back knows nothing of it, and the run must not make a second one. The
// caller holds the run's lock.
func (e *Engine) standing(r run.Record) (*set.Manifest, error) {
	if e.next(r.Stage) == "" {
		return nil, nil // the last stage looks itself
	}
	id := set.ID(r.Set)
	m, err := e.p.Dir.Standing(r.ID, id)
	if _, bad := set.ParseID(string(id)); bad != nil && !errors.Is(err, dump.ErrUnread) {
		return m, nil // nothing is reserved, as far as is known: the first stage says what is wrong with the directory
	}
	return m, err
}

// reportStanding ends a run whose set stands already, or tries again where that is not known.
func (e *Engine) reportStanding(bg context.Context, r run.Record, m *set.Manifest, err error) error {
	if err != nil {
		return e.report(bg, r, "", err)
	}
	ctx, stop := e.untilStopped(bg)
	defer stop()
	e.p.Log.WithFields(logrus.Fields{"run": r.ID, "stage": r.Stage, "set": m.Set}).Warn("the run's set stands already, though its record does not know: did Redis go back to an earlier state? The run ends")
	r.Set = m.Set
	err = e.untilAnswer(ctx, r.ID, func(ctx context.Context) error {
		if err := e.p.Store.Note(ctx, r.ID, r.Hold(), SetFacts(e.p.Dir, m)); err != nil {
			return err
		}
		e.tidy(ctx, r)
		return e.proceed(ctx, r, "", "")
	})
	if isAnswer(err) {
		return nil
	}
	return err
}
