package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"catalog-backup/shared/run"

	"golang.org/x/sys/unix"
)

// ErrHeld means that a live attempt holds the lock of the run.
var ErrHeld = errors.New("a live attempt holds the staging of the run")

// Lock is the lock of a run: a flock on <temp>/.<run>.lock. Who can take it has proved
// that no attempt of the run lives. It is a regular file opened for writing, since over
// NFS only that is locked at the server, and lies beside the run's directory, since NFS
// keeps an open file that is removed, under another name, in its directory.
//
// The flock on the directory <temp>/<run> is held as well: workers before 0.1.0 was
// released know no other. It can go in the release after.
type Lock struct {
	run   string
	temp  string
	files []*os.File // the lock file, then the directory; either may be missing to clean
	mu    sync.Mutex
	look  *look
}

// purpose is what a lock is taken for.
type purpose int

const (
	toWork  purpose = iota // both locks; what is missing is made
	toLook                 // whatever is there of the run
	toClean                // as toLook, also where there is nothing
)

// Lock takes the lock without waiting. With create the run's directory is made where
// it is missing; without, a run that has nothing there gives fs.ErrNotExist.
func (d *Directory) Lock(runID string, create bool) (*Lock, error) {
	if create {
		return d.lock(runID, toWork)
	}
	return d.lock(runID, toLook)
}

// LockToClean takes the lock of whatever the run has there, to remove it. It needs no
// byte on the disk: a lock file that is not there and cannot be made has no holder.
func (d *Directory) LockToClean(runID string) (*Lock, error) { return d.lock(runID, toClean) }

func (d *Directory) lock(runID string, why purpose) (*Lock, error) {
	if !run.ValidID(runID) {
		return nil, fmt.Errorf("lock the staging of a run: %q is no run id", runID)
	}
	for range 10 {
		l := &Lock{run: runID, temp: d.Temp}
		err := d.take(l, why)
		if err == nil {
			return l, nil
		}
		l.close()
		if !errors.Is(err, errReplaced) {
			return nil, lockError(err, runID, d.Temp, why)
		}
	}
	return nil, ErrHeld
}

func lockError(err error, runID, temp string, why purpose) error {
	switch {
	case why == toWork && errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("lock the staging of run %s: %s (alation.backup.data_temp_dir) is not there; create it, owned by the worker's user", runID, temp)
	case errors.Is(err, ErrHeld), errors.Is(err, fs.ErrNotExist), errors.Is(err, errMarker):
		return err
	case errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("lock the staging of run %s: %w: the file system of %s (alation.backup.data_temp_dir) takes no lock now; if it never does, name a directory on one that has flock", runID, err, temp)
	}
	return permanentIfFull(fmt.Errorf("lock the staging of run %s: %w", runID, err))
}

var errMarker = errors.New("its marker does not say that it is the run's")

// makeRunDir makes the run's directory with its marker, where either is not there. A
// marker that cannot be read may say that the directory is another's.
func (d *Directory) makeRunDir(runID string) error {
	path := d.RunDir(runID)
	o, err := readOwner(path)
	switch {
	case err == nil && o.Run == runID:
		return nil
	case err == nil:
		err = fmt.Errorf("its marker names run %s", o.Run)
	case errors.Is(err, fs.ErrNotExist):
		return d.ownedDir(path, runID, 0)
	}
	return fmt.Errorf("use %s as the staging of run %s: %w (%w); if nothing of this program uses it, move it away", path, runID, errMarker, err)
}

// take takes the lock file first, always, and makes the directory under its lock: who
// removes one does that under it too.
func (d *Directory) take(l *Lock, why purpose) error {
	path := d.RunDir(l.run)
	if _, gone := os.Lstat(path); why == toLook && errors.Is(gone, fs.ErrNotExist) {
		if _, gone := os.Lstat(lockPath(l.temp, l.run)); errors.Is(gone, fs.ErrNotExist) {
			return gone
		}
	}
	f, err := takeFlock(lockPath(l.temp, l.run), unix.O_RDWR|unix.O_CREAT)
	switch {
	case err == nil:
		l.files = append(l.files, f)
	case why == toWork, !l.noFile(err):
		return err
	}
	if why == toWork {
		if err := d.makeRunDir(l.run); err != nil {
			return err
		}
	}
	dir, err := takeFlock(path, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case err == nil:
		l.files = append(l.files, dir)
	case why == toWork && errors.Is(err, fs.ErrNotExist):
		return errReplaced // by a worker of before, which has only the lock on the directory
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR) && why == toClean:
	default:
		return err
	}
	return nil
}

// noFile tells that the lock file could not be taken since it is not there and cannot
// be made: no room, or no temp directory. Then nobody holds it.
func (l *Lock) noFile(err error) bool {
	if errors.Is(err, ErrHeld) || errors.Is(err, errReplaced) {
		return false
	}
	_, gone := os.Lstat(lockPath(l.temp, l.run))
	return errors.Is(gone, fs.ErrNotExist)
}

const lockSuffix = ".lock"

func lockPath(temp, runID string) string { return filepath.Join(temp, "."+runID+lockSuffix) }

// lockRun is the run of a lock file of that name.
func lockRun(name string) (string, bool) {
	r, ok := strings.CutSuffix(strings.TrimPrefix(name, "."), lockSuffix)
	return r, ok && strings.HasPrefix(name, ".") && run.ValidID(r)
}

// look is one look at the lock, which a file system that hangs does not answer.
type look struct {
	begun  time.Time
	answer chan bool
}

const (
	// lookWait is how long Holds waits for the file system.
	lookWait = 200 * time.Millisecond
	// lookLimit is for how long a file system may not answer before the lock counts as lost.
	lookLimit = 30 * time.Second
)

// Holds tells whether the lock is still ours: its files are the ones at their paths,
// and the file system says so (a lease that NFS lost is EIO, or another's lock). It
// does not wait for a file system that hangs: the last answer holds for lookLimit.
func (l *Lock) Holds() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.look == nil {
		l.look = &look{begun: time.Now(), answer: make(chan bool, 1)}
		go func(answer chan<- bool) { answer <- l.stillHeld() }(l.look.answer)
	}
	select {
	case ok := <-l.look.answer:
		l.look = nil
		return ok
	case <-time.After(lookWait):
		return time.Since(l.look.begun) < lookLimit
	}
}

func (l *Lock) stillHeld() bool {
	for _, f := range l.files {
		if flockAgain(f) != nil {
			return false
		}
	}
	return true
}

// Release gives the lock back. Where nothing of the run is left in the temp directory,
// the lock file goes too. It does not wait for a file system that hangs.
func (l *Lock) Release() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		removeLone(l)
		l.close()
	}()
	select {
	case <-done:
	case <-time.After(lookLimit):
	}
}

func (l *Lock) close() {
	for _, f := range l.files {
		_ = f.Close()
	}
}

// removeLone removes the lock file of a run that has no directory. Whoever waits for
// the removed file finds that it is not the one at the path.
func removeLone(l *Lock) {
	if _, err := os.Lstat(filepath.Join(l.temp, l.run)); !errors.Is(err, fs.ErrNotExist) || len(l.files) == 0 {
		return
	}
	if f := l.files[0]; f.Name() == lockPath(l.temp, l.run) && flockAgain(f) == nil {
		_ = os.Remove(f.Name())
	}
}

// RemoveLoneLocks removes lock files that protect nothing: no run's directory is beside
// them and nobody holds them. A kill right before Release leaves one, and so does a
// temp directory that somebody emptied.
func (d *Directory) RemoveLoneLocks() error {
	entries, err := os.ReadDir(d.Temp)
	if err != nil {
		return fmt.Errorf("look for locks that runs left: %w", err)
	}
	for _, e := range entries {
		r, ok := lockRun(e.Name())
		if _, err := os.Lstat(d.RunDir(r)); !ok || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if f, err := takeFlock(lockPath(d.Temp, r), unix.O_RDWR); err == nil {
			l := &Lock{run: r, temp: d.Temp, files: []*os.File{f}}
			l.Release()
		}
	}
	return nil
}
