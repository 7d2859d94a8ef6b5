package dump

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab/faultfs"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// committed makes the set of run a, whose intent is still there.
func committed(t *testing.T, d *Directory) (set.ID, []CommitFile) {
	t.Helper()
	in, files := parts(t, d, runID("a"), 1)
	require.NoError(t, d.Commit(runID("a"), files, yes))
	return in.Set, files
}

// A manifest that cannot be read, or understood, stops the cleanup: nothing goes.
func TestManifestThatIsUnknownKeepsItsArchives(t *testing.T) {
	for name, c := range map[string]struct {
		to     string // the manifest's text becomes this
		stands bool
	}{
		"damaged":                       {"{", false},
		"empty":                         {"", false},
		"another program's":             {`{"format":"other"}`, false},
		"of a later version":            {`{"format":"catalog-backup/set","version":2,"run":"RUN","archives":{"other":1}}`, true},
		"of a later version, unknown":   {`{"format":"catalog-backup/set","version":2,"by":"RUN"}`, false},
		"of this version, new archives": {`{"format":"catalog-backup/set","version":1,"set":"202109232027_1-1","run":"RUN","archives":[{"kind":"x","name":"202109232027_1-1_alation_backup.tar.gz"}]}`, true},
	} {
		d := newDirectory(t)
		id, files := committed(t, d)
		path := filepath.Join(d.Dump, id.ManifestName())
		good, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(c.to, "RUN", runID("a"))), 0o600))
		for _, forward := range []bool{false, true} {
			stands, err := d.Clean(context.Background(), runID("a"), forward)
			require.Equal(t, c.stands, stands, name)
			require.Equal(t, c.stands, err == nil, "%s: %v", name, err)
			if err != nil {
				require.ErrorContains(t, err, id.ManifestName())
				require.FileExists(t, d.intentPath(runID("a")))
			}
			for _, f := range files {
				require.FileExists(t, filepath.Join(d.Dump, f.Final), name)
			}
			if c.stands { // the intent is gone
				break
			}
		}
		require.NoError(t, os.WriteFile(path, good, 0o600))
		stands, err := d.Clean(context.Background(), runID("a"), false)
		require.NoError(t, err)
		require.True(t, stands || c.stands)
		requireOnly(t, d, finals(files)...)
	}
}

// The disk of the dump directory is not mounted, or was moved away: that says nothing of
// a set that was reserved there. An emptied directory of ours does.
func TestDumpDirectoryThatIsNotThere(t *testing.T) {
	d := newDirectory(t)
	id, _ := committed(t, d)
	mounted := d.Dump
	d.Dump = t.TempDir() // what is beneath
	_, err := d.Standing(runID("a"), id)
	require.ErrorContains(t, err, "mount its disk")
	d.Dump += "/moved"
	for _, err := range []error{second(d.Standing(runID("a"), id)), second(d.Standing(runID("a"), "")), second(d.Leftovers()), second(d.Clean(context.Background(), runID("a"), true))} {
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	d.Dump = mounted
	m, err := d.Standing(runID("a"), id)
	require.NoError(t, err)
	require.NotNil(t, m)
	m, err = d.Standing(runID("a"), "") // a Redis that went back has forgotten the id
	require.NoError(t, err)
	require.NotNil(t, m)
	intent := "." + runID("a") + intentSuffix
	for _, proof := range []string{intent, lockName} { // either says that the directory is the one
		require.NoError(t, os.Rename(filepath.Join(d.Dump, lockName), filepath.Join(d.Dump, proof)))
		require.NoError(t, removeWithin(d.Dump, func(name string) bool { return name == proof }))
		m, err = d.Standing(runID("a"), id)
		require.NoError(t, err)
		require.Nil(t, m)
		require.NoError(t, os.Rename(filepath.Join(d.Dump, proof), filepath.Join(d.Dump, lockName)))
	}
}

// What cannot be read is told, and the other left-overs are found all the same.
func TestLeftoversThatCannotBeRead(t *testing.T) {
	d := newFaulty(t)
	d.begin(t, 5)
	require.NoError(t, second(reserve(d.behind, runID("b"), "1.1", noon)))
	mark(t, filepath.Join(d.behind.PostgresParent(), runID("c")+".1"), runID("c"))
	mark(t, d.behind.RunDir(runID("e")), runID("e"))
	bad := []string{"." + runID("b") + intentSuffix, runID("c") + ".1/" + ownerName, runID("e") + "/" + ownerName}
	d.fs.Hook(func(op faultfs.Op) syscall.Errno {
		for _, b := range bad {
			if op.Kind == faultfs.Read && strings.HasSuffix(op.Path, b) {
				return syscall.EIO
			}
		}
		return 0
	})
	left, err := d.Leftovers()
	require.Equal(t, []string{runID("a")}, left)
	for _, b := range bad {
		require.ErrorContains(t, err, strings.Split(b, "/")[0])
	}

	// Another run's intent that cannot be read is a warning of a new run.
	in, unread, err := d.Reserve(context.Background(), runID("n"), "1.1", noon)
	require.NoError(t, err)
	require.EqualValues(t, "202109232028_1-1", in.Set)
	require.Len(t, unread, 1)
	require.Contains(t, unread[0], runID("b"))
	// Both have one id now: the commit of one is refused whole, and mixes nothing.
	for _, n := range []string{"n", "b"} {
		_, files := parts(t, d.behind, runID(n), 1)
		err := d.behind.Commit(runID(n), files, yes)
		if n == "n" {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, ErrTaken)
			require.NoError(t, second(d.behind.Clean(context.Background(), runID(n), true)))
			m, err := d.behind.Standing(runID("n"), in.Set)
			require.NoError(t, err)
			require.NotNil(t, m)
			require.FileExists(t, filepath.Join(d.behind.Dump, in.Set.MainName()))
		}
	}
	// A run never overwrites its own intent, nor the marker of what it cannot read.
	d.fs.Hook(nil)
	before, err := os.ReadFile(d.behind.intentPath(runID("b")))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Empty(t, before)
	d.fs.Hook(func(op faultfs.Op) syscall.Errno {
		if op.Kind == faultfs.Read && strings.HasSuffix(op.Path, ownerName) {
			return syscall.EIO
		}
		return 0
	})
	require.ErrorIs(t, d.ownedDir(d.RunDir(runID("e")), runID("n"), 1), syscall.EIO)
	d.fs.Hook(nil)
	o, err := readOwner(d.RunDir(runID("e")))
	require.NoError(t, err)
	require.Equal(t, runID("e"), o.Run)
}

// An intent that is damaged stops its cleanup, with what to do.
func TestIntentThatIsDamaged(t *testing.T) {
	for _, text := range []string{"", "{", `{"run":"` + runID("b") + `"}`,
		`{"run":"` + runID("a") + `","set":"202109232027_1-1","commit":{"files":[{"part":".x/../..` + runID("a") + `.1.part","final":"202109232027_1-1_alation_backup.tar.gz"}]}}`,
		`{"run":"` + runID("a") + `","set":"202109232027_1-1","commit":{"files":[{"part":".x.` + runID("a") + `.1.part","final":"../202109232027_1-1_alation_backup.tar.gz"}]}}`,
	} {
		d := newDirectory(t)
		_, files := committed(t, d)
		require.NoError(t, os.WriteFile(d.intentPath(runID("a")), []byte(text), 0o600))
		_, err := d.Clean(context.Background(), runID("a"), false)
		require.ErrorContains(t, err, "by hand")
		require.ErrorContains(t, err, d.intentPath(runID("a")))
		for _, f := range files {
			require.FileExists(t, filepath.Join(d.Dump, f.Final))
		}
	}
}

// A file of ours that somebody has changed, or replaced, is not ours any more.
func TestChangedFileIsNotTakenBack(t *testing.T) {
	d := newDirectory(t)
	_, files := parts(t, d, runID("a"), 1)
	require.ErrorIs(t, d.Commit(runID("a"), files, func() error { return run.ErrFenced }), run.ErrFenced)
	final := filepath.Join(d.Dump, files[0].Final)
	require.NoError(t, os.Rename(filepath.Join(d.Dump, files[0].Part), final))
	b, err := os.ReadFile(final)
	require.NoError(t, err)
	b[0] ^= 1
	require.NoError(t, os.WriteFile(final, b, 0o600))
	require.NoError(t, os.Chtimes(final, time.Now(), noon))
	stands, err := d.Clean(context.Background(), runID("a"), true)
	require.NoError(t, err)
	require.False(t, stands)
	requireOnly(t, d, files[0].Final)
}

// What stays behind does not keep the rest, and the intent stays with it.
func TestWhatCannotBeRemovedDoesNotKeepTheRest(t *testing.T) {
	d := newFaulty(t)
	d.begin(t, 2)
	d.fs.Hook(func(op faultfs.Op) syscall.Errno {
		if op.Kind == faultfs.Unlink && (strings.HasSuffix(op.Path, "repo/x") || strings.HasSuffix(op.Path, "_eb_backup.tar.gz")) {
			return syscall.EPERM
		}
		return 0
	})
	_, err := d.Clean(context.Background(), runID("a"), false)
	require.ErrorContains(t, err, "_eb_backup.tar.gz")
	require.ErrorContains(t, err, "repo/x")
	d.fs.Hook(nil)
	in, err := d.behind.ReadIntent(runID("a"))
	require.NoError(t, err)
	requireOnly(t, d.behind, "."+runID("a")+intentSuffix, in.taken(), "pgbackrest", "202109232027_1-1_alation_eb_backup.tar.gz")
	require.NoError(t, second(d.Clean(context.Background(), runID("a"), false)))
	requireOnly(t, d.behind)
}

// Waiting for the lock of the dump directory ends with the attempt, and by itself.
func TestReserveEndsWithItsContext(t *testing.T) {
	d := newDirectory(t)
	held, err := os.Create(filepath.Join(d.Dump, lockName))
	require.NoError(t, err)
	defer held.Close()
	require.NoError(t, unix.Flock(int(held.Fd()), unix.LOCK_EX))
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(50*time.Millisecond, func() { cancel(run.ErrCancel) })
	_, _, err = d.Reserve(ctx, runID("a"), "1.1", noon)
	require.ErrorIs(t, err, run.ErrCancel)
	_, err = flockFile(context.Background(), held.Name(), 100*time.Millisecond)
	require.ErrorContains(t, err, "another process has held")
	require.ErrorContains(t, err, "frozen")
	require.NoError(t, unix.Flock(int(held.Fd()), unix.LOCK_UN))
	require.NoError(t, second(reserve(d, runID("a"), "1.1", noon)))
}

// Debris of kills goes when it is an hour old; what may be in use, or is not ours, stays.
func TestDebris(t *testing.T) {
	d := newDirectory(t)
	dump := []string{".catalog-backup-check.123", ".." + runID("a") + ".intent.12.new", ".202109232027_1-1_alation_backup.proof.json.77.new"}
	for _, n := range dump {
		write(t, filepath.Join(d.Dump, n))
	}
	fresh := filepath.Join(d.Dump, ".pgbackrest."+runID("a")+".3.new")
	mark(t, fresh, runID("a"))
	write(t, filepath.Join(d.Temp, ".catalog-backup-check.9"))
	require.NoError(t, os.Mkdir(d.RunDir(runID("a")), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(d.PostgresParent(), runID("a")+".2-aaaaaaaa"), 0o700))
	stay := []string{".catalog-backup-check", ".x.json.1.new", "..intent.1.new", runID("f"), "staged-by-the-catalog", runID("m")}
	for _, n := range stay[:3] {
		write(t, filepath.Join(d.Dump, n))
	}
	write(t, filepath.Join(d.RunDir(stay[3]), "foreign"))
	require.NoError(t, os.Mkdir(filepath.Join(d.Temp, stay[4]), 0o700))
	mark(t, d.RunDir(stay[5]), stay[5]) // the sweeper of its run removes it
	require.NoError(t, d.RemoveDebris())
	require.DirExists(t, fresh, "it may be in use")
	require.FileExists(t, filepath.Join(d.Dump, dump[0]))
	d.Now = func() time.Time { return time.Now().Add(debrisAge + time.Minute) }
	require.NoError(t, d.RemoveDebris())
	require.NoError(t, d.RemoveDebris()) // the parent, whose time its child's removal changed
	requireOnly(t, d, stay...)
}
