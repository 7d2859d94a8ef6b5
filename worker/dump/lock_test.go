package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLock(t *testing.T) {
	d := newDirectory(t)
	_, err := d.Lock(runID("a"), false)
	require.ErrorIs(t, err, fs.ErrNotExist)
	l, err := d.Lock(runID("a"), true)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), mode(t, d.RunDir(runID("a"))))
	require.Equal(t, os.FileMode(0o600), mode(t, lockPath(d.Temp, runID("a"))))
	for _, take := range takers(d, runID("a")) {
		_, err = take()
		require.ErrorIs(t, err, ErrHeld)
	}
	require.True(t, l.Holds())
	require.NoError(t, os.RemoveAll(d.RunDir(runID("a"))))
	require.False(t, l.Holds())
	_, err = d.Lock(runID("a"), true)
	require.ErrorIs(t, err, ErrHeld, "its attempt lives until it has noticed")
	l.Release()
	other, err := d.Lock(runID("a"), true)
	require.NoError(t, err)
	require.False(t, l.Holds(), "the directory of that name is another one")
	other.Release()
	require.FileExists(t, lockPath(d.Temp, runID("a")), "the run goes on")
	_, err = d.Lock("../x", true)
	require.Error(t, err)
}

func takers(d *Directory, id string) []func() (*Lock, error) {
	return []func() (*Lock, error){
		func() (*Lock, error) { return d.Lock(id, true) },
		func() (*Lock, error) { return d.Lock(id, false) },
		func() (*Lock, error) { return d.LockToClean(id) },
	}
}

// Workers of before lock the directory alone. Theirs and ours respect each other, and
// who finds one of the two locks held keeps neither.
func TestLockOfBeforeCounts(t *testing.T) {
	d := newDirectory(t)
	l, err := d.Lock(runID("a"), true)
	require.NoError(t, err)
	before, err := os.Open(d.RunDir(runID("a")))
	require.NoError(t, err)
	defer before.Close()
	require.Equal(t, unix.EWOULDBLOCK, unix.Flock(int(before.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	l.Release()
	require.NoError(t, unix.Flock(int(before.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	for _, take := range takers(d, runID("a")) {
		_, err := take()
		require.ErrorIs(t, err, ErrHeld)
		f, err := takeFlock(lockPath(d.Temp, runID("a")), unix.O_RDWR)
		require.NoError(t, err, "both or none")
		f.Close()
	}
}

// Over NFS a directory's lock is on one host only. Here it is not taken at all: the
// file's alone keeps two attempts apart.
func TestLockIsOnARegularFile(t *testing.T) {
	d := newDirectory(t)
	_, err := d.Lock(runID("a"), true)
	require.NoError(t, err)
	require.NoError(t, os.Rename(d.RunDir(runID("a")), d.Temp+"/aside")) // as another host's lock on it: not seen here
	for _, take := range takers(d, runID("a")) {
		_, err := take()
		require.ErrorIs(t, err, ErrHeld)
	}
	f, err := os.OpenFile(lockPath(d.Temp, runID("a")), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, unix.EWOULDBLOCK, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	flags, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	require.NoError(t, err)
	require.Contains(t, string(flags), "flags:")
}

func TestLockLostUnderUs(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, d *Directory, l *Lock){
		"unlocked and taken by another": func(t *testing.T, d *Directory, l *Lock) {
			require.NoError(t, unix.Flock(int(l.files[0].Fd()), unix.LOCK_UN))
			f, err := takeFlock(lockPath(d.Temp, runID("a")), unix.O_RDWR)
			require.NoError(t, err)
			t.Cleanup(func() { f.Close() })
		},
		"its file removed":   func(t *testing.T, d *Directory, l *Lock) { require.NoError(t, os.Remove(lockPath(d.Temp, runID("a")))) },
		"its file made anew": remake,
		"the directory made anew": func(t *testing.T, d *Directory, l *Lock) {
			require.NoError(t, os.Remove(d.RunDir(runID("a"))+"/"+ownerName))
			require.NoError(t, os.Remove(d.RunDir(runID("a"))))
			require.NoError(t, d.makeRunDir(runID("a")))
		},
		"the temp directory away": func(t *testing.T, d *Directory, l *Lock) { require.NoError(t, os.Rename(d.Temp, d.Temp+".away")) },
		"its descriptor closed":   func(t *testing.T, d *Directory, l *Lock) { require.NoError(t, l.files[0].Close()) },
		"the other worker's of before": func(t *testing.T, d *Directory, l *Lock) {
			require.NoError(t, unix.Flock(int(l.files[1].Fd()), unix.LOCK_UN))
			f, err := takeFlock(d.RunDir(runID("a")), unix.O_RDONLY)
			require.NoError(t, err)
			t.Cleanup(func() { f.Close() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			l, err := d.Lock(runID("a"), true)
			require.NoError(t, err)
			require.True(t, l.Holds())
			lose(t, d, l)
			require.False(t, l.Holds())
		})
	}
}

func remake(t *testing.T, d *Directory, _ *Lock) {
	path := lockPath(d.Temp, runID("a"))
	require.NoError(t, os.WriteFile(path+"x", nil, 0o600))
	require.NoError(t, os.Rename(path+"x", path))
}

// A marker that cannot be read may be another's: it is not written over.
func TestLockWritesOverNoMarker(t *testing.T) {
	for name, content := range map[string]string{"damaged": "{", "of another run": `{"run":"` + runID("b") + `"}`} {
		d := newDirectory(t)
		require.NoError(t, os.Mkdir(d.RunDir(runID("a")), 0o700))
		marker := filepath.Join(d.RunDir(runID("a")), ownerName)
		require.NoError(t, os.WriteFile(marker, []byte(content), 0o600))
		_, err := d.Lock(runID("a"), true)
		require.ErrorContains(t, err, "move it away", name)
		b, err := os.ReadFile(marker)
		require.NoError(t, err)
		require.Equal(t, content, string(b))
		l, err := d.LockToClean(runID("a"))
		require.NoError(t, err)
		l.Release()
	}
	d := newDirectory(t)
	require.NoError(t, os.MkdirAll(filepath.Join(d.RunDir(runID("a")), ownerName), 0o700)) // EISDIR: any error but that it is not there
	_, err := d.Lock(runID("a"), true)
	require.ErrorContains(t, err, "is a directory")
}

// What follows a symbolic link planted there would lock another's file.
func TestLockFollowsNoLink(t *testing.T) {
	d := newDirectory(t)
	require.NoError(t, os.Symlink("/etc/hostname", lockPath(d.Temp, runID("a"))))
	for _, take := range takers(d, runID("a"))[:1] {
		_, err := take()
		require.ErrorIs(t, err, unix.ELOOP)
	}
	_, err := d.LockToClean(runID("a"))
	require.ErrorIs(t, err, unix.ELOOP, "a lock that cannot be looked at may be held")
}

// To clean takes no byte: on a full disk, in an emptied and in a missing temp directory.
func TestLockToCleanNeedsNothing(t *testing.T) {
	d := newDirectory(t)
	full := smallDisk(t)
	d.Temp = full
	l, err := d.LockToClean(runID("a"))
	require.NoError(t, err, "nothing of the run is there")
	l.Release()
	require.NoError(t, os.Mkdir(d.RunDir(runID("b")), 0o700)) // a left-over of a version before
	fillInodes(t, full)
	_, err = d.Lock(runID("c"), true)
	require.ErrorIs(t, err, unix.ENOSPC)
	for _, take := range takers(d, runID("b"))[1:] {
		l, err := take()
		require.NoError(t, err)
		require.True(t, l.Holds())
		_, err = takeFlock(d.RunDir(runID("b")), unix.O_RDONLY)
		require.ErrorIs(t, err, ErrHeld)
		l.Release()
	}
	l, err = d.LockToClean(runID("c"))
	require.NoError(t, err)
	require.True(t, l.Holds())
	l.Release()
	d.Temp += "/none"
	l, err = d.LockToClean(runID("c"))
	require.NoError(t, err)
	l.Release()
}

func smallDisk(t *testing.T) string {
	dir := t.TempDir()
	require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, "size=64k,nr_inodes=16"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func fillInodes(t *testing.T, dir string) {
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprint("full", i)), nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			return
		}
		require.NoError(t, err)
	}
}

// Where nothing of the run is left, its lock file goes with the lock; what a kill
// leaves is swept, unless somebody holds it or the run is still there.
func TestLockFilesGo(t *testing.T) {
	d := newDirectory(t)
	l, err := d.Lock(runID("a"), true)
	require.NoError(t, err)
	require.NoError(t, removeOwned(d.RunDir(runID("a"))))
	l.Release()
	requireOnlyTemp(t, d)
	l, err = d.LockToClean(runID("a"))
	require.NoError(t, err)
	l.Release()
	requireOnlyTemp(t, d)

	held, err := d.LockToClean(runID("b"))
	require.NoError(t, err)
	there, err := d.Lock(runID("c"), true)
	require.NoError(t, err)
	there.Release()
	for _, name := range []string{"." + runID("d") + ".lock", ".x.lock", ".foreign.lock"} {
		require.NoError(t, os.WriteFile(filepath.Join(d.Temp, name), nil, 0o600))
	}
	require.NoError(t, d.RemoveLoneLocks())
	requireOnlyTemp(t, d, "."+runID("b")+".lock", "."+runID("c")+".lock", runID("c"), ".x.lock", ".foreign.lock")
	held.Release()
	requireOnlyTemp(t, d, "."+runID("c")+".lock", runID("c"), ".x.lock", ".foreign.lock")
}

func requireOnlyTemp(t *testing.T, d *Directory, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(d.Temp)
	require.NoError(t, err)
	got := []string{}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	require.ElementsMatch(t, names, got)
}

// A file system that hangs does not hold up who asks, and in the end the lock counts as lost.
func TestLockOnAFileSystemThatHangs(t *testing.T) {
	d := newDirectory(t)
	l, err := d.Lock(runID("a"), true)
	require.NoError(t, err)
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	// Nobody answers for this one: a look below it waits until its descriptor is closed.
	require.NoError(t, unix.Mount("hanging", d.Temp, "fuse", unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)))
	defer func() { _ = unix.Unmount(d.Temp, unix.MNT_DETACH) }()
	begin := time.Now()
	require.True(t, l.Holds(), "it does not answer: nothing contradicts the lock yet")
	require.Less(t, time.Since(begin), 2*time.Second)
	l.look.begun = l.look.begun.Add(-lookLimit)
	require.False(t, l.Holds())
	require.NoError(t, unix.Close(fuse))
	deadline := time.Now().Add(5 * time.Second)
	for l.Holds() { // the connection is gone: ENOTCONN
		require.True(t, time.Now().Before(deadline))
	}
}

// Many processes lock, find their run gone, remove and make it again: never two at once.
func TestLockKeepsProcessesApart(t *testing.T) {
	if dir := os.Getenv("DUMP_TEST_LOCK"); dir != "" {
		lockOften(t, &Directory{Dump: dir + "/dump", Temp: dir + "/temp", Instance: "catalog", Node: "host1"})
		return
	}
	root := t.TempDir()
	for _, n := range []string{"dump", "temp"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, n), 0o700))
	}
	var all []*exec.Cmd
	for range 3 {
		c := exec.Command(os.Args[0], "-test.run", "^TestLockKeepsProcessesApart$")
		c.Env = append(os.Environ(), "DUMP_TEST_LOCK="+root)
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		c.Stdout = os.Stderr
		require.NoError(t, c.Start())
		all = append(all, c)
	}
	for _, c := range all {
		require.NoError(t, c.Wait())
	}
}

func lockOften(t *testing.T, d *Directory) {
	id := runID("a")
	inside := filepath.Join(d.Dump, "inside")
	done := 0
	for deadline := time.Now().Add(2 * time.Minute); done < 100; {
		require.True(t, time.Now().Before(deadline), "%d turns", done)
		l, err := takers(d, id)[done%3]()
		if errors.Is(err, ErrHeld) || errors.Is(err, fs.ErrNotExist) {
			if errors.Is(err, fs.ErrNotExist) {
				done++
			}
			continue
		}
		require.NoError(t, err)
		require.NoError(t, os.Mkdir(inside, 0o700), "two hold the lock")
		require.NoError(t, os.Remove(inside))
		if done%2 == 0 {
			require.NoError(t, removeOwned(d.RunDir(id)))
		}
		l.Release()
		done++
	}
}
