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
		if err != nil {
			return fmt.Errorf("commit set %s: %w", in.Set, err)
		}
		files[i].Inode = inode(st)
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
		if d.isOurs(f) {
			continue
		}
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system without it: link refuses as well
			if err = os.Link(from, to); err == nil {
				err = os.Remove(from)
			}
		}
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w; move %s away", ErrTaken, to)
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

// isOurs tells whether the file under the final name is the one we wrote.
func (d *Directory) isOurs(f CommitFile) bool {
	st, err := os.Lstat(filepath.Join(d.Dump, f.Final))
	return err == nil && st.Mode().IsRegular() && inode(st) == f.Inode && st.Size() == f.Size
}

func inode(fi os.FileInfo) uint64 {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Ino
}

// Standing finds the committed set of a run by its manifest alone: the intent may
// be gone already. The manifest comes without its list of files. nil without an
// error means that the run has certainly committed no set: the manifest is not there,
// or is another run's. Whatever else keeps it from being read is an error, after
// which nothing of the run may be removed.
func (d *Directory) Standing(runID string, id set.ID) (*set.Manifest, error) {
	if _, err := set.ParseID(string(id)); err != nil {
		return nil, nil // nothing was reserved yet
	}
	m, err := set.ReadHead(filepath.Join(d.Dump, id.ManifestName()))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look whether set %s of run %s is committed: %w", id, runID, err)
	case m.Run != runID:
		return nil, nil
	}
	return m, nil
}

// Recover looks at a run whose worker died in the commit. With forward it finishes
// the commit if every file is there with the hash that the intent names; otherwise
// it takes the final names back. It tells whether the set stands.
func (d *Directory) Recover(ctx context.Context, runID string, forward bool) (bool, error) {
	in, err := d.ReadIntent(runID)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if in.Commit == nil {
		return false, nil
	}
	if m, err := d.Standing(in.Run, in.Set); err != nil {
		return false, err
	} else if m != nil {
		return true, set.SyncDir(d.Dump)
	}
	if forward && d.complete(ctx, in) {
		if err := d.rename(in, func() error { return ctx.Err() }); err == nil {
			return true, nil
		} else if !errors.Is(err, ErrTaken) {
			return false, err
		}
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	return false, d.takeBack(in)
}

// takeBack removes our files from their final names, and forgets the commit.
func (d *Directory) takeBack(in Intent) error {
	for _, f := range in.Commit.Files {
		if d.isOurs(f) {
			if err := os.Remove(filepath.Join(d.Dump, f.Final)); err != nil {
				return fmt.Errorf("take back %s of the broken commit of set %s: %w", f.Final, in.Set, err)
			}
		}
	}
	in.Commit = nil
	if err := d.writeIntent(in); err != nil {
		return err
	}
	return set.SyncDir(d.Dump)
}

// complete tells whether every file of the commit is whole, wherever its rename stopped.
func (d *Directory) complete(ctx context.Context, in Intent) bool {
	for _, f := range in.Commit.Files {
		name := f.Part
		if d.isOurs(f) {
			name = f.Final
		}
		size, sum, err := hashFile(ctx, filepath.Join(d.Dump, name))
		if err != nil || size != f.Size || sum != f.SHA256 {
			return false
		}
	}
	return true
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

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func hashFile(ctx context.Context, path string) (int64, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(h, contextReader{ctx, f}, make([]byte, 1<<20))
	return n, hex.EncodeToString(h.Sum(nil)), err
}
