package dump

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/stage"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func write(t *testing.T, path string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
}

func TestPostgresStaging(t *testing.T) {
	d := newDirectory(t)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	path, err := d.PostgresStaging(runID("a"), run.Hold{Fence: 1, Token: "aaaaaaaa"})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(d.Dump, "pgbackrest", runID("a")+".1-aaaaaaaa"), path)
	require.Equal(t, os.FileMode(0o700), mode(t, path))
	require.Equal(t, os.FileMode(0o711), mode(t, filepath.Dir(path)), "pgBackRest gets there as another account")
	write(t, path+"/half")
	second, err := d.PostgresStaging(runID("a"), run.Hold{Fence: 2, Token: "bbbbbbbb"})
	require.NoError(t, err)
	require.NoDirExists(t, path, "what an earlier attempt left is gone")
	other, err := d.PostgresStaging(runID("b"), run.Hold{Fence: 1})
	require.NoError(t, err, "runs stage beside each other")
	write(t, other+"/repo/theirs")

	// An attempt that was fenced off wakes up.
	for _, h := range []run.Hold{{Fence: 1, Token: "aaaaaaaa"}, {Fence: 2, Token: "cccccccc"}} {
		require.NoError(t, d.RemovePostgresStaging(runID("a"), h))
		require.DirExists(t, second)
	}
	_, err = d.PostgresStaging(runID("a"), run.Hold{Fence: 1, Token: "aaaaaaaa"})
	require.NoError(t, err)
	require.DirExists(t, second)

	_, err = d.Clean(context.Background(), runID("a"), false)
	require.NoError(t, err)
	require.FileExists(t, other+"/repo/theirs", "another run's cleanup does not touch it")
	_, err = d.Clean(context.Background(), runID("b"), false)
	require.NoError(t, err)
	requireOnly(t, d)
}

func TestRemovePartsOfEarlierAttemptsOnly(t *testing.T) {
	d := newDirectory(t)
	part := func(hold string) string { return filepath.Join(d.Dump, ".x.tar.gz."+runID("a")+"."+hold+".part") }
	for _, h := range []string{"3", "4-aaaaaaaa", "4-bbbbbbbb", "5-cccccccc"} {
		write(t, part(h))
	}
	require.NoError(t, d.RemoveParts(runID("a"), run.Hold{Fence: 4, Token: "aaaaaaaa"}, "x.tar.gz"))
	require.NoFileExists(t, part("3"))
	require.NoFileExists(t, part("4-aaaaaaaa"))
	require.FileExists(t, part("4-bbbbbbbb"))
	require.FileExists(t, part("5-cccccccc"))
}

func TestForeignStagingIsRefusedAndStays(t *testing.T) {
	for name, plant := range map[string]func(string) error{
		"repository":     func(p string) error { return os.MkdirAll(p+"/archive", 0o755) },
		"file":           func(p string) error { return os.WriteFile(p, nil, 0o644) },
		"link":           func(p string) error { return os.Symlink("/etc", p) },
		"damaged marker": func(p string) error { _ = os.Mkdir(p, 0o755); return os.WriteFile(p+"/"+ownerName, []byte("{"), 0o644) },
		"link of a run's name": func(p string) error {
			_ = os.Mkdir(p, 0o755)
			return os.Symlink("/etc", filepath.Join(p, runID("a")+".1"))
		},
	} {
		d := newDirectory(t)
		require.NoError(t, plant(filepath.Join(d.Dump, "pgbackrest")))
		for _, err := range []error{d.Check(runID("a")), second(d.PostgresStaging(runID("a"), run.Hold{Fence: 1}))} {
			require.ErrorContains(t, err, "move it away", name)
			require.True(t, stage.IsPermanent(err))
		}
		left, err := d.Leftovers()
		require.NoError(t, err)
		require.Empty(t, left)
		_, err = d.Clean(context.Background(), runID("a"), true)
		require.NoError(t, err)
		d.Now = func() time.Time { return time.Now().Add(48 * time.Hour) }
		require.NoError(t, d.RemoveDebris())
		requireOnly(t, d, "pgbackrest")
	}
}

// A kill between any two steps of making and of removing the staging: the next attempt,
// the cleanup and the sweeper go on, and another run is not refused.
func TestStagingKilledBetweenAnyTwoSteps(t *testing.T) {
	child := runID("a") + ".1-aaaaaaaa"
	for name, left := range map[string]func(p string){
		"the parent":                         func(p string) { require.NoError(t, os.Mkdir(p, 0o700)) },
		"no marker":                          func(p string) { require.NoError(t, os.MkdirAll(p+"/"+child, 0o700)) },
		"half a marker":                      func(p string) { write(t, p+"/"+child+"/."+ownerName+".123.new") },
		"half removed, marked":               func(p string) { mark(t, p+"/"+child, runID("a")); write(t, p+"/"+child+"/repo/x") },
		"marker only":                        func(p string) { mark(t, p+"/"+child, runID("a")) },
		"of an earlier version":              func(p string) { mark(t, p, runID("a")); write(t, p+"/repo/x") },
		"of an earlier version, marker only": func(p string) { mark(t, p, runID("a")) },
	} {
		for does, then := range map[string]func(d *Directory) error{
			"attempt": func(d *Directory) error { return second(d.PostgresStaging(runID("a"), run.Hold{Fence: 2})) },
			"cleanup": func(d *Directory) error { return second(d.Clean(context.Background(), runID("a"), false)) },
			"sweep": func(d *Directory) error {
				left, err := d.Leftovers()
				for _, r := range left {
					require.NoError(t, second(d.Clean(context.Background(), r, true)))
				}
				d.Now = func() time.Time { return time.Now().Add(2 * debrisAge) }
				require.NoError(t, d.RemoveDebris())
				require.NoDirExists(t, d.PostgresParent())
				return err
			},
			"attempt of another run": func(d *Directory) error {
				if left, _ := d.Leftovers(); len(left) > 0 { // as prepare does
					require.NoError(t, second(d.Clean(context.Background(), runID("a"), true)))
				}
				require.NoError(t, d.Check(runID("b")))
				return second(d.PostgresStaging(runID("b"), run.Hold{Fence: 1}))
			},
		} {
			t.Run(name+", "+does, func(t *testing.T) {
				d := newDirectory(t)
				left(d.PostgresParent())
				require.NoError(t, then(d))
				for _, r := range []string{"a", "b"} {
					require.NoError(t, second(d.Clean(context.Background(), runID(r), false)))
				}
				requireOnly(t, d)
			})
		}
	}
}

func mark(t *testing.T, dir, runID string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ownerName), []byte(`{"run":"`+runID+`","fence":1,"instance":"catalog","node":"node1"}`), 0o600))
}

// The staging of an earlier version, which is pgbackrest itself.
func TestStagingOfAnEarlierVersion(t *testing.T) {
	d := newDirectory(t)
	p := d.PostgresParent()
	mark(t, p, runID("a"))
	write(t, p+"/repo/backup.info")
	require.NoError(t, d.Check(runID("a")), "an upgrade in the middle of the run")
	err := second(d.PostgresStaging(runID("b"), run.Hold{Fence: 1}))
	require.ErrorContains(t, err, runID("a"))
	require.False(t, stage.IsPermanent(err), "a worker will remove it")
	left, err := d.Leftovers()
	require.NoError(t, err)
	require.Equal(t, []string{runID("a")}, left)
	path, err := d.PostgresStaging(runID("a"), run.Hold{Fence: 2, Token: "aaaaaaaa"})
	require.NoError(t, err, "a new attempt replaces it")
	require.NoDirExists(t, p+"/repo")
	require.DirExists(t, path)
}

// The dump directory refuses every change, and nothing of the run is in it: what earlier
// runs left there does not keep the run from its end.
func TestCleanWhereNothingCanBeChanged(t *testing.T) {
	const immutableFlag = 0x10 // FS_IMMUTABLE_FL, linux/fs.h
	flags := func(t *testing.T, dir string, immutable bool) {
		f, err := os.Open(dir)
		require.NoError(t, err)
		defer f.Close()
		value, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		require.NoError(t, err)
		value &^= immutableFlag
		if immutable {
			value |= immutableFlag
		}
		require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, value))
	}
	for name, refuse := range map[string]func(t *testing.T, dir string){
		"read-only": func(t *testing.T, dir string) {
			require.NoError(t, unix.Mount("none", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		},
		"immutable": func(t *testing.T, dir string) {
			flags(t, dir, true)
			t.Cleanup(func() { flags(t, dir, false) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			if name == "read-only" {
				require.NoError(t, unix.Mount("none", d.Dump, "tmpfs", 0, "size=1m"))
				t.Cleanup(func() { _ = unix.Unmount(d.Dump, 0) })
			}
			before, err := d.PostgresStaging(runID("b"), run.Hold{Fence: 1})
			require.NoError(t, err)
			require.NoError(t, os.RemoveAll(before))
			lock, err := d.Lock(runID("a"), true)
			require.NoError(t, err)
			refuse(t, d.Dump)
			stands, err := d.Clean(context.Background(), runID("a"), false)
			require.NoError(t, err)
			require.False(t, stands)
			require.NoDirExists(t, d.RunDir(runID("a")))
			require.DirExists(t, d.PostgresParent())
			lock.Release()
		})
	}
}
