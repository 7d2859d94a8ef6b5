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

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"

	"golang.org/x/sys/unix"
)

// errCommitted means that an attempt committed while its commit was looked at.
var errCommitted = errors.New("its set was committed meanwhile: look again")

// errUnsealed means that nobody can tell whether the commit has made its set.
var errUnsealed = errors.New("neither its manifest nor the manifest's part is seen, so that it may have made its set")

// takenSuffix ends the name that the manifest's part of a commit gets which is taken
// back. The sweeps of parts know it (set.IsPart), RemoveParts does not: it is the proof
// that the commit made no set, and stays while the intent names the commit.
const takenSuffix = ".taken.part"

var takenRE = regexp.MustCompile(`^\.[0-9]{12}_[0-9A-Za-z-]+_alation_backup\.json\.(` + runRE + `)\.[0-9a-z-]+\.taken\.part$`)

// manifest is the commit's last file.
func (c *Commit) manifest() CommitFile { return c.Files[len(c.Files)-1] }

// taken is the name of the manifest's part once the commit is taken back.
func (in Intent) taken() string {
	if in.Commit == nil {
		return ""
	}
	return strings.TrimSuffix(in.Commit.manifest().Part, ".part") + takenSuffix
}

// seal makes sure that the commit makes no set any more, and tells whether it has made
// none: then the manifest's part loses its name here. That is the file system's own answer.
// A look is not: a network file system may say for a minute that a name is not there which
// another host has made.
//
// An attempt may be at this very commit still, frozen or with a lock that its file
// system lost: of its rename of the part and this one, only one can be done.
func (d *Directory) seal(in Intent) (none bool, err error) {
	part, taken := filepath.Join(d.Dump, in.Commit.manifest().Part), filepath.Join(d.Dump, in.taken())
	if err = ignoring(os.Rename(part, taken), fs.ErrNotExist); err == nil {
		err = d.sealed(in)
	}
	// By such a mark an earlier version noted that there was no part.
	none = err == nil && !d.isMark(in.Run, taken)
	if stage.IsFull(err) { // no room for another name
		return d.sealByRemoval(in, err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		// The part was made the manifest, and somebody has removed that since, or moves the
		// set away just now; or somebody removed the part. Nothing tells which.
		err = d.nameIsFree(in)
	}
	if err == nil {
		err = set.SyncDir(d.Dump)
	}
	if err != nil {
		return false, fmt.Errorf("take back the broken commit of set %s of run %s: %w: nothing of it is removed", in.Set, in.Run, err)
	}
	return none, nil
}

// sealByRemoval seals where the disk is so full that the part can get no other name: it
// loses the one it has. If it has no name at all then, it was not made the manifest.
func (d *Directory) sealByRemoval(in Intent, full error) (none bool, err error) {
	path := filepath.Join(d.Dump, in.Commit.manifest().Part)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || links(st) != 1 {
		return false, full
	}
	if err = os.Remove(path); err == nil {
		err = set.SyncDir(d.Dump)
	}
	if err != nil {
		return false, err
	}
	st, err := f.Stat()
	if err == nil && links(st) != 0 {
		err = fmt.Errorf("%w (%s has another name)", errCommitted, filepath.Base(path))
	}
	if err == nil { // for whoever comes after a kill, where there is room by now
		if seal, err := os.OpenFile(filepath.Join(d.Dump, in.taken()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			_ = seal.Close()
		}
	}
	return err == nil, err
}

// sealed tells no error if what seals the commit is there: now, from an earlier attempt,
// or by a rename whose answer was lost.
func (d *Directory) sealed(in Intent) error {
	st, err := os.Lstat(filepath.Join(d.Dump, in.taken()))
	if err != nil {
		return err
	}
	if links(st) > 1 || d.isMark(in.Run, filepath.Join(d.Dump, in.Commit.manifest().Final)) {
		// Where a rename may replace, the commit makes the manifest by a link (moveTo). Or
		// the other is a snapshot's.
		return d.nameIsFree(in)
	}
	return d.committed(in)
}

// nameIsFree tells no error if the manifest is not there: it takes the name for a moment,
// by a link to the intent, which only one who is first can do.
func (d *Directory) nameIsFree(in Intent) error {
	intent, final := d.intentPath(in.Run), filepath.Join(d.Dump, in.Commit.manifest().Final)
	err := os.Link(intent, final)
	switch {
	case errors.Is(err, fs.ErrExist) && !d.isMark(in.Run, final):
		return fmt.Errorf("%w (%s is there, though this host does not see it yet)", errCommitted, final)
	case ignoring(err, fs.ErrExist) != nil:
		return fmt.Errorf("%w (%w); look on all hosts of the node: where %s is not there, remove the other files of %s by hand, and then %s",
			errUnsealed, err, final, in.Set, intent)
	}
	return os.Remove(final)
}

// mayHaveStood tells an error where files of a set are there whose manifest was removed,
// or whose part was: nobody but a person knows what they are worth.
func (d *Directory) mayHaveStood(in Intent) error {
	var left []string
	for _, f := range in.Commit.Files {
		_, err := os.Lstat(filepath.Join(d.Dump, f.Final))
		switch {
		case err == nil:
			left = append(left, f.Final)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("look at what there is of set %s: %w", in.Set, err)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("set %s was committed, as it seems, and its manifest was moved away or removed by somebody since: nothing else of it is touched, and this is told only once; move these away, too, or remove them, if the set is not needed: %s", in.Set, strings.Join(left, " "))
}

// isMark tells that a file is the run's intent by another name.
func (d *Directory) isMark(runID, path string) bool {
	a, err := os.Lstat(d.intentPath(runID))
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// committed tells an error where the manifest has its name.
func (d *Directory) committed(in Intent) error {
	m := in.Commit.manifest()
	stands, err := m.is(filepath.Join(d.Dump, m.Final))
	if stands {
		return errCommitted
	}
	return err
}

func links(st fs.FileInfo) uint64 {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 1
	}
	return uint64(sys.Nlink)
}

// removeFinals removes our files from their final names. The commit is sealed, and its
// parts are gone. same is asked where only the content can tell whether a file is ours.
func (d *Directory) removeFinals(in Intent, same func(f CommitFile, path string) (bool, error)) error {
	var errs []error
	for _, f := range in.Commit.Files {
		path := filepath.Join(d.Dump, f.Final)
		ours, err := f.isMoved(path, same)
		if err == nil && ours {
			err = os.Remove(path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take back %s of the broken commit of set %s: %w", f.Final, in.Set, err))
		}
	}
	return errors.Join(append(errs, set.SyncDir(d.Dump))...)
}

// isMoved is as is, but also where the directory was copied to another disk, or its
// file system gives other inodes after a mount.
func (f CommitFile) isMoved(path string, same func(f CommitFile, path string) (bool, error)) (bool, error) {
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return false, ignoring(err, fs.ErrNotExist)
	case !st.Mode().IsRegular() || st.Size() != f.Size:
		return false, nil
	case f.ModTime != 0 && st.ModTime().UnixNano() == f.ModTime:
		return true, nil
	case inode(st) == f.Inode && f.ModTime == 0:
		return true, nil
	}
	return same(f, path)
}
