package pipeline

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus"
)

// cleanup restores the state before the run and ends it. It is claimed like any
// stage, so that it runs under the lock, fenced, and counts once.
func (e *Engine) cleanup(ctx context.Context, r run.Record) error {
	_, err := e.p.Dir.Clean(ctx, r.ID, false)
	if err != nil {
		e.p.Log.WithField("run", r.ID).WithError(err).Error("cleanup ends badly")
		return e.report(ctx, r, "", err)
	}
	m, err := e.p.Dir.Standing(r.ID, set.ID(r.Set))
	if err != nil {
		e.p.Log.WithField("run", r.ID).WithError(err).Error("cleanup ends badly")
		return e.report(ctx, r, "", err)
	}
	ctx, stop := e.untilStopped(ctx)
	defer stop()
	stands := m != nil
	err = e.untilAnswer(ctx, func(ctx context.Context) error {
		if stands {
			if err := e.p.Store.Note(ctx, r.ID, r.Hold(), SetFacts(e.p.Dir, m)); err != nil {
				return err
			}
		}
		return e.p.Store.Cleaned(ctx, r, r.Hold(), stands)
	})
	if err != nil {
		return err
	}
	if stands {
		e.p.Log.WithFields(logrus.Fields{"run": r.ID, "set": r.Set}).Info("the cleanup found the set complete: the run succeeded")
		e.ended(ctx)
		return nil
	}
	e.p.Log.WithFields(logrus.Fields{"run": r.ID, "ending": r.Ending, "error": r.Error}).Warn("the run did not make a set; its staging is gone")
	e.ended(ctx)
	return nil
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

const endName = "end.json"

func writeEnd(dir string, v end) {
	if b, err := json.Marshal(v); err == nil {
		_ = set.WriteFile(filepath.Join(dir, endName), b)
	}
}

func readEnd(dir string) (end, error) {
	var v end
	b, err := os.ReadFile(filepath.Join(dir, endName))
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal(b, &v)
}
