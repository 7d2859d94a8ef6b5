package pipeline

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"catalog-backup/worker/dump"
)

// What workers of the tests do that good ones do not, told by files.

func (o workerOptions) told(name string) bool {
	_, err := os.Stat(filepath.Join(o.Control, name))
	return err == nil
}

// endLeftover is called for each attempt's staging by the cleanup.
func (o workerOptions) endLeftover(context.Context, string) error {
	for o.told("hang-cleanup") {
		time.Sleep(5 * time.Millisecond)
	}
	if o.told("fail-cleanup") {
		return errors.New("an intent that cannot be read")
	}
	return nil
}

// holds waits, whatever its context says, right behind the first answer: a worker that
// was frozen there.
func (o workerOptions) holds(ctx context.Context, a *Attempt) error {
	err := a.Holds(ctx, true)
	if o.told("hold-commit") {
		_ = os.WriteFile(filepath.Join(o.Control, "in-commit"), nil, 0o600)
	}
	for o.told("hold-commit") {
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

func (g *ground) directory() *dump.Directory {
	return &dump.Directory{Dump: g.opts.Dump, Temp: g.opts.Temp, Instance: g.opts.Instance, Node: g.opts.Node}
}
