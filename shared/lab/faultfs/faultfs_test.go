package faultfs

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What a file system under test relies on passes through.
func TestPassesThrough(t *testing.T) {
	dir := t.TempDir()
	f := Mount(t, dir)
	a, b := f.Path+"/a", f.Path+"/b"
	require.NoError(t, os.WriteFile(a, []byte("one"), 0o600))
	at := time.Unix(1e9, 7)
	require.NoError(t, os.Chtimes(a, at, at))
	var inside, behind unix.Stat_t
	require.NoError(t, unix.Stat(a, &inside))
	require.NoError(t, unix.Stat(dir+"/a", &behind))
	require.Equal(t, behind.Ino, inside.Ino)
	require.Equal(t, behind.Mtim, inside.Mtim)
	require.NoError(t, os.WriteFile(b, []byte("two"), 0o600))
	require.ErrorIs(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE), unix.EEXIST)
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, f.Path+"/c", unix.RENAME_NOREPLACE))
	require.NoError(t, os.Link(b, f.Path+"/d"))
	require.ErrorIs(t, os.Link(b, f.Path+"/d"), unix.EEXIST)
	require.NoError(t, os.Mkdir(f.Path+"/dir", 0o755))
	require.NoError(t, os.WriteFile(f.Path+"/dir/in", make([]byte, 3<<20), 0o600))
	require.NoError(t, os.Rename(f.Path+"/dir", f.Path+"/other"))
	got, err := os.ReadFile(f.Path + "/other/in")
	require.NoError(t, err)
	require.Len(t, got, 3<<20)
	require.NoError(t, os.RemoveAll(f.Path+"/other"))
	entries, err := os.ReadDir(f.Path)
	require.NoError(t, err)
	require.Len(t, entries, 3)
	d, err := os.Open(f.Path)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.Sync())
}

// Every operation can fail, each by its number, and is done again when it may.
func TestEachOperationCanFail(t *testing.T) {
	f := Mount(t, t.TempDir())
	work := func() error {
		if err := os.WriteFile(f.Path+"/x", []byte("content"), 0o600); err != nil {
			return err
		}
		if _, err := os.ReadFile(f.Path + "/x"); err != nil {
			return err
		}
		if _, err := os.ReadDir(f.Path); err != nil {
			return err
		}
		if err := os.Rename(f.Path+"/x", f.Path+"/y"); err != nil {
			return err
		}
		return os.Remove(f.Path + "/y")
	}
	seen := map[string]bool{}
	failed := 0
	for k := 1; ; k++ {
		f.Hook(func(op Op) syscall.Errno {
			if op.N == k {
				seen[op.Kind] = true
				return syscall.EIO
			}
			return 0
		})
		err := work()
		n := f.Count()
		f.Hook(nil)
		_ = os.Remove(f.Path + "/x")
		_ = os.Remove(f.Path + "/y")
		if n < k {
			require.NoError(t, err)
			break
		}
		if err != nil { // os.ReadFile does without the size, and close's error is nobody's
			require.ErrorIs(t, err, syscall.EIO, "operation %d", k)
			failed++
		}
	}
	for _, kind := range []string{Lookup, Create, Write, Flush, Open, Read, Opendir, Readdir, Rename, Unlink} {
		require.True(t, seen[kind], "%s never came", kind)
	}
	require.Greater(t, failed, 8)
}

func TestWaitsUntilReleased(t *testing.T) {
	f := Mount(t, t.TempDir())
	asked, release := make(chan Op, 1), make(chan struct{})
	var once sync.Once
	f.Hook(func(op Op) syscall.Errno {
		if op.Kind == Mkdir {
			once.Do(func() { asked <- op })
			<-release
		}
		return 0
	})
	done := make(chan error, 1)
	go func() { done <- os.Mkdir(f.Path+"/dir", 0o755) }()
	require.Equal(t, "dir", (<-asked).Path)
	require.NoDirExists(t, filepath.Join(f.Backing, "dir"))
	close(release)
	require.NoError(t, <-done)
	require.DirExists(t, filepath.Join(f.Backing, "dir"))
}

func flock(t *testing.T, path string) error {
	t.Helper()
	l, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// Two mounts of one directory respect each other's locks, unless they are local.
func TestLocks(t *testing.T) {
	dir := t.TempDir()
	a, b, local := Mount(t, dir), Mount(t, dir), Mount(t, dir, LocalLocks())
	require.NoError(t, flock(t, a.Path+"/lock"))
	require.ErrorIs(t, flock(t, b.Path+"/lock"), unix.EWOULDBLOCK)
	require.ErrorIs(t, flock(t, a.Path+"/lock"), unix.EWOULDBLOCK)
	require.ErrorIs(t, flock(t, dir+"/lock"), unix.EWOULDBLOCK)
	require.NoError(t, flock(t, local.Path+"/lock"))
	require.ErrorIs(t, flock(t, local.Path+"/lock"), unix.EWOULDBLOCK)
}

func TestUnmountsUnderOpenFilesAndDies(t *testing.T) {
	f := Mount(t, t.TempDir())
	require.NoError(t, os.WriteFile(f.Path+"/x", []byte("content"), 0o600))
	x, err := os.Open(f.Path + "/x")
	require.NoError(t, err)
	defer x.Close()
	require.NoError(t, f.Unmount())
	require.NoFileExists(t, f.Path+"/x")
	_, err = x.Read(make([]byte, 3))
	require.NoError(t, err, "an open file goes on")
	x.Close()
	again := Mount(t, f.Backing, At(f.Path))
	require.FileExists(t, f.Path+"/x")
	require.NoError(t, again.Die())
	_, err = os.Stat(f.Path + "/x")
	require.ErrorIs(t, err, syscall.ENOTCONN)
}
