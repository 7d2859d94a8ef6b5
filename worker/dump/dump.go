// Package dump keeps the dump and temp directories of one node: it reserves set
// ids, writes the intent before anything else is made there, commits a set by
// renames with the manifest last, and removes what a run left. It touches only
// what an intent or an owner marker proves to be ours; all else is foreign.
package dump

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"catalog-backup/worker/stage"

	"golang.org/x/sys/unix"
)

// Directory is the pair of directories of one node, for one instance.
type Directory struct {
	Dump     string // sets, and the Postgres staging
	Temp     string // other staging
	Instance string
	Node     string
	// EndLeftover ends the processes that a pid file in a dead attempt's staging
	// names; nil where no child processes are ever started.
	EndLeftover func(ctx context.Context, pidFile string) error
	// Now tells what is old enough to be debris; nil: the file systems' own time.
	Now func() time.Time
	// Hashing remembers what was begun; nil: each look begins anew.
	Hashing *Hashing
	// oneRead bounds the reading of one file under the dump lock; 0: oneReadLimit.
	oneRead time.Duration
}

// Check makes sure that both directories are there and can be written, and that
// nothing foreign where the staging is to be stands in the way of the run.
func (d *Directory) Check(runID string) error {
	for key, dir := range map[string]string{"alation.backup.data_dump_dir": d.Dump, "alation.backup.data_temp_dir": d.Temp} {
		if err := checkDir(key, dir); err != nil {
			return err
		}
	}
	for _, s := range d.stagings() {
		if err := s.mayUse(runID); err != nil {
			return err
		}
	}
	return nil
}

func checkDir(key, dir string) error {
	fi, err := os.Stat(dir)
	if err == nil && !fi.IsDir() {
		return stage.Permanentf("check the directory %s (%s): it is no directory; name another", dir, key)
	}
	var f *os.File
	if err == nil {
		f, err = os.CreateTemp(dir, ".catalog-backup-check.*")
	}
	if err == nil {
		f.Close()
		err = os.Remove(f.Name())
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return stage.Permanentf("check the directory %s (%s): %w; create it, owned by the worker's user", dir, key, reason(err))
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return stage.Permanentf("check the directory %s (%s): it cannot be written: %w; give it to the worker's user", dir, key, reason(err))
	}
	return permanentIfFull(fmt.Errorf("check the directory %s (%s): %w", dir, key, err))
}

func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func permanentIfFull(err error) error {
	if stage.IsFull(err) {
		return stage.Permanentf("%w; free space there, then start the backup again", err)
	}
	return err
}
