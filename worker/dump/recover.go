package dump

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// Standing finds the committed set of a run by its manifest alone: the intent may
// be gone already. Without an id every manifest is looked at. The manifest comes without
// its list of files; one of a later version has only its set and run. nil without an
// error means that no set of the run is seen: the manifest is not there, or is another
// run's. Whatever else keeps it from being read is an error, and so is a set whose
// archives are not there whole: after that nothing of the run may be removed. Not to
// see a manifest is no leave to remove what has a final name; seal gives that.
func (d *Directory) Standing(runID string, id set.ID) (*set.Manifest, error) {
	if _, err := set.ParseID(string(id)); err != nil {
		return d.standingAnywhere(runID)
	}
	m, err := d.manifest(runID, id)
	if err != nil || m == nil || m.Run != runID {
		return nil, err
	}
	return m, nil
}

// manifest reads the manifest under an id, the run's with a look at its archives, or
// another's: nil without an error means that none is seen.
func (d *Directory) manifest(runID string, id set.ID) (*set.Manifest, error) {
	path := filepath.Join(d.Dump, id.ManifestName())
	m, err := set.ReadHead(path)
	switch {
	case m != nil && m.Run == runID && err == nil:
		if err := d.whole(m); err != nil {
			return nil, err
		}
		return m, nil
	case m != nil && m.Run != "": // another's, or of a later version, which says nothing of its archives
		return m, nil
	case errors.Is(err, fs.ErrNotExist):
		if _, at := os.Lstat(path); !errors.Is(at, fs.ErrNotExist) { // a link that leads nowhere now, or one that has just been made
			break
		}
		if err = d.absent(runID, id); err == nil {
			return nil, nil
		}
	case d.isMark(runID, path): // a cleanup was cut short (nameIsFree)
		return nil, nil
	case err == nil:
		err = fmt.Errorf("%s names no run", id.ManifestName())
	}
	return nil, fmt.Errorf("look whether set %s of run %s is committed: %w: nothing of the run is removed until that is known", id, runID, err)
}

// whole tells an error where an archive of a committed set is not there with the size
// that its manifest says: no run has succeeded with such a set.
func (d *Directory) whole(m *set.Manifest) error {
	for _, a := range m.Archives {
		st, err := os.Stat(filepath.Join(d.Dump, a.Name))
		if err == nil && st.Size() != a.Size {
			err = fmt.Errorf("%s has %d bytes, its manifest says %d", a.Name, st.Size(), a.Size)
		}
		if err != nil {
			return fmt.Errorf("look at the archives of set %s of run %s, which is committed: %w: nothing of the run is removed; bring the archive back, or, if the set is not needed, remove its files and .%s%s by hand",
				m.Set, m.Run, err, m.Run, intentSuffix)
		}
	}
	return nil
}

// ErrUnread is wrapped where a manifest that may be the run's cannot be read now.
var ErrUnread = errors.New("it may be the run's, and cannot be read")

// clocksApart is how much earlier than its run a set may be by its id: the worker's clock
// names the set, and the asking host's the run.
const clocksApart = 2 * time.Hour

// standingAnywhere looks for a set of a run that has reserved no id, as its record says:
// a Redis that went back has forgotten it. What is damaged is passed over, since nothing
// is removed for want of it, and what is older than the run is not looked at.
func (d *Directory) standingAnywhere(runID string) (*set.Manifest, error) {
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return nil, fmt.Errorf("look whether a set of run %s is committed: %w", runID, err)
	}
	begun, err := run.Begun(runID)
	if err != nil {
		return nil, err
	}
	reading, stop := context.WithTimeout(context.Background(), readLimit)
	defer stop()
	var unread error
	for _, e := range entries {
		id, ok := set.IDOfName(e.Name())
		if !ok || e.Name() != id.ManifestName() || id.Minute().Before(begun.Add(-clocksApart)) {
			continue
		}
		m, err := readWithin(reading, d.oneRead, e.Name(), func() (*set.Manifest, error) { return set.ReadHead(filepath.Join(d.Dump, e.Name())) })
		if m != nil && m.Run == runID {
			return d.manifest(runID, id)
		}
		if mayBeOwn(e, err) {
			unread = fmt.Errorf("look whether a set of run %s is committed: %s: %w: %w", runID, e.Name(), ErrUnread, err)
		}
	}
	return nil, unread
}

// mayBeOwn tells whether what cannot be read may be a manifest of ours whose disk is in
// trouble: a commit makes no link, and what another account made for itself is not ours.
func mayBeOwn(e fs.DirEntry, err error) bool {
	if e.Type()&fs.ModeSymlink != 0 || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return false
	}
	errno := syscall.Errno(0)
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &errno)
}

// absent tells an error where a manifest that is not found may be there: what a host
// remembers of a name, and what the directory's list says, are two answers.
func (d *Directory) absent(runID string, id set.ID) error {
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == id.ManifestName() {
			return errors.New("the directory lists its manifest, which this host does not find yet")
		}
	}
	return d.present(runID)
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

// Recover finishes a commit whose worker died in it if every file is there as the intent
// says, and tells whether the set stands. It removes nothing from a final name. Where the
// commit cannot be finished, the run fails for good, and its cleanup takes the files back:
// to go on would be to use their names again, at which one who lost its lock may still be
// removing.
func (d *Directory) Recover(runID string) (bool, error) {
	in, stands, err := d.finish(runID, true)
	if err == nil && !stands && in.Commit != nil { // or its manifest is there, though not seen yet
		_, err = d.seal(in)
	}
	if err == nil && !stands && in.found != nil {
		err = stage.Permanentf("finish the commit of set %s, in which a worker died: not all of its files are there as they were written: run the backup again", in.Set)
	}
	return stands, err
}

// finish reads a run's intent, finishes its commit if it may and can, and tells whether
// the set stands. It removes nothing; ErrTaken keeps it from finishing, and from nothing else. Without an intent, and without an error, nothing
// of the run was ever under a final name and is not a set.
func (d *Directory) finish(runID string, forward bool) (in Intent, stands bool, err error) {
	in, err = d.ReadIntent(runID)
	if errors.Is(err, fs.ErrNotExist) {
		return Intent{}, false, nil
	}
	if err != nil {
		return Intent{}, false, err
	}
	in.found = in.Commit
	m, err := d.manifest(in.Run, in.Set)
	switch {
	case err != nil:
		return in, false, err
	case m != nil && m.Run != in.Run: // it has the name, and all others of the id are its set's
		in.Commit = nil
		return in, false, nil
	case m != nil:
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
