package dump

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab/faultfs"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// forgetful shows a directory as another host sees it, which remembers for a while that
// a name was not there.
func forgetful(t *testing.T, backing string, while time.Duration) string {
	t.Helper()
	at := t.TempDir()
	root, err := gofs.NewLoopbackRoot(backing)
	require.NoError(t, err)
	never := time.Duration(0)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(backing, &st))
	raw := gofs.NewNodeFS(root, &gofs.Options{EntryTimeout: &never, AttrTimeout: &never, NegativeTimeout: &while, RootStableAttr: &gofs.StableAttr{Ino: st.Ino, Gen: 1}})
	s, err := fuse.NewServer(raw, at, &fuse.MountOptions{DirectMountStrict: true, EnableLocks: true, DisableReadDirPlus: true})
	require.NoError(t, err)
	go s.Serve()
	require.NoError(t, s.WaitMount())
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	return at
}

// Another host of the node looked for the manifest before it was made, and is told for a
// while that it is not there: it takes nothing back, and tells no end.
func TestManifestThatIsNotSeenIsNotAbsent(t *testing.T) {
	for _, forward := range []bool{true, false} {
		t.Run(fmt.Sprint("forward ", forward), func(t *testing.T) {
			t.Parallel()
			a := newDirectory(t)
			b := *a
			b.Dump = forgetful(t, a.Dump, 5*time.Second)
			in, files := parts(t, a, runID("a"), 2)
			m, err := b.Standing(in.Run, in.Set)
			require.NoError(t, err)
			require.Nil(t, m)
			require.NoError(t, a.Commit(in.Run, files, yes))
			stands, err := b.Clean(context.Background(), in.Run, forward)
			require.False(t, stands)
			require.ErrorContains(t, err, "the directory lists its manifest")
			if in, err = b.ReadIntent(in.Run); err == nil { // and where its list is as old
				err = second(b.seal(in))
			}
			require.ErrorIs(t, err, errCommitted)
			require.ErrorContains(t, err, in.Set.ManifestName())
			_, err = b.Recover(in.Run)
			if err == nil { // the refusal may have told its host
				stands, err = b.Recover(in.Run)
				require.NoError(t, err)
				require.True(t, stands)
			}
			requireOnly(t, a, append(finals(files), "."+in.Run+intentSuffix)...)
			require.Eventually(t, func() bool { m, err := b.Standing(in.Run, in.Set); return err == nil && m != nil }, 20*time.Second, 50*time.Millisecond)
			stands, err = b.Clean(context.Background(), in.Run, forward)
			require.NoError(t, err)
			require.True(t, stands)
			requireOnly(t, a, finals(files)...)
		})
	}
}

// cut makes a run whose commit stopped after that many renames.
func cut(t *testing.T, d *Directory, name string, renames int) (Intent, []CommitFile) {
	t.Helper()
	_, files := parts(t, d, runID(name), 1)
	require.ErrorIs(t, d.Commit(runID(name), files, func() error { return run.ErrFenced }), run.ErrFenced)
	for _, f := range files[:renames] {
		require.NoError(t, os.Rename(filepath.Join(d.Dump, f.Part), filepath.Join(d.Dump, f.Final)))
	}
	in, err := d.ReadIntent(runID(name))
	require.NoError(t, err)
	return in, files
}

// What seals a commit stays while the intent names the commit, whoever removes parts.
func TestSealStaysWithItsIntent(t *testing.T) {
	d := newDirectory(t)
	in, files := cut(t, d, "a", 4)
	require.NoError(t, second(d.seal(in)))
	require.NoError(t, d.RemoveParts(in.Run, run.Hold{Fence: 9}, in.Set.ManifestName()))
	require.FileExists(t, filepath.Join(d.Dump, in.taken()))
	require.NoError(t, second(d.seal(in)), "again")
	for range 2 { // nobody goes on with these names
		stands, err := d.Recover(in.Run)
		require.True(t, stage.IsPermanent(err), err)
		require.False(t, stands)
		requireOnly(t, d, append(finals(files[:4]), in.taken(), "."+in.Run+intentSuffix)...)
	}
	stands, err := d.Clean(context.Background(), in.Run, false)
	require.NoError(t, err)
	require.False(t, stands)
	requireOnly(t, d)

	// A kill between the intent's removal and the seal's.
	d = newDirectory(t)
	in, _ = cut(t, d, "a", 4)
	require.NoError(t, second(d.seal(in)))
	d.Now = func() time.Time { return time.Now().Add(debrisAge + time.Minute) }
	require.NoError(t, d.RemoveDebris())
	require.FileExists(t, filepath.Join(d.Dump, in.taken()), "its intent is there")
	require.NoError(t, os.Remove(d.intentPath(in.Run)))
	require.NoError(t, d.RemoveDebris())
	require.NoFileExists(t, filepath.Join(d.Dump, in.taken()))
}

// Neither the manifest nor its part is there: the set stood, and somebody removed the
// manifest, or moves the set away just now. Nothing else of it goes, and a kill at any
// step is taken up again.
func TestNeitherManifestNorItsPart(t *testing.T) {
	d := newFaulty(t)
	var in Intent
	var files []CommitFile
	begin := func() {
		files = d.begin(t, 2)
		var err error
		in, err = d.behind.ReadIntent(runID("a"))
		require.NoError(t, err)
		require.NoError(t, os.Remove(filepath.Join(d.behind.Dump, in.Commit.manifest().Part)))
	}
	kills := 0
	for _, kill := range []string{faultfs.Link, faultfs.Unlink, faultfs.Fsyncdir} {
		for k := 1; k <= 2; k++ {
			begin()
			n, dead := 0, false
			d.fs.Hook(func(op faultfs.Op) syscall.Errno {
				if op.Kind == kill {
					n++
				}
				if dead = dead || n == k && op.Kind == kill; dead {
					return syscall.EIO
				}
				return 0
			})
			_, err := d.Clean(context.Background(), in.Run, true)
			require.Error(t, err)
			d.fs.Hook(nil)
			kills++
			_, err = d.Standing(in.Run, in.Set)
			require.NoError(t, err)
			if _, err := os.Lstat(d.behind.intentPath(in.Run)); err == nil {
				_, err = d.Recover(in.Run)
				require.True(t, stage.IsPermanent(err), err)
				stands, err := d.Clean(context.Background(), in.Run, true)
				require.False(t, stands)
				require.ErrorContains(t, err, "not needed: "+strings.Join(finals(files[:2]), " "), "%s %d", kill, k)
			}
			require.NoError(t, second(d.Clean(context.Background(), in.Run, true)), "told once")
			requireOnly(t, d.behind, finals(files[:2])...)
		}
	}
	require.Equal(t, 6, kills)

	// No links there: nothing is known, and nothing is removed.
	begin()
	d.fs.Hook(func(op faultfs.Op) syscall.Errno {
		if op.Kind == faultfs.Link {
			return syscall.EPERM
		}
		return 0
	})
	before, err := os.ReadDir(d.behind.Dump)
	require.NoError(t, err)
	_, err = d.Clean(context.Background(), in.Run, true)
	require.ErrorIs(t, err, errUnsealed)
	require.ErrorContains(t, err, "by hand")
	after, err := os.ReadDir(d.behind.Dump)
	require.NoError(t, err)
	require.Len(t, after, len(before))
}

// A file system without RENAME_NOREPLACE: the commit gives the manifest its name by a
// link, and stops before the part's name goes.
func TestCommitByLinkIsNotTakenBack(t *testing.T) {
	d := newFaulty(t)
	files := d.begin(t, 4)
	in, err := d.ReadIntent(runID("a"))
	require.NoError(t, err)
	m := in.Commit.manifest()
	var seen atomic.Bool // by the one who cleans: the hook runs in the file system's server
	d.fs.Hook(func(op faultfs.Op) syscall.Errno {
		switch {
		case op.Kind == faultfs.Rename && op.Flags != 0:
			return syscall.EINVAL
		case op.Kind == faultfs.Rename && strings.HasSuffix(op.To, takenSuffix): // the committer is as far when the other has seen no manifest
			_ = os.Link(filepath.Join(d.fs.Backing, op.Path), filepath.Join(d.fs.Backing, filepath.Dir(op.Path), m.Final))
		case op.Kind == faultfs.Lookup && filepath.Base(op.Path) == m.Final && !seen.Load(): // nor sees it yet
			return syscall.ENOENT
		}
		return 0
	})
	_, err = d.Clean(context.Background(), in.Run, false)
	require.ErrorIs(t, err, errCommitted)
	require.Equal(t, 5, d.whole(files))
	seen.Store(true)
	stands, err := d.Clean(context.Background(), in.Run, false)
	require.NoError(t, err)
	require.True(t, stands)
	requireOnly(t, d.behind, finals(files)...)
}

// One who commits still gives archives their names while another cleans: they go, too.
func TestCleanBesideACommitter(t *testing.T) {
	d := newFaulty(t)
	d.begin(t, 0)
	in, err := d.ReadIntent(runID("a"))
	require.NoError(t, err)
	d.fs.Hook(func(op faultfs.Op) syscall.Errno {
		if op.Kind == faultfs.Unlink { // the first part goes, or else the first final name was looked at
			for _, f := range in.Commit.Files {
				_ = os.Rename(filepath.Join(d.behind.Dump, f.Part), filepath.Join(d.behind.Dump, f.Final))
			}
		}
		return 0
	})
	stands, err := d.Clean(context.Background(), in.Run, false)
	require.NoError(t, err)
	require.False(t, stands)
	requireOnly(t, d.behind)
}

// A commit begins after the cleanup has read the intent: it is cleaned up the next time.
func TestCommitBeginsWhileAnotherCleans(t *testing.T) {
	d := newFaulty(t)
	for _, dir := range []string{d.behind.Dump, d.behind.Temp} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
	}
	_, files := parts(t, d.behind, runID("a"), 1)
	n := 0
	d.fs.Hook(func(op faultfs.Op) syscall.Errno {
		if op.Kind == faultfs.Unlink && n == 0 {
			n++
			require.ErrorIs(t, d.behind.Commit(runID("a"), files, func() error {
				if n++; n == 3 {
					return run.ErrFenced
				}
				return nil
			}), run.ErrFenced)
		}
		return 0
	})
	_, err := d.Clean(context.Background(), runID("a"), false)
	require.ErrorContains(t, err, "a commit of it began meanwhile")
	require.NoError(t, second(d.Clean(context.Background(), runID("a"), false)))
	requireOnly(t, d.behind)
}

// A disk so full that no other name fits: the part loses its name for good. Where it had
// another, or one who commits was first, nothing goes.
func TestSealWithoutRoom(t *testing.T) {
	for _, first := range []bool{false, true} {
		d := newFaulty(t)
		files := d.begin(t, 2)
		m := files[4]
		d.fs.Hook(func(op faultfs.Op) syscall.Errno {
			switch {
			case op.Kind == faultfs.Rename:
				return syscall.ENOSPC
			case op.Kind == faultfs.Unlink && first && filepath.Base(op.Path) == m.Part:
				_ = os.Rename(filepath.Join(d.behind.Dump, m.Part), filepath.Join(d.behind.Dump, m.Final))
				return syscall.ENOENT
			}
			return 0
		})
		stands, err := d.Clean(context.Background(), runID("a"), false)
		require.False(t, stands)
		if !first {
			require.NoError(t, err)
			requireOnly(t, d.behind)
			continue
		}
		require.Error(t, err)
		require.Equal(t, 3, d.whole(files))
	}
}

// A link to where nothing is now is no manifest that is not there.
func TestManifestThatIsADanglingLink(t *testing.T) {
	d := newDirectory(t)
	id, files := committed(t, d)
	path := filepath.Join(d.Dump, id.ManifestName())
	away := filepath.Join(t.TempDir(), "manifest")
	require.NoError(t, os.Symlink(away, path+".link"))
	require.NoError(t, os.Rename(path, path+".kept"))
	require.NoError(t, os.Rename(path+".link", path))
	for _, err := range []error{second(d.Standing(runID("a"), id)), second(d.Clean(context.Background(), runID("a"), false))} {
		require.ErrorContains(t, err, id.ManifestName())
	}
	for _, f := range files {
		_, err := os.Lstat(filepath.Join(d.Dump, f.Final))
		require.NoError(t, err)
	}
	require.NoError(t, os.Rename(path+".kept", path))
	stands, err := d.Clean(context.Background(), runID("a"), false)
	require.NoError(t, err)
	require.True(t, stands)
}

// Under another run's manifest, all final names are its set's.
func TestAnotherRunsSetIsNotTakenBack(t *testing.T) {
	d := newDirectory(t)
	_, files := committed(t, d)
	in, err := d.ReadIntent(runID("a"))
	require.NoError(t, err)
	require.NoError(t, os.Rename(d.intentPath(runID("a")), filepath.Join(t.TempDir(), "intent")))
	in.Run = runID("b")
	in.Commit.Files = append([]CommitFile{}, in.Commit.Files...)
	for i, f := range in.Commit.Files { // the inodes are in use again
		in.Commit.Files[i].Part, in.Commit.Files[i].ModTime = set.PartName(f.Final, in.Run, "1"), 0
	}
	require.NoError(t, d.writeIntent(in))
	require.NoError(t, os.WriteFile(filepath.Join(d.Dump, in.Commit.manifest().Part), []byte("x"), 0o600))
	stands, err := d.Clean(context.Background(), in.Run, false)
	require.NoError(t, err)
	require.False(t, stands)
	requireOnly(t, d, finals(files)...)
}

// A set whose archive is not there whole is told as none, and nothing is removed.
func TestSetWithoutItsArchives(t *testing.T) {
	for _, cripple := range []func(path string) error{os.Remove, func(path string) error { return os.Truncate(path, 1) }} {
		d := newDirectory(t)
		id, _ := committed(t, d)
		path := filepath.Join(d.Dump, id.EventBusName())
		require.NoError(t, cripple(path))
		for _, err := range []error{second(d.Standing(runID("a"), id)), second(d.Standing(runID("a"), "")), second(d.Clean(context.Background(), runID("a"), true)), second(d.Recover(runID("a")))} {
			require.ErrorContains(t, err, id.EventBusName())
		}
		require.FileExists(t, d.intentPath(runID("a")))
		require.FileExists(t, filepath.Join(d.Dump, id.MainName()))
		require.NoError(t, os.WriteFile(path, []byte("events"), 0o600))
		m, err := d.Standing(runID("a"), id)
		require.NoError(t, err)
		require.NotNil(t, m)
	}
}
