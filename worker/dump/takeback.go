package dump

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"catalog-backup/shared/set"
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

// seal makes sure that the commit has made no set and never will: the manifest's part
// loses its name. That is the file system's own answer. A look is not: a network file
// system may say for a minute that a name is not there which another host has made.
//
// An attempt may be at this very commit still, frozen or with a lock that its file
// system lost: of its rename of the part and this one, only one can be done.
func (d *Directory) seal(in Intent) error {
	part, taken := filepath.Join(d.Dump, in.Commit.manifest().Part), filepath.Join(d.Dump, in.taken())
	err := ignoring(os.Rename(part, taken), fs.ErrNotExist)
	if err == nil {
		err = d.sealed(in)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = d.sealByName(in)
	}
	if err == nil {
		err = set.SyncDir(d.Dump)
	}
	if err != nil {
		return fmt.Errorf("take back the broken commit of set %s of run %s: %w: nothing of it is removed", in.Set, in.Run, err)
	}
	return nil
}

// sealed tells no error if what seals the commit is there: now, from an earlier attempt,
// or by a rename whose answer was lost.
func (d *Directory) sealed(in Intent) error {
	taken := filepath.Join(d.Dump, in.taken())
	st, err := os.Lstat(taken)
	if err != nil {
		return err
	}
	final := filepath.Join(d.Dump, in.Commit.manifest().Final)
	switch {
	case d.isMark(in.Run, final): // sealByName was cut short
		return os.Remove(final)
	case links(st) > 1 && !d.isMark(in.Run, taken): // where a rename may replace, the commit makes the manifest by a link (moveTo)
		return fmt.Errorf("%w (%s has another name)", errCommitted, in.taken())
	}
	return d.committed(in)
}

// sealByName seals a commit whose manifest's part is gone: it was made the manifest, or
// somebody removed either. The manifest's name is taken for a moment, which only one who
// is first can do; without the part, no commit can take it afterwards.
func (d *Directory) sealByName(in Intent) error {
	intent, final := d.intentPath(in.Run), filepath.Join(d.Dump, in.Commit.manifest().Final)
	err := os.Link(intent, final)
	switch {
	case errors.Is(err, fs.ErrExist) && !d.isMark(in.Run, final):
		return fmt.Errorf("%w (%s is there, though this host does not see it yet)", errCommitted, final)
	case ignoring(err, fs.ErrExist) != nil:
		return fmt.Errorf("%w (%w); look on all hosts of the node: where %s is not there, remove the other files of %s by hand, and then %s",
			errUnsealed, err, final, in.Set, intent)
	}
	if err := os.Link(intent, filepath.Join(d.Dump, in.taken())); ignoring(err, fs.ErrExist) != nil {
		return err
	}
	return os.Remove(final)
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

// takeBack seals the commit and removes our files from their final names. Parts that
// could still get one go first, but the Event Bus archive's, which the next attempt
// goes on with.
func (d *Directory) takeBack(in Intent) error {
	if err := d.seal(in); err != nil {
		return err
	}
	parts := map[string]bool{}
	for _, f := range in.Commit.Files {
		parts[f.Part] = f.Final != in.Set.EventBusName()
	}
	if err := d.removeHere(in.Run, func(name string) bool { return parts[name] }); err != nil {
		return fmt.Errorf("take back the broken commit of set %s: %w", in.Set, err)
	}
	// What only its content would prove to be ours stops the next commit, and is the cleanup's.
	return d.removeFinals(in, func(CommitFile, string) (bool, error) { return false, nil })
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
	case inode(st) == f.Inode: // without its time of change: somebody has written into it
		return f.ModTime == 0, nil
	}
	return same(f, path)
}

// sameContent hashes a file, for as long as ctx lasts.
func sameContent(ctx context.Context) func(f CommitFile, path string) (bool, error) {
	return func(f CommitFile, path string) (bool, error) {
		if f.SHA256 == "" {
			return false, fmt.Errorf("nothing tells whether it is the run's; if it is not needed, remove %s by hand", path)
		}
		r, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer r.Close()
		h := sha256.New()
		if _, err := io.Copy(h, untilDone{ctx, r}); err != nil {
			return false, err
		}
		return hex.EncodeToString(h.Sum(nil)) == f.SHA256, nil
	}
}

// untilDone reads until the context ends.
type untilDone struct {
	ctx context.Context
	io.Reader
}

func (r untilDone) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}
