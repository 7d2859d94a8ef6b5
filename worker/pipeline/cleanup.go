package pipeline

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus"
)

// cleanup restores the state before the run and ends it. It is claimed like any
// stage, so that it runs under the lock, fenced, and counts once.
func (e *Engine) cleanup(ctx context.Context, r run.Record) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go e.signs(ctx, cancel, r)
	_, err := e.p.Dir.Clean(ctx, r.ID, false)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	var m *set.Manifest
	if err == nil {
		m, err = e.stands(ctx, r)
	}
	if err != nil {
		e.p.Log.WithField("run", r.ID).WithError(err).Error("cleanup ends badly")
		return e.report(ctx, r, "", err)
	}
	ctx, stop := e.untilStopped(ctx)
	defer stop()
	stands := m != nil
	err = e.untilAnswer(ctx, r.ID, func(ctx context.Context) error {
		if stands {
			if err := e.p.Store.Note(ctx, r.ID, r.Hold(), SetFacts(e.p.Dir, m)); err != nil {
				return err
			}
		}
		return e.p.Store.Cleaned(ctx, r, r.Hold(), stands)
	})
	if errors.Is(err, run.ErrFenced) {
		return nil // the run was closed without it; the sweeper looks once more
	}
	if err != nil {
		return err
	}
	if stands {
		e.p.Log.WithFields(logrus.Fields{"run": r.ID, "set": r.Set}).Info("the cleanup found the set complete: the run succeeded")
	} else {
		e.p.Log.WithFields(logrus.Fields{"run": r.ID, "ending": r.Ending, "error": r.Error}).Warn("the run did not make a set; its staging is gone")
	}
	e.ended(ctx)
	return nil
}

// signs shows that a cleanup lives, which has no progress, and ends it when the run
// was closed without it.
func (e *Engine) signs(ctx context.Context, cancel context.CancelCauseFunc, r run.Record) {
	for e.sleep(ctx, time.Second) {
		err := e.p.Store.Progress(ctx, r.ID, r.Hold(), r.Epoch, nil, nil, nil)
		if err != nil && isAnswer(err) {
			cancel(err)
		}
	}
}

// SetFacts are what a run's record says of its set.
func SetFacts(d *dump.Directory, m *set.Manifest) run.Facts {
	f := run.Facts{Set: m.Set, Manifest: filepath.Join(d.Dump, set.ID(m.Set).ManifestName()), Archives: []string{},
		Warnings: append([]string{}, m.Warnings...), Notes: append([]string{}, m.Notes...)}
	for _, x := range m.Archives {
		f.Archives = append(f.Archives, filepath.Join(d.Dump, x.Name))
	}
	return f
}
