package dump

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab/faultfs"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// oddFiles are what may bear the name of a file of ours and is none.
var oddFiles = map[string]func(path string) error{
	"fifo":          func(path string) error { return unix.Mkfifo(path, 0o600) },
	"directory":     func(path string) error { return os.Mkdir(path, 0o700) },
	"endless":       func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) }, // zero
	"socket":        func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
	"dangling link": func(path string) error { return os.Symlink("/nonexistent/x", path) },
	"link to fifo": func(path string) error {
		return errors.Join(unix.Mkfifo(path+".far", 0o600), os.Symlink(path+".far", path))
	},
	"link to itself": func(path string) error { return os.Symlink(path, path) },
	"gigabytes": func(path string) error {
		return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 3<<30))
	},
}

// inTime fails where do hangs, and where it takes much memory.
func inTime(t *testing.T, do func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it hangs")
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(32<<20))
}

// Whatever bears the name of a manifest hangs nobody, takes no memory, is told, and counts
// as unknown: never as not there.
func TestOddManifests(t *testing.T) {
	id := set.ID("202109230000_1-1")
	for name, create := range oddFiles {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			path := filepath.Join(d.Dump, id.ManifestName())
			require.NoError(t, create(path))
			inTime(t, func() {
				in, warnings, err := d.Reserve(context.Background(), runID("a"), "1.1", noon)
				require.NoError(t, err)
				require.Equal(t, set.ID("202109232027_1-1"), in.Set)
				require.Contains(t, strings.Join(warnings, "\n"), path)
				l, err := set.List(d.Dump)
				require.NoError(t, err)
				require.Contains(t, strings.Join(l.Problems, "\n"), path)
				m, err := d.Standing(runID("c"), id)
				require.ErrorContains(t, err, path)
				require.NotErrorIs(t, err, fs.ErrNotExist)
				require.Nil(t, m)
				m, err = d.Standing(runID("c"), "")
				require.NoError(t, err)
				require.Nil(t, m)
			})
		})
	}
}

// The same of the notes of runs: none is followed through a link.
func TestOddNotes(t *testing.T) {
	for name, create := range oddFiles {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			intent, dir := d.intentPath(runID("z")), filepath.Join(d.RunDir(runID("o")), "postgres.1")
			require.NoError(t, os.MkdirAll(dir, 0o700))
			require.NoError(t, create(intent))
			require.NoError(t, create(filepath.Join(d.RunDir(runID("o")), ownerName)))
			require.NoError(t, create(filepath.Join(dir, resultName)))
			inTime(t, func() {
				for what, err := range map[string]error{
					intent:     second(d.ReadIntent(runID("z"))),
					ownerName:  second(readOwner(d.RunDir(runID("o")))),
					resultName: ReadResult(dir, new(any)),
					d.Dump:     second(d.Leftovers()),
				} {
					require.ErrorContains(t, err, what)
					require.NotErrorIs(t, err, fs.ErrNotExist)
				}
				_, warnings, err := d.Reserve(context.Background(), runID("a"), "1.1", noon)
				require.NoError(t, err)
				require.Contains(t, strings.Join(warnings, "\n"), intent)
			})
		})
	}
}

// A manifest on another disk, by a link, is a manifest.
func TestLinkedManifest(t *testing.T) {
	d := newDirectory(t)
	in, files := parts(t, d, runID("a"), 2)
	require.NoError(t, d.Commit(in.Run, files, func() error { return nil }))
	path, far := filepath.Join(d.Dump, in.Set.ManifestName()), filepath.Join(t.TempDir(), "m")
	require.NoError(t, os.Rename(path, far))
	require.NoError(t, os.Symlink(far, path))
	m, err := d.Standing(in.Run, in.Set)
	require.NoError(t, err)
	require.Equal(t, in.Run, m.Run)
	require.NoError(t, os.Rename(far, far+".away"))
	_, err = d.Standing(in.Run, in.Set)
	require.ErrorContains(t, err, "leads nowhere now")
}

// The lock of the dump directory is not held while the disk of another's manifest hangs.
func TestReserveBesideADiskThatHangs(t *testing.T) {
	far := faultfs.Mount(t, t.TempDir())
	d := newDirectory(t)
	d.oneRead = 100 * time.Millisecond
	id := set.ID("202109230000_1-1")
	require.NoError(t, os.Symlink(filepath.Join(far.Path, "m"), filepath.Join(d.Dump, id.ManifestName())))
	hang := make(chan struct{})
	far.Hook(func(faultfs.Op) syscall.Errno { <-hang; return 0 })
	defer close(hang)
	for _, r := range []string{"a", "b"} {
		inTime(t, func() {
			_, warnings, err := d.Reserve(context.Background(), runID(r), "1.1", noon)
			require.NoError(t, err)
			require.Contains(t, strings.Join(warnings, "\n"), id.ManifestName()+": its disk does not answer")
		})
	}
}

// No id is written that could not be read: the last minute has no next one.
func TestNoIDAfterTheLast(t *testing.T) {
	d := newDirectory(t)
	writeManifest(t, d, "999912312359_1-1", "catalog", runID("old"))
	_, err := reserve(d, runID("a"), "1.1", noon)
	require.ErrorContains(t, err, "move that set to another directory")
	require.ErrorContains(t, err, "9999-12-31")
	require.True(t, stage.IsPermanent(err))
	require.NoFileExists(t, d.intentPath(runID("a")))
}

// The lock of the dump directory is the file itself, and still is when it is used.
func TestLockOfTheDumpDirectory(t *testing.T) {
	d := newDirectory(t)
	path := filepath.Join(d.Dump, lockName)
	require.NoError(t, os.Symlink("/nonexistent/x", path))
	_, err := reserve(d, runID("a"), "1.1", noon)
	require.ErrorContains(t, err, "is a symbolic link; remove the link")
	require.NoError(t, os.Remove(path))
	require.NoError(t, second(reserve(d, runID("a"), "1.1", noon)))
	held, err := flockFile(context.Background(), path, time.Second)
	require.NoError(t, err)
	defer held.Close()
	require.NoError(t, os.Remove(path))
	require.NoError(t, second(reserve(d, runID("b"), "1.1", noon)))
	require.ErrorIs(t, flockAgain(held), errReplaced, "who reserves under it finds that it is lost")
}
