package dump

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"golang.org/x/sys/unix"
)

// ErrTaken is wrapped when a final name is in use by a file that is not ours.
var ErrTaken = errors.New("a file of that name is there already")

// Commit makes the set of the run: the parts get their final names, the manifest
// last. files are in this order; every part is complete and synced. holds is asked
// after the intent says what will be done and before the first rename, and again before
// the manifest's; from the first on a cancel comes too late and a crash is finished by Recover.
func (d *Directory) Commit(runID string, files []CommitFile, holds func() error) error {
	in, err := d.ReadIntent(runID)
	if err != nil {
		return fmt.Errorf("commit set of run %s: %w", runID, err)
	}
	for i, f := range files {
		st, err := os.Lstat(filepath.Join(d.Dump, f.Part))
		if err == nil && st.Size() != f.Size {
			err = fmt.Errorf("%s has %d bytes, %d were written", f.Part, st.Size(), f.Size)
		}
		if err != nil {
			return fmt.Errorf("commit set %s: %w", in.Set, err)
		}
		files[i].Inode, files[i].ModTime = inode(st), st.ModTime().UnixNano()
	}
	in.Commit = &Commit{Files: files}
	if err := d.writeIntent(in); err != nil {
		return err
	}
	if err := holds(); err != nil {
		return err
	}
	return d.rename(in, holds)
}

// rename gives every part that still has its temporary name the final one. holds is
// asked before the manifest's: until then the run may have been closed.
func (d *Directory) rename(in Intent, holds func() error) error {
	last := len(in.Commit.Files) - 1
	for i, f := range in.Commit.Files {
		if i == last { // the archives' names are durable before the manifest's exists
			if err := set.SyncDir(d.Dump); err != nil {
				return fmt.Errorf("commit set %s: %w", in.Set, err)
			}
			if err := holds(); err != nil {
				return err
			}
		}
		from, to := filepath.Join(d.Dump, f.Part), filepath.Join(d.Dump, f.Final)
		ours, err := f.is(to)
		if err == nil && !ours {
			err = moveTo(from, to)
		}
		if errors.Is(err, fs.ErrExist) { // or an answer over a network was lost, and this is the second call
			if ours, err = f.is(to); err == nil && !ours {
				err = fmt.Errorf("%w; move %s away", ErrTaken, to)
			}
		}
		if err != nil {
			return fmt.Errorf("commit set %s: rename to %s: %w", in.Set, f.Final, err)
		}
	}
	if err := set.SyncDir(d.Dump); err != nil {
		return fmt.Errorf("commit set %s: %w", in.Set, err)
	}
	return nil
}

// moveTo renames a part, and never over a file.
func moveTo(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system without it: link refuses as well
		if err = os.Link(from, to); err == nil {
			err = os.Remove(from)
		}
	}
	return err
}

// is tells whether the file at path is the one that was written.
func (f CommitFile) is(path string) (bool, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return false, ignoring(err, fs.ErrNotExist)
	}
	return st.Mode().IsRegular() && inode(st) == f.Inode && st.Size() == f.Size &&
		(f.ModTime == 0 || st.ModTime().UnixNano() == f.ModTime), nil
}

func inode(fi os.FileInfo) uint64 {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Ino
}

// WritePart makes a part for one final name of the run's set of what write gives:
// complete, synced and hashed. A disk that is full is an error for good.
func (d *Directory) WritePart(final, runID string, hold run.Hold, write func(io.Writer) error) (CommitFile, error) {
	c := CommitFile{Part: set.PartName(final, runID, hold.String()), Final: final}
	f, err := os.OpenFile(filepath.Join(d.Dump, c.Part), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return c, permanentIfFull(fmt.Errorf("write %s: %w", final, err))
	}
	h := sha256.New()
	err = f.Chmod(0o600)
	if err == nil {
		err = write(io.MultiWriter(f, h))
	}
	if err == nil {
		c.Size, err = f.Seek(0, io.SeekCurrent)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return c, permanentIfFull(fmt.Errorf("write %s: %w", final, err))
	}
	c.SHA256 = hex.EncodeToString(h.Sum(nil))
	return c, nil
}
