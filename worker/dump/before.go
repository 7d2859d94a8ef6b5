package dump

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// earlierTemp is the temp directory in which a run began, where the configuration names
// another since and the run has its staging there still. It may be nil.
type earlierTemp struct {
	d    *Directory
	lock *Lock
}

// before takes the run's lock in its earlier temp directory: an attempt may live there,
// and that is ErrHeld. Any other error says that the directory, whose disk may be dead and
// the reason why another is configured, cannot be looked at.
func (d *Directory) before(ctx context.Context, runID string) (*earlierTemp, error) {
	in, err := d.ReadIntent(runID)
	if err != nil {
		return nil, ignoring(err, fs.ErrNotExist)
	}
	if in.Temp == d.Temp || !filepath.IsAbs(in.Temp) {
		return nil, nil
	}
	was := *d
	was.Temp = filepath.Clean(in.Temp)
	ctx, stop := context.WithTimeout(ctx, cmp.Or(d.oneRead, oneReadLimit))
	defer stop()
	lock, err := readWithin(ctx, 0, was.RunDir(runID), func() (*Lock, error) {
		if sameDir(in.Temp, d.Temp) {
			return nil, nil
		}
		if _, err := os.Lstat(was.RunDir(runID)); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		lock, err := was.LockToClean(runID)
		if err == nil && ctx.Err() != nil { // nobody waits any more
			lock.Release()
		}
		return lock, err
	})
	if err != nil {
		return nil, fmt.Errorf("lock %s, which was alation.backup.data_temp_dir when the run began: %w; where it is another run's, or its disk is gone for good, remove by hand first it, if it is there, and then %s",
			was.RunDir(runID), err, d.intentPath(runID))
	}
	if lock == nil {
		return nil, nil
	}
	return &earlierTemp{&was, lock}, nil
}

func sameDir(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

func (e *earlierTemp) release() {
	if e != nil {
		e.lock.Release()
	}
}

func (e *earlierTemp) endLeftovers(ctx context.Context, runID string) error {
	if e == nil {
		return nil
	}
	return e.d.EndLeftovers(ctx, runID)
}

func (e *earlierTemp) removeRunDir(runID string) error {
	if e == nil {
		return nil
	}
	return e.d.removeRunDir(runID, true)
}
