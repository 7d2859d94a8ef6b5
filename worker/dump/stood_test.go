package dump

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab/faultfs"
	"catalog-backup/worker/stage"

	"github.com/stretchr/testify/require"
)

// A set stands, and something of its run cannot be removed, so that the intent stays with
// its commit. Whatever of the set a person moves away first: what is there still stays.
func TestSetThatIsMovedAwayBeforeItsRunIsTidy(t *testing.T) {
	for _, first := range []int{0, 1, 2, 3, 4} {
		d := newDirectory(t)
		in, files := parts(t, d, runID("a"), 2)
		require.NoError(t, d.Commit(in.Run, files, yes))
		mark(t, d.RunDir(in.Run), in.Run)
		stays := filepath.Join(d.RunDir(in.Run), "postgres.1-aaaaaaaa")
		write(t, filepath.Join(stays, "x"))
		require.NoError(t, exec.Command("mount", "--bind", stays, stays).Run())
		unmount := func() { _ = syscall.Unmount(stays, 0) }
		t.Cleanup(unmount)
		stands, err := d.Clean(context.Background(), in.Run, true)
		require.True(t, stands)
		require.Error(t, err)
		away := t.TempDir()
		order := append([]CommitFile{files[(first+4)%5]}, files...)
		for _, f := range order {
			_ = os.Rename(filepath.Join(d.Dump, f.Final), filepath.Join(away, f.Final))
			for range 2 {
				stands, err = d.Clean(context.Background(), in.Run, true)
				require.Error(t, err)
				_, seen := os.Lstat(filepath.Join(d.Dump, files[4].Final))
				require.True(t, !stands || seen == nil)
				_, err = d.Recover(in.Run)
				require.Equal(t, stands, err == nil, err)
			}
			for _, f := range files {
				_, here := os.Lstat(filepath.Join(d.Dump, f.Final))
				_, there := os.Lstat(filepath.Join(away, f.Final))
				require.True(t, here == nil || there == nil, f.Final)
			}
		}
		unmount()
		require.NoError(t, second(d.Clean(context.Background(), in.Run, true)))
		requireOnly(t, d)
	}
}

// Others may link our files too, such as a snapshot by hard links: they are ours still.
func TestSnapshotByHardLinks(t *testing.T) {
	d := newDirectory(t)
	in, _ := cut(t, d, "a", 2)
	out, err := exec.Command("cp", "-al", d.Dump+"/.", t.TempDir()).CombinedOutput()
	require.NoError(t, err, "%s", out)
	stands, err := d.Clean(context.Background(), in.Run, false)
	require.NoError(t, err)
	require.False(t, stands)
	requireOnly(t, d)
}

// Somebody touched our files after the commit was cut short: the content tells. What was
// written into is left.
func TestTouchedFilesAreTakenBack(t *testing.T) {
	d := newDirectory(t)
	in, files := cut(t, d, "a", 3)
	for _, f := range files[:3] {
		require.NoError(t, os.Chtimes(filepath.Join(d.Dump, f.Final), noon, noon))
	}
	other := filepath.Join(d.Dump, files[1].Final)
	b, err := os.ReadFile(other)
	require.NoError(t, err)
	b[0] ^= 1
	require.NoError(t, os.WriteFile(other, b, 0o600))
	_, err = d.Clean(context.Background(), in.Run, true)
	require.NoError(t, err)
	requireOnly(t, d, files[1].Final)
}

// The time of a sweep ends before a large file is hashed: the next sweep goes on, unless
// the file is another by then.
func TestHashingGoesOn(t *testing.T) {
	d := newDirectory(t)
	d.Hashing = &Hashing{}
	in, files := cut(t, d, "a", 4)
	large := filepath.Join(d.Dump, files[0].Final)
	f := in.Commit.Files[0]
	reads := func(most int, f CommitFile) (n int, same bool, err error) {
		ctx := &endsAfter{Context: context.Background(), most: most, n: &n}
		same, err = d.sameContent(ctx)(f, large)
		return n, same, err
	}
	require.NoError(t, os.WriteFile(large, make([]byte, 1<<20), 0o600))
	f.SHA256 = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58" // of 1 MiB of zeros
	for range 3 {
		_, _, err := reads(8, f)
		require.ErrorIs(t, err, context.Canceled)
	}
	n, same, err := reads(1000, f)
	require.NoError(t, err)
	require.True(t, same)
	require.Less(t, n, 15, "it began at 24 of 32 pieces")

	_, _, err = reads(8, f)
	require.Error(t, err)
	require.NoError(t, os.Chtimes(large, noon, noon))
	n, same, err = reads(1000, f)
	require.NoError(t, err)
	require.True(t, same)
	require.Greater(t, n, 30, "from the beginning")
}

// endsAfter ends after it was asked some times.
type endsAfter struct {
	context.Context
	most int
	n    *int
}

func (c *endsAfter) Err() error {
	if *c.n++; *c.n > c.most {
		return context.Canceled
	}
	return nil
}

// The earlier temp directory's disk is dead, or hangs: the rest is removed, in time, and
// the intent stays.
func TestEarlierTempDirectoryIsDead(t *testing.T) {
	for name, fail := range map[string]func(fs *faultfs.FS, wake chan struct{}){
		"dead":  func(fs *faultfs.FS, _ chan struct{}) { require.NoError(t, fs.Die()) },
		"hangs": func(fs *faultfs.FS, wake chan struct{}) { fs.Hook(func(faultfs.Op) syscall.Errno { <-wake; return 0 }) },
	} {
		t.Run(name, func(t *testing.T) {
			far := faultfs.Mount(t, t.TempDir())
			d := newDirectory(t)
			d.oneRead = 100 * time.Millisecond
			was := *d
			was.Temp = far.Path
			in, _ := parts(t, &was, runID("a"), 1)
			mark(t, filepath.Join(d.PostgresParent(), in.Run+".1-aaaaaaaa"), in.Run)
			write(t, filepath.Join(d.PostgresParent(), in.Run+".1-aaaaaaaa", "repo"))
			wake := make(chan struct{})
			fail(far, wake)
			for range 2 {
				_, err := d.Clean(context.Background(), in.Run, false)
				require.ErrorContains(t, err, "which was alation.backup.data_temp_dir when the run began")
				require.ErrorContains(t, err, d.intentPath(in.Run))
				requireOnly(t, d, "."+in.Run+intentSuffix)
			}
			close(wake)
		})
	}
}

// Nobody who looks whether a run has a set waits for a disk that hangs, to which another's
// manifest was linked, or minds one that he may not read or that leads nowhere. Where a
// manifest may be the run's, and its disk is in trouble, that is unknown.
func TestLookForASetBesideOthers(t *testing.T) {
	d := newFaulty(t)
	require.NoError(t, os.MkdirAll(d.behind.Dump, 0o700))
	require.NoError(t, os.MkdirAll(d.behind.Temp, 0o700))
	id, _ := committed(t, d.behind)
	at := func(name string) string { return filepath.Join(d.behind.Dump, name+"_1-1_alation_backup.json") }
	require.NoError(t, os.Symlink(at("203009232200"), at("203009232200")))
	write(t, at("202109231900"))
	look := func(unknown bool, what any) {
		m, err := d.Standing(runID("a"), "")
		require.NoError(t, err)
		require.Equal(t, string(id), m.Set)
		m, err = d.Standing(runID("b"), "")
		require.Nil(t, m)
		require.Equal(t, unknown, errors.Is(err, ErrUnread), "%v: %v", what, err)
	}
	for errno, unknown := range map[syscall.Errno]bool{0: false, syscall.EACCES: false, syscall.EPERM: false, syscall.ENOENT: false, syscall.EIO: true, syscall.ESTALE: true} {
		d.fs.Hook(func(op faultfs.Op) syscall.Errno {
			if op.Kind == faultfs.Open && filepath.Base(op.Path) == filepath.Base(at("202109231900")) {
				return errno
			}
			return 0
		})
		look(unknown, errno)
	}
	d.fs.Hook(nil)
	far := faultfs.Mount(t, t.TempDir())
	wake := make(chan struct{})
	far.Hook(func(faultfs.Op) syscall.Errno { <-wake; return 0 })
	defer close(wake)
	d.oneRead = 300 * time.Millisecond
	require.NoError(t, os.Symlink(filepath.Join(far.Path, "m"), at("202109231827")))
	require.NoError(t, os.Symlink(filepath.Join(far.Path, "m"), at("202109232200")))
	look(false, "a disk that hangs")
}

// What seals a commit on a full disk outlives a kill, once there is room; an earlier
// version's note that there was no part proves nothing.
func TestSealsThatAnotherLeft(t *testing.T) {
	d := newDirectory(t)
	in, _ := cut(t, d, "a", 4)
	none, err := d.sealByRemoval(in, syscall.ENOSPC)
	require.NoError(t, err)
	require.True(t, none)
	require.NoError(t, second(d.Clean(context.Background(), in.Run, false)))
	requireOnly(t, d)

	in, files := cut(t, d, "b", 4)
	require.NoError(t, os.Remove(filepath.Join(d.Dump, files[4].Part)))
	require.NoError(t, os.Link(d.intentPath(in.Run), filepath.Join(d.Dump, in.taken())))
	_, err = d.Clean(context.Background(), in.Run, false)
	require.ErrorContains(t, err, "nothing else of it is touched")
	for _, f := range files[:4] {
		require.FileExists(t, filepath.Join(d.Dump, f.Final))
	}
}

// A file that is another's keeps the commit from being finished until it is moved away.
func TestNameThatIsTakenInTheCommit(t *testing.T) {
	d := newDirectory(t)
	in, files := cut(t, d, "a", 1)
	foreign := filepath.Join(d.Dump, files[2].Final)
	write(t, foreign)
	for range 2 {
		_, err := d.Recover(in.Run)
		require.ErrorIs(t, err, ErrTaken)
		require.False(t, stage.IsPermanent(err))
	}
	require.NoError(t, os.Remove(foreign))
	stands, err := d.Recover(in.Run)
	require.NoError(t, err)
	require.True(t, stands)
	require.NoError(t, errors.Join(err, second(d.Clean(context.Background(), in.Run, true))))
	requireOnly(t, d, finals(files)...)
}

// A set is committed and its run tidy, but another host remembers that there was no
// manifest: what it would tell of the run is unknown, not failed.
func TestTidySetThatIsNotSeen(t *testing.T) {
	a := newDirectory(t)
	b := *a
	b.Dump = forgetful(t, a.Dump, 2*time.Second)
	in, files := parts(t, a, runID("a"), 2)
	require.NoError(t, second(b.Standing(in.Run, in.Set)))
	require.NoError(t, a.Commit(in.Run, files, yes))
	require.NoError(t, second(a.Clean(context.Background(), in.Run, true)))
	m, err := b.Standing(in.Run, in.Set)
	if err == nil { // a slow machine: it is seen
		require.NotNil(t, m)
		return
	}
	require.ErrorContains(t, err, "does not find yet")
	require.Eventually(t, func() bool { m, err := b.Standing(in.Run, in.Set); return err == nil && m != nil }, 20*time.Second, 50*time.Millisecond)
}

// What is old is told by the file system's clock, which a full one cannot be asked for.
func TestDebrisByTheClockOfTheFileSystem(t *testing.T) {
	d := small(t, "inodes")
	old, fresh := filepath.Join(d.Dump, ".catalog-backup-check.1"), filepath.Join(d.Dump, ".catalog-backup-check.2")
	write(t, old)
	write(t, fresh)
	ago := time.Now().Add(-debrisAge - time.Minute)
	require.NoError(t, os.Chtimes(old, ago, ago))
	fill(t, "inodes", filepath.Join(filepath.Dir(d.Dump), "another's"), "x.part")
	require.NoError(t, d.RemoveDebris())
	require.FileExists(t, old)
	require.NoError(t, os.RemoveAll(filepath.Join(filepath.Dir(d.Dump), "another's")))
	require.NoError(t, d.RemoveDebris())
	requireOnly(t, d, filepath.Base(fresh))
}
