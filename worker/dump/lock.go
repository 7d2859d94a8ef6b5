package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"catalog-backup/shared/run"

	"golang.org/x/sys/unix"
)

// ErrHeld means that a live attempt holds the lock on the run's staging.
var ErrHeld = errors.New("a live attempt holds the staging of the run")

// Lock is the flock on a run's staging directory. Who can take it has proved
// that no attempt of the run lives.
type Lock struct{ dir *os.File }

// Lock takes the lock without waiting. With create the directory is made where
// it is missing; without, a missing one gives fs.ErrNotExist.
func (d *Directory) Lock(runID string, create bool) (*Lock, error) {
	if !run.ValidID(runID) {
		return nil, fmt.Errorf("lock staging: %q is no run id", runID)
	}
	path := d.RunDir(runID)
	for range 10 {
		if create {
			if _, err := readOwner(path); err != nil {
				if err := d.ownedDir(path, runID, 0); errors.Is(err, fs.ErrNotExist) {
					return nil, fmt.Errorf("make the staging directory %s: %s (alation.backup.data_temp_dir) is not there; create it, owned by the worker's user", path, d.Temp)
				} else if err != nil {
					return nil, permanentIfFull(fmt.Errorf("make the staging directory of run %s: %w", runID, err))
				}
			}
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, ErrHeld
			}
			return nil, fmt.Errorf("lock the staging of run %s: %w", runID, err)
		}
		l := &Lock{dir: f}
		if l.Holds() { // it was not removed and made again between open and flock
			return l, nil
		}
		f.Close()
	}
	return nil, ErrHeld
}

// LockToClean takes the lock of whatever the run has there, to remove it, and makes
// nothing. Where there is nothing to lock, nobody can hold it: the Lock is empty then.
func (d *Directory) LockToClean(runID string) (*Lock, error) {
	l, err := d.Lock(runID, false)
	if errors.Is(err, fs.ErrNotExist) {
		return &Lock{}, nil
	}
	return l, err
}

// Holds tells whether the locked directory is still the one at its path.
func (l *Lock) Holds() bool {
	if l.dir == nil {
		return true
	}
	var a, b unix.Stat_t
	return unix.Fstat(int(l.dir.Fd()), &a) == nil && unix.Lstat(l.dir.Name(), &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// Release gives the lock back.
func (l *Lock) Release() {
	if l.dir != nil {
		_ = l.dir.Close()
	}
}
