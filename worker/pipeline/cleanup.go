package pipeline

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/sirupsen/logrus"
)

// cleanup restores the state before the run and ends it. It is claimed like any
// stage, so that it runs under the lock, fenced, and counts once.
func (e *Engine) cleanup(ctx context.Context, r run.Record) error {
	stands, err := e.p.Dir.Clean(ctx, r.ID, false)
	if err != nil {
		e.p.Log.WithField("run", r.ID).WithError(err).Error("cleanup ends badly")
		return e.report(ctx, r, "", err)
	}
	ctx, stop := e.untilStopped(ctx)
	defer stop()
	err = e.untilAnswer(ctx, func(ctx context.Context) error { return e.p.Store.Cleaned(ctx, r, r.Fence, stands) })
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
