package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"catalog-backup/shared/set"
)

// Standing finds the committed set of a run by its manifest alone: the intent may
// be gone already. Without an id every manifest is looked at. The manifest comes without
// its list of files; one of a later version has only its set and run. nil without an
// error means that the run has certainly committed no set: the manifest is not there,
// or is another run's. Whatever else keeps it from being read is an error, after
// which nothing of the run may be removed.
func (d *Directory) Standing(runID string, id set.ID) (*set.Manifest, error) {
	if _, err := set.ParseID(string(id)); err != nil {
		return d.standingAnywhere(runID)
	}
	m, err := set.ReadHead(filepath.Join(d.Dump, id.ManifestName()))
	switch {
	case m != nil && m.Run == runID:
		return m, nil
	case m != nil && m.Run != "":
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		if err = d.present(runID); err == nil {
			return nil, nil
		}
	case err == nil:
		err = fmt.Errorf("%s names no run", id.ManifestName())
	}
	return nil, fmt.Errorf("look whether set %s of run %s is committed: %w: nothing of the run is removed until that is known", id, runID, err)
}

// standingAnywhere looks for a set of a run that has reserved no id, as its record says:
// a Redis that went back has forgotten it. A manifest that cannot be read is passed over,
// since nothing is removed for want of it.
func (d *Directory) standingAnywhere(runID string) (*set.Manifest, error) {
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return nil, fmt.Errorf("look whether a set of run %s is committed: %w", runID, err)
	}
	for _, e := range entries {
		if id, ok := set.IDOfName(e.Name()); ok && e.Name() == id.ManifestName() {
			if m, _ := set.ReadHead(filepath.Join(d.Dump, e.Name())); m != nil && m.Run == runID {
				return m, nil
			}
		}
	}
	return nil, nil
}

// present tells an error where the dump directory is not the one in which a set was
// reserved: it was moved away, or its disk is not mounted and this is the empty
// directory beneath.
func (d *Directory) present(runID string) error {
	for _, proof := range []string{filepath.Join(d.Dump, lockName), d.intentPath(runID)} {
		if _, err := os.Lstat(proof); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := set.IDOfName(e.Name()); ok {
			return nil // of sets, but somebody removed the lock
		}
	}
	return fmt.Errorf("%s is not the directory in which it was reserved, or was emptied (%s is not there): mount its disk; if the sets are gone for good, make that file: touch %s",
		d.Dump, lockName, filepath.Join(d.Dump, lockName))
}

// Recover looks at a run whose worker died in the commit. With forward it finishes
// the commit if every file is there as the intent says; otherwise it takes the final
// names back. It tells whether the set stands. An error is told before anything was
// taken back, but for what could not be removed.
func (d *Directory) Recover(runID string, forward bool) (bool, error) {
	in, stands, err := d.finish(runID, forward)
	if err != nil || stands || in.Commit == nil {
		return stands, err
	}
	return false, d.takeBack(in)
}

// finish reads a run's intent, finishes its commit if it may and can, and tells whether
// the set stands. It removes nothing. Without an intent, and without an error, nothing
// of the run was ever under a final name and is not a set.
func (d *Directory) finish(runID string, forward bool) (in Intent, stands bool, err error) {
	in, err = d.ReadIntent(runID)
	if errors.Is(err, fs.ErrNotExist) {
		return Intent{}, false, nil
	}
	if err != nil {
		return Intent{}, false, err
	}
	m, err := d.Standing(in.Run, in.Set)
	if err != nil {
		return in, false, err
	}
	if m != nil {
		return in, true, set.SyncDir(d.Dump)
	}
	if !forward || in.Commit == nil {
		return in, false, nil
	}
	whole, err := d.complete(in)
	if err != nil || !whole {
		return in, false, err
	}
	err = d.rename(in, func() error { return nil }) // the caller holds the lock, and asked
	if errors.Is(err, ErrTaken) {
		return in, false, nil
	}
	return in, err == nil, err
}

// complete tells whether every file of the commit is there, wherever its rename stopped.
func (d *Directory) complete(in Intent) (bool, error) {
	for _, f := range in.Commit.Files {
		whole, err := f.is(filepath.Join(d.Dump, f.Final))
		if err == nil && !whole {
			whole, err = f.is(filepath.Join(d.Dump, f.Part))
		}
		if err != nil {
			return false, fmt.Errorf("look at the commit of set %s that was cut short: %w", in.Set, err)
		}
		if !whole {
			return false, nil
		}
	}
	return true, nil
}

// errCommitted means that an attempt committed while its commit was looked at.
var errCommitted = errors.New("its set was committed meanwhile: look again")

// takeBack removes our files from their final names. The intent stays as it is: to write
// it anew would need room, and who comes after finds the files gone.
//
// The manifest's part goes first. An attempt may be at this very commit still, frozen or
// with a lock that its file system lost: either it has given the manifest its name, and
// nothing is taken back, or it can make no set any more.
func (d *Directory) takeBack(in Intent) error {
	manifest := in.Commit.Files[len(in.Commit.Files)-1]
	err := ignoring(os.Remove(filepath.Join(d.Dump, manifest.Part)), fs.ErrNotExist)
	if err == nil {
		var stands bool
		if stands, err = manifest.is(filepath.Join(d.Dump, manifest.Final)); stands {
			err = errCommitted
		}
	}
	if err != nil {
		return fmt.Errorf("take back the broken commit of set %s: %w", in.Set, err)
	}
	var errs []error
	for _, f := range in.Commit.Files {
		path := filepath.Join(d.Dump, f.Final)
		ours, err := f.is(path)
		if err == nil && ours {
			err = os.Remove(path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take back %s of the broken commit of set %s: %w", f.Final, in.Set, err))
		}
	}
	return errors.Join(append(errs, set.SyncDir(d.Dump))...)
}
