package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// WorkerLock is what a worker holds for its life in the temp and in the dump directory,
// so that another worker of its node can prove that it sees its locks: a flock on
// .catalog-backup-worker.<instance>.<id>.lock. It may lack either where that directory
// is missing or full.
type WorkerLock struct {
	paths [2]string // temp, dump
	files [2]*os.File
}

const workerLockPrefix = ".catalog-backup-worker."

var workerRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,127}$`)

// NewWorkerLock is that of the worker with this id; Renew takes it.
func (d *Directory) NewWorkerLock(id string) (*WorkerLock, error) {
	paths, err := d.workerLockPaths(id)
	return &WorkerLock{paths: paths}, err
}

func (d *Directory) workerLockPaths(id string) (paths [2]string, err error) {
	if !workerRE.MatchString(id) || !workerRE.MatchString(d.Instance) {
		return paths, fmt.Errorf("name the lock of worker %q of instance %q: names are of a-z, 0-9, - and _", id, d.Instance)
	}
	name := workerLockPrefix + d.Instance + "." + id + lockSuffix
	return [2]string{filepath.Join(d.Temp, name), filepath.Join(d.Dump, name)}, nil
}

// Renew takes what is missing: at first, and where a file was removed since.
func (l *WorkerLock) Renew() error {
	var errs []error
	for i, path := range l.paths {
		if l.files[i] != nil && flockAgain(l.files[i]) == nil {
			continue
		}
		if l.files[i] != nil {
			_ = l.files[i].Close()
		}
		var err error
		for range 10 {
			if l.files[i], err = takeFlock(path, unix.O_RDWR|unix.O_CREAT); !errors.Is(err, errReplaced) {
				break
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("hold the worker's lock %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// Files are the lock files as "device:inode" of this kernel, "" for one that is missing.
func (l *WorkerLock) Files() (temp, dump string) {
	return fileID(l.files[0]), fileID(l.files[1])
}

func fileID(f *os.File) string {
	if f == nil {
		return ""
	}
	fi, err := f.Stat()
	if err != nil {
		return ""
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// Release gives the lock back, and removes its files if remove is set.
func (l *WorkerLock) Release(remove bool) {
	for i, f := range l.files {
		if f == nil {
			continue
		}
		if remove && flockAgain(f) == nil {
			_ = os.Remove(f.Name())
		}
		_ = f.Close()
		l.files[i] = nil
	}
}

// Sight is what this host sees of a worker's lock in one directory.
type Sight struct {
	Path string
	File string // as WorkerLock.Files; "" if it is not there
	Held bool
	Err  error // it cannot be told
}

// SeeWorker looks at the lock of another worker, in the temp and in the dump directory.
func (d *Directory) SeeWorker(id string) (temp, dump Sight) {
	paths, err := d.workerLockPaths(id)
	if err != nil {
		return Sight{Err: err}, Sight{Err: err}
	}
	return seeLock(paths[0]), seeLock(paths[1])
}

// seeLock takes the lock shared, so that two who look do not take each other for its holder.
func seeLock(path string) Sight {
	s := Sight{Path: path}
	f, err := os.OpenFile(path, unix.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	if err != nil {
		s.Err = err
		return s
	}
	defer f.Close()
	s.File = fileID(f)
	err = flock(f, unix.LOCK_SH|unix.LOCK_NB)
	if s.Held = errors.Is(err, ErrHeld); !s.Held {
		s.Err = err
	}
	return s
}

// RemoveWorkerLocks removes the locks that workers of the instance left which are not
// live and hold them no more.
func (d *Directory) RemoveWorkerLocks(live map[string]bool) error {
	var errs []error
	for _, dir := range []string{d.Temp, d.Dump} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("look for locks that workers left: %w", err))
			continue
		}
		for _, e := range entries {
			id, ours := strings.CutPrefix(e.Name(), workerLockPrefix+d.Instance+".")
			id, isLock := strings.CutSuffix(id, lockSuffix)
			if !ours || !isLock || live[id] || !workerRE.MatchString(id) {
				continue
			}
			f, err := takeFlock(filepath.Join(dir, e.Name()), unix.O_RDWR)
			if err != nil {
				continue // held, or gone meanwhile
			}
			errs = append(errs, os.Remove(f.Name()))
			_ = f.Close()
		}
	}
	return errors.Join(errs...)
}
