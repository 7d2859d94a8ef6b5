package dump

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"catalog-backup/shared/lab/faultfs"

	"github.com/stretchr/testify/require"
)

// The directory was copied to another disk after its commit was cut short: the files
// have other inodes, and are ours by time of change or content. What is not goes on lying there.
func TestMovedDirectoryIsTakenBack(t *testing.T) {
	for _, how := range []string{"-a", "-r"} {
		for _, forward := range []bool{true, false} {
			d := newDirectory(t)
			in, _ := cut(t, d, "a", 4)
			if how == "-a" { // nothing large is read where its time tells
				for i := range in.Commit.Files {
					in.Commit.Files[i].SHA256 = ""
				}
				require.NoError(t, d.writeIntent(in))
			}
			to := t.TempDir()
			out, err := exec.Command("cp", how, d.Dump+"/.", to).CombinedOutput()
			require.NoError(t, err, "%s", out)
			d.Dump = to
			stands, err := d.Clean(context.Background(), in.Run, forward)
			require.NoError(t, err)
			require.False(t, stands)
			requireOnly(t, d)
		}
	}
	d := newDirectory(t)
	in, files := cut(t, d, "a", 2)
	for i, content := range []string{"niam", "events"} { // another's, and one that nothing proves to be ours
		require.NoError(t, os.Remove(filepath.Join(d.Dump, files[i].Final)))
		write(t, filepath.Join(d.Dump, "keeps the inode in use"))
		require.NoError(t, os.WriteFile(filepath.Join(d.Dump, files[i].Final), []byte(content), 0o600))
	}
	require.NoError(t, os.Remove(filepath.Join(d.Dump, "keeps the inode in use")))
	in.Commit.Files[1].SHA256 = ""
	for i := range 2 {
		in.Commit.Files[i].Inode = 1
	}
	require.NoError(t, d.writeIntent(in))
	_, err := d.Clean(context.Background(), in.Run, false)
	require.ErrorContains(t, err, "remove "+filepath.Join(d.Dump, files[1].Final)+" by hand")
	requireOnly(t, d, files[0].Final, files[1].Final, in.taken(), "."+in.Run+intentSuffix)
	require.NoError(t, os.Remove(filepath.Join(d.Dump, files[1].Final)))
	require.NoError(t, second(d.Clean(context.Background(), in.Run, false)))
	requireOnly(t, d, files[0].Final)

	ctx, stop := context.WithCancel(context.Background())
	stop()
	_, err = d.sameContent(ctx)(CommitFile{SHA256: "x"}, filepath.Join(d.Dump, files[0].Final))
	require.ErrorIs(t, err, context.Canceled, "a large one keeps nobody")
}

// The temp directory is another since the run began: what it has in the old one goes,
// under its lock there.
func TestEarlierTempDirectory(t *testing.T) {
	d := newDirectory(t)
	in, _ := parts(t, d, runID("a"), 1)
	lock, err := d.Lock(in.Run, true)
	require.NoError(t, err)
	write(t, filepath.Join(d.RunDir(in.Run), "postgres.1-aaaaaaaa", "1.pid"))
	now := *d
	now.Temp = t.TempDir()
	var ended []string
	now.EndLeftover = func(_ context.Context, f string) error { ended = append(ended, f); return nil }
	_, err = now.Clean(context.Background(), in.Run, false)
	require.ErrorIs(t, err, ErrHeld, "its attempt lives")
	require.ErrorContains(t, err, d.RunDir(in.Run))
	require.FileExists(t, now.intentPath(in.Run))
	require.Empty(t, ended)
	lock.Release()
	require.NoError(t, second(now.Clean(context.Background(), in.Run, false)))
	require.Len(t, ended, 1)
	requireOnly(t, d)
	requireOnly(t, &now)

	link := filepath.Join(t.TempDir(), "link") // the same by another name is no other
	require.NoError(t, os.Symlink(d.Temp, link))
	require.NoError(t, second(reserve(d, runID("a"), "1.1", noon)))
	now.Temp = link
	lock, err = now.Lock(runID("a"), true)
	require.NoError(t, err)
	require.NoError(t, second(now.Clean(context.Background(), runID("a"), false)))
	lock.Release()
	requireOnly(t, d)
}

// Somebody removes the lock of the dump directory while a run reserves its id: another
// may reserve at the same time, and both have ids of their own.
func TestLockThatIsRemovedWhileItIsHeld(t *testing.T) {
	d := newFaulty(t)
	for _, dir := range []string{d.behind.Dump, d.behind.Temp} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
	}
	var other Intent
	var failed error
	d.fs.Hook(func(op faultfs.Op) syscall.Errno {
		if op.Kind == faultfs.Create && strings.Contains(op.Path, runID("a")) && other.Run == "" {
			if failed = os.Remove(filepath.Join(d.behind.Dump, lockName)); failed == nil {
				other, failed = reserve(d.behind, runID("b"), "1.1", noon)
			}
		}
		return 0
	})
	in, err := reserve(d.Directory, runID("a"), "1.1", noon)
	require.NoError(t, err)
	require.NoError(t, failed)
	require.NotEmpty(t, other.Set)
	require.NotEqual(t, other.Set, in.Set)
	in2, err := d.behind.ReadIntent(in.Run)
	require.NoError(t, err)
	require.Equal(t, in.Set, in2.Set)
}

// The highest fence is no attempt that nobody may clean.
func TestStagingOfTheHighestFence(t *testing.T) {
	d := newDirectory(t)
	path := filepath.Join(d.PostgresParent(), runID("a")+".9223372036854775807-aaaaaaaa")
	mark(t, path, runID("a"))
	require.NoError(t, second(d.Clean(context.Background(), runID("a"), false)))
	_, err := os.Lstat(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
}
