package dump

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// small mounts a file system of 4 MB, or one with few inodes, for dump and temp.
func small(t *testing.T, kind string, mkfs ...string) *Directory {
	t.Helper()
	root := t.TempDir()
	switch kind {
	case "tmpfs":
		require.NoError(t, unix.Mount("none", root, "tmpfs", 0, "size=4m"))
	case "inodes":
		require.NoError(t, unix.Mount("none", root, "tmpfs", 0, "size=64m,nr_inodes=40"))
	case "ext4":
		image := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, 8<<20))
		out, err := exec.Command("mkfs.ext4", append(append([]string{"-q", "-m", "0"}, mkfs...), image)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		out, err = exec.Command("mount", "-o", "loop", image, root).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(root, unix.MNT_DETACH)) }) // also where a test that failed holds a lock there
	d := &Directory{Dump: root + "/dump", Temp: root + "/temp", Instance: "catalog", Node: "node1"}
	require.NoError(t, os.Mkdir(d.Dump, 0o700))
	require.NoError(t, os.Mkdir(d.Temp, 0o700))
	return d
}

// fill uses up what is left, to the last byte or inode, in files of the run.
func fill(t *testing.T, kind, dir, name string) {
	t.Helper()
	require.NoError(t, ignoring(os.Mkdir(dir, 0o700), os.ErrExist))
	if kind == "inodes" {
		for i := 0; ; i++ {
			f, err := os.Create(filepath.Join(dir, fmt.Sprint(name[:len(name)-len("part")], i, ".part")))
			if err != nil {
				require.ErrorIs(t, err, unix.ENOSPC)
				return
			}
			f.Close()
		}
	}
	f, err := os.Create(filepath.Join(dir, name))
	require.NoError(t, err)
	defer f.Close()
	for _, chunk := range [][]byte{make([]byte, 64<<10), {0}} {
		for err = nil; err == nil; {
			_, err = f.Write(chunk)
		}
		require.ErrorIs(t, err, unix.ENOSPC)
	}
}

func free(t *testing.T, dir string) (bytes int64, inodes uint64) {
	t.Helper()
	var s unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &s))
	return int64(s.Bavail) * s.Bsize, s.Ffree
}

// A disk that is full to its last byte, or inode, at any step of a run: the cleanup, and
// the sweeper after a restart of the machine, get all of it back, run after run.
func TestFullDiskIsFreed(t *testing.T) {
	a := runID("a")
	hold := run.Hold{Fence: 1, Token: "aaaaaaaa"}
	part := ".202109232027_1-1_alation_backup.tar.gz." + a + ".1-aaaaaaaa.part"
	steps := []struct {
		name   string
		do     func(t *testing.T, d *Directory)
		filled func(d *Directory) string // where the run fills the disk
	}{
		{"before the intent", func(t *testing.T, d *Directory) { takeToWork(t, d, a) }, func(d *Directory) string { return filepath.Join(d.RunDir(a), "prepare.1-aaaaaaaa") }},
		{"before the staging", func(t *testing.T, d *Directory) {
			takeToWork(t, d, a)
			require.NoError(t, second(reserve(d, a, "1.1", noon)))
		},
			func(d *Directory) string { return d.Dump }},
		{"in the staging", func(t *testing.T, d *Directory) {
			takeToWork(t, d, a)
			require.NoError(t, second(reserve(d, a, "1.1", noon)))
			require.NoError(t, second(d.PostgresStaging(a, hold)))
		}, func(d *Directory) string { return filepath.Join(d.PostgresParent(), a+"."+hold.String()) }},
		{"after the parts", func(t *testing.T, d *Directory) { takeToWork(t, d, a); parts(t, d, a, 1) }, func(d *Directory) string { return d.Dump }},
		{"in the commit", func(t *testing.T, d *Directory) {
			takeToWork(t, d, a)
			_, files := parts(t, d, a, 1)
			require.ErrorIs(t, d.Commit(a, files, func() error { return run.ErrFenced }), run.ErrFenced)
			for _, f := range files[:2] {
				require.NoError(t, os.Rename(filepath.Join(d.Dump, f.Part), filepath.Join(d.Dump, f.Final)))
			}
		}, func(d *Directory) string { return d.Dump }},
	}
	for _, kind := range []string{"tmpfs", "inodes", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			d := small(t, kind)
			require.NoError(t, second(reserve(d, runID("z"), "1.1", noon))) // the lock file is made once
			require.NoError(t, second(d.Clean(context.Background(), runID("z"), false)))
			bytes, inodes := free(t, d.Dump)
			for _, s := range steps {
				for _, by := range []string{"cleanup", "sweep", "sweep after the temp directory was emptied"} {
					s.do(t, d)
					fill(t, kind, s.filled(d), part)
					err := os.WriteFile(filepath.Join(d.Dump, "more"), make([]byte, 4<<10), 0o600)
					require.ErrorIs(t, err, unix.ENOSPC, s.name)
					_ = os.Remove(filepath.Join(d.Dump, "more"))
					if by == "cleanup" {
						lock, err := d.LockToClean(a)
						require.NoError(t, err, s.name)
						require.NoError(t, second(d.Clean(context.Background(), a, false)), s.name)
						lock.Release()
					} else {
						if by != "sweep" {
							require.NoError(t, removeWithin(d.Temp, func(string) bool { return false }))
						}
						left, err := d.Leftovers()
						require.NoError(t, err)
						for _, r := range left {
							lock, err := d.LockToClean(r)
							require.NoError(t, err, s.name)
							require.NoError(t, second(d.Clean(context.Background(), r, false)), s.name)
							lock.Release()
						}
					}
					b, i := free(t, d.Dump)
					require.GreaterOrEqual(t, b, bytes-16<<10, "%s, %s", s.name, by) // ext4 keeps a directory's blocks
					require.Equal(t, inodes, i, "%s, %s", s.name, by)
					requireOnly(t, d)
				}
			}
		})
	}
}

func takeToWork(t *testing.T, d *Directory, runID string) {
	t.Helper()
	l, err := d.Lock(runID, true)
	require.NoError(t, err)
	l.Release()
}

// What is written when the disk is full fails for good, and leaves nothing that is not
// known to be the run's.
func TestFullDiskInEveryWriteOfARun(t *testing.T) {
	for room := int64(0); room <= 48<<10; room += 4 << 10 {
		d := small(t, "tmpfs")
		bytes, _ := free(t, d.Dump)
		ballast := filepath.Join(filepath.Dir(d.Dump), "ballast")
		f, err := os.Create(ballast)
		require.NoError(t, err)
		_, err = f.Write(make([]byte, bytes-room))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		_, err = func() (string, error) {
			l, err := d.Lock(runID("a"), true)
			if err != nil {
				return "", err
			}
			defer l.Release()
			in, err := reserve(d, runID("a"), "1.1", noon)
			if err != nil {
				return "", err
			}
			if _, err := d.PostgresStaging(runID("a"), run.Hold{Fence: 1}); err != nil {
				return "", err
			}
			c, err := d.WritePart(in.Set.MainName(), runID("a"), run.Hold{Fence: 2}, func(w io.Writer) error { _, err := w.Write(make([]byte, 8<<10)); return err })
			if err != nil {
				return "", err
			}
			return "", d.Commit(runID("a"), []CommitFile{c}, yes)
		}()
		if room < 16<<10 {
			require.Error(t, err)
			require.ErrorIs(t, err, unix.ENOSPC)
		}
		if err != nil {
			lock, err := d.LockToClean(runID("a"))
			require.NoError(t, err)
			require.NoError(t, second(d.Clean(context.Background(), runID("a"), false)), "%d bytes of room", room)
			lock.Release()
			requireOnly(t, d)
		}
	}
}

// Another has filled the disk, and small files the directory's last block: the manifest's
// part fits under no other name, and the run's parts go all the same.
func TestFullDirectoryIsFreed(t *testing.T) {
	d := small(t, "ext4", "-b", "1024", "-N", "4000")
	in, files := parts(t, d, runID("a"), 1)
	large := filepath.Join(d.Dump, files[0].Part)
	require.NoError(t, os.WriteFile(large, make([]byte, 1<<20), 0o600))
	files[0].Size = 1 << 20
	require.ErrorIs(t, d.Commit(in.Run, files, func() error { return run.ErrFenced }), run.ErrFenced)
	fill(t, "ext4", filepath.Dir(d.Dump), "another's.part")
	names := 0
	for ; ; names++ {
		if err := os.WriteFile(filepath.Join(d.Dump, fmt.Sprintf("x%03d", names)), nil, 0o600); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			break
		}
	}
	err := os.Rename(filepath.Join(d.Dump, files[4].Part), filepath.Join(d.Dump, in.taken()+"x"))
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, second(d.Clean(context.Background(), in.Run, false)))
	left, err := os.ReadDir(d.Dump)
	require.NoError(t, err)
	for _, e := range left {
		require.True(t, strings.HasPrefix(e.Name(), "x") || e.Name() == lockName, e.Name())
	}
}
