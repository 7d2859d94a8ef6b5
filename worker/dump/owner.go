package dump

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"golang.org/x/sys/unix"
)

const ownerName = ".catalog-backup-owner"

// Owner marks a directory as ours.
type Owner struct {
	Run      string `json:"run"`
	Fence    int64  `json:"fence"`
	Instance string `json:"instance"`
	Node     string `json:"node"`
}

// errNotOurs is wrapped where a marker was read and is not one of ours: another
// program made the directory, or damaged it.
var errNotOurs = errors.New("its owner marker is not ours, or damaged")

// errInUse is wrapped where something is in a directory without a marker.
var errInUse = errors.New("it has no owner marker")

// ownedDir makes a directory, 0700, that our marker says is ours. A marker that is
// there is never replaced: one that cannot be read may be another run's.
func (d *Directory) ownedDir(path, runID string, fence int64) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	switch o, err := readOwner(path); {
	case err == nil && o.Run != runID:
		return fmt.Errorf("use the directory %s: it is of run %s", path, o.Run)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(Owner{Run: runID, Fence: fence, Instance: d.Instance, Node: d.Node})
	if err != nil {
		return err
	}
	return set.WriteFile(filepath.Join(path, ownerName), b)
}

func (d *Directory) ours(o Owner) bool { return o.Instance == d.Instance && o.Node == d.Node }

// readOwner reads the marker of dir: fs.ErrNotExist says that dir, or the marker in
// it, is certainly not there, errNotOurs that it was read and is none of ours. After
// any other error nothing is known.
func readOwner(dir string) (Owner, error) {
	var o Owner
	fi, err := os.Lstat(dir)
	if err != nil {
		return o, fmt.Errorf("look at %s: %w", dir, err)
	}
	if !fi.IsDir() {
		return o, fmt.Errorf("look at %s: %w: it is no directory", dir, errNotOurs)
	}
	b, err := set.ReadNote(filepath.Join(dir, ownerName), set.MaxNote)
	if err != nil {
		return o, fmt.Errorf("read the owner marker of %s: %w", dir, err)
	}
	if err := json.Unmarshal(b, &o); err != nil || !run.ValidID(o.Run) {
		return o, fmt.Errorf("read the owner marker of %s: %w", dir, errNotOurs)
	}
	return o, nil
}

// isHalfMarker tells a marker that a kill kept from getting its name (set.WriteFile).
func isHalfMarker(name string) bool {
	return strings.HasPrefix(name, "."+ownerName+".") && strings.HasSuffix(name, ".new")
}

// removeOwned removes an owned directory, its marker last, so that a removal that is
// cut short can be taken up again. What cannot be removed does not keep the rest.
func removeOwned(dir string) error {
	if err := removeWithin(dir, func(name string) bool { return name == ownerName }); err != nil {
		return ignoring(err, fs.ErrNotExist)
	}
	if err := os.Remove(filepath.Join(dir, ownerName)); ignoring(err, fs.ErrNotExist) != nil {
		return err
	}
	return ignoring(rmdir(dir), fs.ErrNotExist)
}

// removeWithin removes what is in dir, but for what keep names.
func removeWithin(dir string, keep func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !keep(e.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeUnmarked removes a directory without a marker: a kill came between two steps of
// making or removing it, so that nothing is in it, but for half a marker.
func removeUnmarked(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoring(err, fs.ErrNotExist)
	}
	for _, e := range entries {
		if !isHalfMarker(e.Name()) {
			return fmt.Errorf("remove %s: %w: %s is in it; if it is not needed, remove it by hand", dir, errInUse, e.Name())
		}
	}
	if err := removeWithin(dir, func(name string) bool { return !isHalfMarker(name) }); err != nil {
		return err
	}
	return ignoring(rmdir(dir), fs.ErrNotExist)
}

// rmdir removes a directory if it is empty. os.Remove would remove a link or file, too.
func rmdir(dir string) error {
	if err := unix.Rmdir(dir); err != nil {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

func ignoring(err error, kinds ...error) error {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return nil
		}
	}
	return err
}
