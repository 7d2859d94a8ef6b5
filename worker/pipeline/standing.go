package pipeline

import (
	"context"
	"errors"
	"io/fs"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/sirupsen/logrus"
)

// standing finds the set of a run whose record is at a stage before the one that makes it:
// a Redis that went back knows nothing of it, and the run must not make a second one. The
// caller holds the run's lock.
func (e *Engine) standing(r run.Record) (*set.Manifest, error) {
	if e.next(r.Stage) == "" {
		return nil, nil // the last stage looks itself
	}
	m, err := e.p.Dir.Standing(r.ID, set.ID(r.Set))
	if at := (*fs.PathError)(nil); r.Set == "" && errors.As(err, &at) && at.Path == e.p.Dir.Dump {
		return nil, nil // the first stage says what is wrong with the directory
	}
	return m, err
}

// stands finds the set of a run that is about to end. It does not wait long for the disk.
func (e *Engine) stands(bg context.Context, r run.Record) (*set.Manifest, error) {
	ctx, stop := e.untilStopped(bg)
	defer stop()
	m, err := soon(ctx, e.diskLimit(), func() (*set.Manifest, error) { return e.p.Dir.Standing(r.ID, set.ID(r.Set)) })
	return m, hung(err, e.p.Dir.Dump)
}

// reportStanding ends a run whose set stands already.
func (e *Engine) reportStanding(bg context.Context, r run.Record, m *set.Manifest) error {
	ctx, stop := e.untilStopped(bg)
	defer stop()
	e.p.Log.WithFields(logrus.Fields{"run": r.ID, "stage": r.Stage, "set": m.Set}).Warn("the run's set stands already, though its record does not know: did Redis go back to an earlier state? The run ends")
	r.Set = m.Set
	err := e.untilAnswer(ctx, r.ID, func(ctx context.Context) error {
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
