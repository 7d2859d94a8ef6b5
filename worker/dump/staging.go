package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"

	"golang.org/x/sys/unix"
)

// postgresName is the directory of the dump directory in which runs stage PostgreSQL's part.
const postgresName = "pgbackrest"

// stagings are all such directories.
func (d *Directory) stagings() []staging { return []staging{{d, postgresName}} }

// staging is a directory of the dump directory in which each attempt has a directory of
// its own, <name>/<run>.<hold>, with an owner marker: what an attempt writes is on no
// path that another attempt or run ever uses. The directory itself has no marker; it is
// made when it is missing, and goes when it is empty.
type staging struct {
	d    *Directory
	name string
}

// staged is what such a directory holds.
type staged struct {
	children []child
	// earlier is the owner of the directory itself: the staging of an earlier version.
	earlier *Owner
	foreign bool
}

type child struct {
	name string
	run  string
	hold run.Hold
}

// everyHold is that of who may remove what all attempts left.
var everyHold = run.Hold{Fence: math.MaxInt64}

// mayRemove tells whether what left has made may be removed by who has the hold h: its
// own, and what earlier attempts left.
func mayRemove(h, left run.Hold) bool {
	return h == left || h == everyHold || left.Fence < h.Fence
}

func (s staging) path() string { return filepath.Join(s.d.Dump, s.name) }

func childOf(name string) (child, bool) {
	r, hold, _ := strings.Cut(name, ".")
	h, ok := run.ParseHold(hold)
	return child{name, r, h}, ok && run.ValidID(r)
}

// look reads what the directory holds.
func (s staging) look() (staged, error) {
	var out staged
	switch fi, err := os.Lstat(s.path()); {
	case errors.Is(err, fs.ErrNotExist):
		return out, nil
	case err != nil:
		return out, fmt.Errorf("look at the staging: %w", err)
	case !fi.IsDir():
		return staged{foreign: true}, nil
	}
	switch o, err := readOwner(s.path()); {
	case err == nil:
		out.earlier = &o
	case errors.Is(err, errNotOurs):
		out.foreign = true
	case !errors.Is(err, fs.ErrNotExist):
		return out, err
	}
	entries, err := os.ReadDir(s.path())
	if err != nil {
		return out, ignoring(fmt.Errorf("look at the staging: %w", err), fs.ErrNotExist)
	}
	for _, e := range entries {
		if c, ok := childOf(e.Name()); ok && e.IsDir() {
			out.children = append(out.children, c)
		} else if e.Name() != ownerName && out.earlier == nil {
			out.foreign = true
		}
	}
	return out, nil
}

// mayUse refuses a directory that is foreign, or that a worker of an earlier version
// uses for another run.
func (s staging) mayUse(runID string) error {
	in, err := s.look()
	switch {
	case err != nil:
		return err
	case in.foreign:
		return stage.Permanentf("use %s for the Postgres staging: it is there already and not ours (a left-over of another backup, or a repository in use); "+
			"make sure that no other backup runs, then move it away or remove it", s.path())
	case in.earlier != nil && in.earlier.Run != runID:
		o := in.earlier
		return fmt.Errorf("use %s for the Postgres staging: run %s of instance %s on node %s has it; a worker of that node removes it once that run is over (if there is no such node any more, remove it by hand)", s.path(), o.Run, o.Instance, o.Node)
	}
	return nil
}

// fresh makes the directory of an attempt. What earlier attempts of the run left goes first.
func (s staging) fresh(runID string, h run.Hold) (string, error) {
	if err := s.mayUse(runID); err != nil {
		return "", err
	}
	if err := s.remove(runID, h); err != nil {
		return "", err
	}
	path := filepath.Join(s.path(), runID+"."+h.String())
	var err error
	for range 10 { // another run may find the parent empty at any moment, and remove it
		if err = s.mkdir(path, runID, h); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return "", permanentIfFull(fmt.Errorf("make the staging %s: %w", path, err))
	}
	return path, nil
}

func (s staging) mkdir(path, runID string, h run.Hold) error {
	// pgBackRest runs as the account of the cluster, which must get to its directory;
	// nobody can list the others.
	if err := os.Mkdir(s.path(), 0o711); ignoring(err, fs.ErrExist) != nil {
		return err
	}
	if err := os.Chmod(s.path(), 0o711); ignoring(err, fs.ErrPermission) != nil {
		return err
	}
	if err := s.d.ownedDir(path, runID, h.Fence); err != nil {
		return err
	}
	if err := set.SyncDir(s.path()); err != nil {
		return err
	}
	return set.SyncDir(s.d.Dump)
}

// remove removes what the run has there, of the attempt with this hold or earlier ones.
// What cannot be removed does not keep the rest.
func (s staging) remove(runID string, h run.Hold) error {
	in, err := s.look()
	if err != nil {
		return fmt.Errorf("remove the staging of run %s: %w", runID, err)
	}
	var errs []error
	for _, c := range in.children {
		if c.run == runID && mayRemove(h, c.hold) {
			errs = append(errs, removeMarked(filepath.Join(s.path(), c.name), runID))
		}
	}
	if o := in.earlier; o != nil && o.Run == runID && mayRemove(h, run.Hold{Fence: o.Fence}) {
		errs = append(errs, s.removeEarlier())
	}
	if !in.foreign {
		errs = append(errs, s.rmdir())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the staging of run %s: %w", runID, err)
	}
	return nil
}

// rmdir removes the directory if it is empty, and no place where a disk is mounted.
func (s staging) rmdir() error {
	return ignoring(rmdir(s.path()), fs.ErrNotExist, fs.ErrExist, unix.EBUSY)
}

// removeEarlier removes the staging of an earlier version, which is the directory
// itself, its marker last.
func (s staging) removeEarlier() error {
	err := removeWithin(s.path(), func(name string) bool {
		_, ok := childOf(name)
		return ok || name == ownerName
	})
	if err != nil {
		return err
	}
	return os.Remove(filepath.Join(s.path(), ownerName))
}

// removeMarked removes a directory of the run: one with its marker, or one without that
// is empty.
func removeMarked(path, runID string) error {
	o, err := readOwner(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return removeUnmarked(path)
	case err != nil:
		return err
	case o.Run != runID:
		return fmt.Errorf("remove %s: its owner marker names run %s: if it is not needed, remove it by hand", path, o.Run)
	}
	return removeOwned(path)
}

// PostgresStaging makes <dump>/pgbackrest/<run>.<hold> for an attempt. What earlier
// attempts of the run left is removed; a foreign <dump>/pgbackrest refuses.
func (d *Directory) PostgresStaging(runID string, h run.Hold) (string, error) {
	return staging{d, postgresName}.fresh(runID, h)
}

// PostgresParent is the directory in which PostgresStaging makes its own.
func (d *Directory) PostgresParent() string { return staging{d, postgresName}.path() }

// RemovePostgresStaging removes what the attempt with this hold, or earlier ones of the
// run, staged.
func (d *Directory) RemovePostgresStaging(runID string, h run.Hold) error {
	return staging{d, postgresName}.remove(runID, h)
}
