package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"catalog-backup/shared/lab/faultfs"
	"catalog-backup/shared/run"
	"catalog-backup/worker/stage"

	"github.com/stretchr/testify/require"
)

// faulty is a pair of directories on a file system whose operations can be let fail, and
// the same behind it, where they cannot.
type faulty struct {
	*Directory
	fs     *faultfs.FS
	behind *Directory
}

func newFaulty(t *testing.T) *faulty {
	f := faultfs.Mount(t, t.TempDir())
	at := func(root string) *Directory {
		return &Directory{Dump: root + "/dump", Temp: root + "/temp", Instance: "catalog", Node: "node1"}
	}
	d := &faulty{at(f.Path), f, at(f.Backing)}
	d.EndLeftover = func(context.Context, string) error { return nil }
	return d
}

// begin makes a run whose commit was cut short after that many renames, and empties
// what was there before.
func (d *faulty) begin(t *testing.T, cut int) []CommitFile {
	t.Helper()
	for _, dir := range []string{d.behind.Dump, d.behind.Temp} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, removeWithin(dir, func(name string) bool { return name == lockName })) // it stays, always
	}
	b := d.behind
	temp := b.Temp
	b.Temp = d.Temp // as the intent names it
	_, files := parts(t, b, runID("a"), 2)
	b.Temp = temp
	require.ErrorIs(t, b.Commit(runID("a"), files, func() error { return run.ErrFenced }), run.ErrFenced)
	for _, f := range files[:cut] {
		require.NoError(t, os.Rename(filepath.Join(b.Dump, f.Part), filepath.Join(b.Dump, f.Final)))
	}
	write(t, filepath.Join(b.PostgresParent(), runID("a")+".1-aaaaaaaa", "repo", "x"))
	mark(t, filepath.Join(b.PostgresParent(), runID("a")+".1-aaaaaaaa"), runID("a"))
	mark(t, b.RunDir(runID("a")), runID("a"))
	write(t, filepath.Join(b.RunDir(runID("a")), "postgres.1-aaaaaaaa", "1.pid"))
	return files
}

// whole tells how many of the final names are there.
func (d *faulty) whole(files []CommitFile) (n int) {
	for _, f := range files {
		if fi, err := os.Stat(filepath.Join(d.behind.Dump, f.Final)); err == nil && fi.Size() == f.Size {
			n++
		}
	}
	return n
}

// each lets the operation k of do fail, alone or with all after it, for every k, and
// looks what came of it. What fails the same call as its next operation does is left
// out: the way to it, and all but the first entry of a directory.
func (d *faulty) each(t *testing.T, errno syscall.Errno, forever bool, before func(), do func(), after func(k int)) {
	t.Helper()
	for k := int64(1); ; k++ {
		before()
		var n atomic.Int64
		var last atomic.Value
		d.fs.Hook(func(op faultfs.Op) syscall.Errno {
			onTheWay := op.Kind == faultfs.Lookup && filepath.Dir(op.Path) == "." || op.Kind == faultfs.Flush
			if at := op.Kind + op.Path; onTheWay || last.Swap(at) == at && op.Kind == faultfs.Readdir {
				if forever && n.Load() >= k {
					return errno
				}
				return 0
			}
			if now := n.Add(1); now == k || forever && now > k {
				return errno
			}
			return 0
		})
		do()
		d.fs.Hook(nil)
		after(int(k))
		if n.Load() < k {
			t.Logf("%d operations", k-1)
			return
		}
	}
}

// Whatever fails in a cleanup, at any of its operations: what is committed stays, a set is
// told only where it stands, and once the fault is over the cleanup comes to its end.
func TestCleanSurvivesEveryFault(t *testing.T) {
	for _, c := range []struct {
		cut     int
		forward bool
		errno   syscall.Errno
		forever bool
	}{
		{5, false, syscall.EIO, false}, {5, true, syscall.ESTALE, true}, {3, true, syscall.EACCES, false}, {4, true, syscall.EIO, true},
		{3, false, syscall.EIO, false}, {4, false, syscall.EIO, true},
	} {
		t.Run(fmt.Sprintf("%d renames, forward %v, %v, for ever %v", c.cut, c.forward, c.errno, c.forever), func(t *testing.T) {
			t.Parallel()
			d := newFaulty(t)
			var files []CommitFile
			var stands, ended bool
			var err error
			d.EndLeftover = func(context.Context, string) error { ended = true; return nil }
			must := c.cut == 5 || c.forward // nothing but a fault keeps the set from standing
			d.each(t, c.errno, c.forever, func() { files, ended = d.begin(t, c.cut), false }, func() {
				stands, err = d.Clean(context.Background(), runID("a"), c.forward)
			}, func(k int) {
				if stands {
					require.Equal(t, 5, d.whole(files), "operation %d: %v", k, err)
				}
				if _, gone := os.Stat(filepath.Join(d.behind.RunDir(runID("a")), "postgres.1-aaaaaaaa", "1.pid")); gone != nil {
					require.True(t, ended, "operation %d: what a process writes into was removed under it", k)
				}
				if err == nil {
					require.Equal(t, must, stands, "operation %d", k)
				}
				if c.cut == 5 {
					require.Equal(t, 5, d.whole(files), "operation %d: %v", k, err)
				}
				stands, err = d.Clean(context.Background(), runID("a"), c.forward)
				require.NoError(t, err, "the fault is over; operation %d", k)
				if err == nil && stands != must { // the first one may have removed the intent already
					m, err := d.Standing(runID("a"), "202109232027_1-1")
					require.NoError(t, err)
					require.Equal(t, must, m != nil, "operation %d", k)
				}
				if must {
					requireOnly(t, d.behind, finals(files)...)
				} else {
					requireOnly(t, d.behind)
				}
			})
		})
	}
}

// A commit that cannot be finished, whatever fails and wherever its next attempt is killed:
// nothing goes from a final name, the run fails, and its cleanup takes back what is ours.
func TestBrokenCommitSurvivesEveryFault(t *testing.T) {
	for _, forever := range []bool{false, true} {
		t.Run(fmt.Sprint("for ever ", forever), func(t *testing.T) {
			t.Parallel()
			d := newFaulty(t)
			d.each(t, syscall.EIO, forever, func() {
				files := d.begin(t, 1)
				require.NoError(t, os.Remove(filepath.Join(d.behind.Dump, files[2].Part)))
			}, func() { _, _ = d.Recover(runID("a")) }, func(k int) {
				stands, err := d.Recover(runID("a"))
				require.True(t, stage.IsPermanent(err), "operation %d: %v", k, err)
				require.False(t, stands)
				require.FileExists(t, filepath.Join(d.behind.Dump, "202109232027_1-1_alation_backup.tar.gz"))
				stands, err = d.Clean(context.Background(), runID("a"), true)
				require.NoError(t, err)
				require.False(t, stands)
				requireOnly(t, d.behind)
			})
		})
	}
}

// Any name that is not seen, though it is there: no set is lost by it.
func TestNoSetIsLostByWhatIsNotSeen(t *testing.T) {
	d := newFaulty(t)
	var files []CommitFile
	d.each(t, syscall.ENOENT, false, func() { files = d.begin(t, 5) }, func() { _, _ = d.Clean(context.Background(), runID("a"), false) }, func(k int) {
		require.Equal(t, 5, d.whole(files), "operation %d", k)
	})
}

// The sweeper finds what is left, whatever failed before.
func TestSweepSurvivesEveryFault(t *testing.T) {
	d := newFaulty(t)
	var files []CommitFile
	sweep := func() error {
		left, err := d.Leftovers()
		for _, r := range left {
			_, cerr := d.Clean(context.Background(), r, true)
			err = errors.Join(err, cerr)
		}
		return errors.Join(err, d.RemoveDebris())
	}
	d.each(t, syscall.EIO, false, func() { files = d.begin(t, 5) }, func() { _ = sweep() }, func(k int) {
		require.Equal(t, 5, d.whole(files), "operation %d", k)
		require.NoError(t, sweep())
		requireOnly(t, d.behind, finals(files)...)
	})
}

// A commit whose every operation fails once, or from then on: the next attempt's Recover
// finishes it, or the cleanup takes it back.
func TestCommitSurvivesEveryFault(t *testing.T) {
	for _, forever := range []bool{false, true} {
		t.Run(fmt.Sprint("for ever ", forever), func(t *testing.T) {
			t.Parallel()
			d := newFaulty(t)
			var files []CommitFile
			var err error
			d.each(t, syscall.EIO, forever, func() { files = d.begin(t, 0) }, func() { err = d.Commit(runID("a"), files, yes) }, func(k int) {
				if err == nil {
					require.Equal(t, 5, d.whole(files), "operation %d", k)
				}
				before := d.whole(files)
				stands, err := d.Recover(runID("a"))
				require.NoError(t, err)
				require.True(t, stands, "operation %d, %d renames were done", k, before)
				require.Equal(t, 5, d.whole(files))
			})
		})
	}
}

// A run reserves one id, whatever fails: never two, and never another run's.
func TestReserveSurvivesEveryFault(t *testing.T) {
	d := newFaulty(t)
	for _, forever := range []bool{false, true} {
		d.each(t, syscall.EIO, forever, func() {
			d.begin(t, 5)
			require.NoError(t, second(reserve(d.behind, runID("b"), "1.1", noon)))
		}, func() {
			if in, err := reserve(d.Directory, runID("a"), "1.1", noon); err == nil {
				require.EqualValues(t, "202109232027_1-1", in.Set)
			}
			_, _ = reserve(d.Directory, runID("c"), "1.1", noon)
		}, func(k int) {
			a, err := reserve(d.Directory, runID("a"), "1.1", noon)
			require.NoError(t, err)
			require.EqualValues(t, "202109232027_1-1", a.Set, "operation %d: the intent was written anew", k)
			require.NotNil(t, a.Commit)
			b, err := reserve(d.Directory, runID("b"), "1.1", noon)
			require.NoError(t, err)
			require.EqualValues(t, "202109232028_1-1", b.Set)
			c, err := reserve(d.Directory, runID("c"), "1.1", noon)
			require.NoError(t, err)
			require.NotContains(t, []string{"202109232027_1-1"}, string(c.Set), "operation %d", k)
		})
	}
}

// An attempt stages in what it made alone, whatever failed.
func TestStagingSurvivesEveryFault(t *testing.T) {
	d := newFaulty(t)
	d.each(t, syscall.EIO, false, func() { d.begin(t, 5) }, func() {
		_, _ = d.PostgresStaging(runID("a"), run.Hold{Fence: 2, Token: "bbbbbbbb"})
	}, func(k int) {
		path, err := d.PostgresStaging(runID("a"), run.Hold{Fence: 3, Token: "cccccccc"})
		require.NoError(t, err, "operation %d", k)
		entries, err := os.ReadDir(filepath.Join(path, ".."))
		require.NoError(t, err)
		require.Len(t, entries, 1)
		require.NoError(t, second(d.Clean(context.Background(), runID("a"), false)))
		require.NoDirExists(t, d.behind.PostgresParent())
	})
}

// A server does a rename and its answer is lost: the caller sees an error, or that a file
// is there already, which is its own.
func TestRenameWhoseAnswerIsLost(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EEXIST, syscall.EIO} {
		d := newFaulty(t)
		for lost := range 5 {
			files := d.begin(t, 0)
			n := 0
			d.fs.Hook(func(op faultfs.Op) syscall.Errno {
				if op.Kind == faultfs.Rename && strings.HasSuffix(op.Path, ".part") {
					if n++; n == lost+1 {
						if os.Rename(filepath.Join(d.fs.Backing, op.Path), filepath.Join(d.fs.Backing, op.To)) == nil {
							return errno
						}
					}
				}
				return 0
			})
			err := d.Commit(runID("a"), files, yes)
			d.fs.Hook(nil)
			if errno == syscall.EEXIST {
				require.NoError(t, err, "rename %d", lost)
			} else {
				require.Error(t, err)
			}
			stands, err := d.Clean(context.Background(), runID("a"), true)
			require.NoError(t, err)
			require.True(t, stands, "rename %d", lost)
			requireOnly(t, d.behind, finals(files)...)
		}
	}
}
