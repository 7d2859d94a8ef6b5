package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"catalog-backup/shared/run"
)

// Leftovers lists the runs of the instance that have anything on disk here, in order.
// What could not be read is told by the error; the others are listed all the same.
func (d *Directory) Leftovers() ([]string, error) {
	found := map[string]bool{}
	err := errors.Join(d.leftIntents(found), d.leftStagings(found), d.leftRunDirs(found))
	out := make([]string, 0, len(found))
	for r := range found {
		out = append(out, r)
	}
	slices.Sort(out)
	if err != nil {
		err = fmt.Errorf("look for left-overs: %w", err)
	}
	return out, err
}

func (d *Directory) leftIntents(found map[string]bool) error {
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		r, ok := intentRun(e.Name())
		if !ok {
			continue
		}
		in, err := d.ReadIntent(r)
		if err != nil {
			errs = append(errs, ignoring(err, fs.ErrNotExist))
		} else if d.ours(Owner{Instance: in.Instance, Node: in.Node}) {
			found[r] = true
		}
	}
	return errors.Join(errs...)
}

func (d *Directory) leftStagings(found map[string]bool) error {
	var errs []error
	for _, s := range d.stagings() {
		in, err := s.look()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if o := in.earlier; o != nil && d.ours(*o) {
			found[o.Run] = true
		}
		for _, c := range in.children {
			errs = append(errs, d.leftDir(filepath.Join(s.path(), c.name), c.run, found))
		}
	}
	return errors.Join(errs...)
}

func (d *Directory) leftRunDirs(found map[string]bool) error {
	entries, err := os.ReadDir(d.Temp)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() && run.ValidID(e.Name()) {
			errs = append(errs, d.leftDir(d.RunDir(e.Name()), e.Name(), found))
		}
	}
	return errors.Join(errs...)
}

// leftDir notes the run of a directory whose marker names it. One without a marker is
// debris, if anything.
func (d *Directory) leftDir(path, runID string, found map[string]bool) error {
	o, err := readOwner(path)
	if err == nil && d.ours(o) && o.Run == runID {
		found[runID] = true
	}
	return ignoring(err, fs.ErrNotExist, errNotOurs)
}
