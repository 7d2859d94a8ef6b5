package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/stage"
)

// debrisAge is how old something must be that is of no run that could be asked for:
// what is made of that kind is used up within seconds.
const debrisAge = time.Hour

const runRE = `[0-9]{8}t[0-9]{6}z-[a-z2-7]{8}`

// debrisRE are files that are there for moments: checks of the directories, and what
// set.WriteFile makes of intents and proofs, and the locks of proofs.
var debrisRE = regexp.MustCompile(`^\.catalog-backup-check\.[0-9]+$|` +
	`^\.\.` + runRE + `\.intent\.[0-9]+\.new$|` +
	`^\.[0-9]{12}_[0-9A-Za-z-]+_alation_backup\.proof\.json\.(?:[0-9]+\.new|lock)$`)

// earlierFreshRE are directories in which earlier versions made the Postgres staging.
var earlierFreshRE = regexp.MustCompile(`^\.pgbackrest\.` + runRE + `\.[0-9]+\.new$`)

// RemoveDebris removes what kills left that no run's clean-up would find.
func (d *Directory) RemoveDebris() error {
	dump, temp := d.clock(d.Dump), d.clock(d.Temp)
	errs := []error{
		eachOld(d.Dump, dump, func(name string, isDir bool) removal {
			if isDir && earlierFreshRE.MatchString(name) {
				return d.removeFresh
			}
			if r := takenRE.FindStringSubmatch(name); r != nil && !isDir {
				return func(path string) error { return d.removeTaken(path, r[1]) }
			}
			return debrisFile(name, isDir)
		}),
		eachOld(d.Temp, temp, func(name string, isDir bool) removal {
			if isDir && run.ValidID(name) {
				return func(path string) error { return ignoring(unlessMarked(path), errInUse) }
			}
			return debrisFile(name, isDir)
		}),
	}
	for _, s := range d.stagings() {
		errs = append(errs, s.removeDebris(dump))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove old debris: %w", err)
	}
	return nil
}

// removal removes what is at path, if it is what its name says.
type removal func(path string) error

func debrisFile(name string, isDir bool) removal {
	if isDir || !debrisRE.MatchString(name) {
		return nil
	}
	return os.Remove
}

// removeDebris removes the directories of attempts that were killed before they had a
// marker, and the parent if it is empty.
func (s staging) removeDebris(now clock) error {
	in, err := s.look()
	if err != nil || in.foreign || in.earlier != nil {
		return err
	}
	err = eachOld(s.path(), now, func(name string, isDir bool) removal {
		if _, ok := childOf(name); ok && isDir {
			return unlessMarked
		}
		return nil
	})
	old, oerr := isOld(s.path(), now)
	if oerr == nil && old {
		oerr = s.rmdir()
	}
	return errors.Join(err, ignoring(oerr, fs.ErrNotExist))
}

// eachOld removes what lies in dir for longer than debrisAge and is debris by its name.
func eachOld(dir string, now clock, kind func(name string, isDir bool) removal) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoring(err, fs.ErrNotExist)
	}
	var errs []error
	for _, e := range entries {
		remove := kind(e.Name(), e.IsDir())
		if remove == nil {
			continue
		}
		path := filepath.Join(dir, e.Name())
		old, err := isOld(path, now)
		if err == nil && old {
			err = remove(path)
		}
		errs = append(errs, ignoring(err, fs.ErrNotExist))
	}
	return errors.Join(errs...)
}

func isOld(path string, now clock) (bool, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	at, err := now()
	if stage.IsFull(err) {
		return false, nil // as little room as it takes, it waits for some
	}
	return err == nil && at.Sub(fi.ModTime()) > debrisAge, err
}

// clock tells the time. It is asked only where something may be old, and answers once.
type clock func() (time.Time, error)

func (d *Directory) clock(dir string) clock {
	return sync.OnceValues(func() (time.Time, error) { return d.timeAt(dir) })
}

// timeAt asks the file system of a directory what time it is: a host whose clock is ahead
// of its file server's would take for old what was made just now.
func (d *Directory) timeAt(dir string) (time.Time, error) {
	if d.Now != nil {
		return d.Now(), nil
	}
	f, err := os.CreateTemp(dir, ".catalog-backup-check.*")
	if err != nil {
		return time.Time{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}

// unlessMarked removes a directory that certainly has no marker, and nothing in it.
func unlessMarked(path string) error {
	if _, err := readOwner(path); !errors.Is(err, fs.ErrNotExist) {
		return ignoring(err, errNotOurs)
	}
	return removeUnmarked(path)
}

func (d *Directory) removeFresh(path string) error {
	o, err := readOwner(path)
	if err == nil && d.ours(o) {
		return removeOwned(path)
	}
	return ignoring(unlessMarked(path), errInUse)
}

// removeTaken removes what sealed a commit (seal) if its run has no intent any more.
func (d *Directory) removeTaken(path, runID string) error {
	if _, err := os.Lstat(d.intentPath(runID)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(path)
}
