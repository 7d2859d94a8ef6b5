package dump

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var noon = time.Date(2021, 9, 23, 20, 27, 41, 0, time.UTC)

func newDirectory(t *testing.T) *Directory {
	d := &Directory{Dump: t.TempDir(), Temp: t.TempDir(), Instance: "catalog", Node: "node1"}
	return d
}

func reserve(d *Directory, runID, version string, now time.Time) (Intent, error) {
	in, _, err := d.Reserve(context.Background(), runID, version, now)
	return in, err
}

func runID(name string) string { return run.NewID(noon, []byte(name+"-----")) }

func mode(t *testing.T, path string) os.FileMode {
	fi, err := os.Lstat(path)
	require.NoError(t, err)
	return fi.Mode().Perm()
}

func TestReserveTakesTheFirstFreeMinute(t *testing.T) {
	d := newDirectory(t)
	a, err := reserve(d, runID("a"), "10.0.0.147420", noon)
	require.NoError(t, err)
	require.Equal(t, set.ID("202109232027_10-0-0-147420"), a.Set)
	require.Equal(t, os.FileMode(0o600), mode(t, d.intentPath(runID("a"))))
	again, err := reserve(d, runID("a"), "10.0.0.147420", noon.Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, a.Set, again.Set, "a second attempt gets the same id")
	b, err := reserve(d, runID("b"), "10.0.0.147420", noon)
	require.NoError(t, err)
	require.Equal(t, set.ID("202109232028_10-0-0-147420"), b.Set, "another run's id is taken")
	require.NoError(t, os.WriteFile(filepath.Join(d.Dump, "202109232029_10-0-0-147420_alation_eb_backup.tar.gz"), nil, 0o600))
	c, err := reserve(d, runID("c"), "10.0.0.147420", noon)
	require.NoError(t, err)
	require.Equal(t, set.ID("202109232030_10-0-0-147420"), c.Set, "a foreign file's name is taken")
}

func TestReserveIsLaterThanTheNewestSetThoughTheClockWentBack(t *testing.T) {
	d := newDirectory(t)
	writeManifest(t, d, "203001010000_1-1", "catalog", runID("old"))
	writeManifest(t, d, "204001010000_1-1", "another", runID("other"))
	a, err := reserve(d, runID("a"), "1.1", noon)
	require.NoError(t, err)
	require.Equal(t, set.ID("203001010001_1-1"), a.Set)
}

func writeManifest(t *testing.T, d *Directory, id set.ID, instance, runID string) {
	b, err := json.Marshal(set.Manifest{Format: set.FormatName, Version: set.FormatVersion, Set: string(id), Instance: instance, Run: runID,
		Archives: []set.Archive{{Kind: set.MainArchive, Name: id.MainName()}}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(d.Dump, id.ManifestName()), b, 0o600))
}

// parts writes the parts of a set as the archive stage does.
func parts(t *testing.T, d *Directory, runID string, fence int64) (Intent, []CommitFile) {
	in, err := reserve(d, runID, "1.1", noon)
	require.NoError(t, err)
	write := func(final string, content []byte) CommitFile {
		part := set.PartName(final, runID, fmt.Sprint(fence))
		require.NoError(t, os.WriteFile(filepath.Join(d.Dump, part), content, 0o600))
		sum := sha256.Sum256(content)
		return CommitFile{Part: part, Final: final, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	}
	m, err := json.Marshal(set.Manifest{Format: set.FormatName, Version: set.FormatVersion, Set: string(in.Set), Instance: "catalog", Run: runID,
		Archives: []set.Archive{{Kind: set.MainArchive, Name: in.Set.MainName(), Size: 4}, {Kind: set.EventBusArchive, Name: in.Set.EventBusName(), Size: 6}}})
	require.NoError(t, err)
	return in, []CommitFile{write(in.Set.MainName(), []byte("main")), write(in.Set.EventBusName(), []byte("events")), write(in.Set.TextName(), []byte("text")),
		write(in.Set.ScriptName(), []byte("script")), write(in.Set.ManifestName(), m)}
}

func yes() error { return nil }

func TestCommit(t *testing.T) {
	d := newDirectory(t)
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	in, files := parts(t, d, runID("a"), 3)
	require.NoError(t, d.Commit(runID("a"), files, yes))
	for _, f := range files {
		require.FileExists(t, filepath.Join(d.Dump, f.Final))
		require.NoFileExists(t, filepath.Join(d.Dump, f.Part))
	}
	in, err := d.ReadIntent(in.Run)
	require.NoError(t, err)
	m, err := d.Standing(in.Run, in.Set)
	require.NoError(t, err)
	require.NotNil(t, m)
	stands, err := d.Clean(context.Background(), runID("a"), true)
	require.NoError(t, err)
	require.True(t, stands)
	requireOnly(t, d, finals(files)...)
}

func finals(files []CommitFile) []string {
	var names []string
	for _, f := range files {
		names = append(names, f.Final)
	}
	return names
}

// The instructions are made, and their disk may fill then: an error for good, and
// nothing is left of it.
func TestWritePart(t *testing.T) {
	d := newDirectory(t)
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	in, err := reserve(d, runID("a"), "1.1", noon)
	require.NoError(t, err)
	c, err := d.WritePart(in.Set.ScriptName(), runID("a"), run.Hold{Fence: 1}, func(w io.Writer) error { _, err := io.WriteString(w, "script"); return err })
	require.NoError(t, err)
	sum := sha256.Sum256([]byte("script"))
	require.Equal(t, CommitFile{Part: set.PartName(in.Set.ScriptName(), runID("a"), fmt.Sprint(1)), Final: in.Set.ScriptName(), Size: 6, SHA256: hex.EncodeToString(sum[:])}, c)
	fi, err := os.Stat(filepath.Join(d.Dump, c.Part))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
	_, err = d.Clean(context.Background(), runID("a"), true)
	require.NoError(t, err)
	requireOnly(t, d)

	d.Dump = t.TempDir()
	require.NoError(t, unix.Mount("none", d.Dump, "tmpfs", 0, "size=8k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(d.Dump, 0)) })
	_, err = d.WritePart(in.Set.ScriptName(), runID("a"), run.Hold{Fence: 2}, func(w io.Writer) error { _, err := w.Write(make([]byte, 64<<10)); return err })
	require.True(t, stage.IsPermanent(err), "%v", err)
	require.ErrorContains(t, err, "free space there")
	require.NoError(t, d.RemoveParts(runID("a"), everyHold, in.Set.ScriptName()))
	requireOnly(t, d)
}

// An intent of a version without instructions is finished as it was meant.
func TestIntentWithoutInstructions(t *testing.T) {
	d := newDirectory(t)
	in, files := parts(t, d, runID("a"), 1)
	files = []CommitFile{files[0], files[4]}
	in.Names = []string{in.Set.MainName(), in.Set.EventBusName(), in.Set.ManifestName(), in.Set.ProofName()}
	require.NoError(t, d.writeIntent(in))
	require.ErrorIs(t, d.Commit(runID("a"), files, func() error { return run.ErrFenced }), run.ErrFenced)
	stands, err := d.Clean(context.Background(), runID("a"), true)
	require.NoError(t, err)
	require.True(t, stands)
	requireOnly(t, d, finals(files)...)
}

func requireOnly(t *testing.T, d *Directory, names ...string) {
	t.Helper()
	have := []string{}
	for _, dir := range []string{d.Dump, d.Temp} {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			if e.Name() != lockName {
				have = append(have, e.Name())
			}
		}
	}
	require.ElementsMatch(t, names, have)
}

// A kill in the middle of writing an intent leaves its temporary file.
func TestHalfAnIntentIsCleaned(t *testing.T) {
	d := newDirectory(t)
	other := "..20200101t000000z-abcdefgh.intent.1.new"
	for _, n := range []string{".." + runID("a") + ".intent.1752288327.new", other} {
		require.NoError(t, os.WriteFile(filepath.Join(d.Dump, n), nil, 0o600))
	}
	_, err := d.Clean(context.Background(), runID("a"), false)
	require.NoError(t, err)
	requireOnly(t, d, other)
}

// Someone cleared the dump directory: a retry finds the same, so there is none.
func TestCommitWithoutItsIntent(t *testing.T) {
	d := newDirectory(t)
	_, files := parts(t, d, runID("a"), 1)
	require.NoError(t, os.Remove(d.intentPath(runID("a"))))
	err := d.Commit(runID("a"), files, func() error { return nil })
	require.True(t, stage.IsPermanent(err), "%v", err)
	require.ErrorContains(t, err, "run the backup again")
}

func TestCommitThatMayNotGoOnChangesNothing(t *testing.T) {
	d := newDirectory(t)
	_, files := parts(t, d, runID("a"), 1)
	require.ErrorIs(t, d.Commit(runID("a"), files, func() error { return run.ErrCancel }), run.ErrCancel)
	for _, f := range files {
		require.NoFileExists(t, filepath.Join(d.Dump, f.Final))
	}
	stands, err := d.Clean(context.Background(), runID("a"), false)
	require.NoError(t, err)
	require.False(t, stands)
	requireOnly(t, d)
}

// A kill between any two renames: the next worker finishes the commit, or takes
// it back, as it is told to.
func TestCommitCutShort(t *testing.T) {
	for cut := 0; cut <= 5; cut++ {
		for _, forward := range []bool{true, false} {
			d := newDirectory(t)
			_, files := parts(t, d, runID("a"), 1)
			require.ErrorIs(t, d.Commit(runID("a"), files, func() error { return run.ErrFenced }), run.ErrFenced) // the intent is written
			for _, f := range files[:cut] {
				require.NoError(t, os.Rename(filepath.Join(d.Dump, f.Part), filepath.Join(d.Dump, f.Final)))
			}
			stands, err := d.Clean(context.Background(), runID("a"), forward)
			require.NoError(t, err)
			require.Equal(t, forward || cut == 5, stands, "cut %d forward %v", cut, forward)
			if stands {
				requireOnly(t, d, finals(files)...)
			} else {
				requireOnly(t, d)
			}
		}
	}
}

func TestCommitCutShortWithDamageIsTakenBack(t *testing.T) {
	for damaged := range 5 {
		d := newDirectory(t)
		_, files := parts(t, d, runID("a"), 1)
		require.ErrorIs(t, d.Commit(runID("a"), files, func() error { return run.ErrFenced }), run.ErrFenced)
		require.NoError(t, os.Rename(filepath.Join(d.Dump, files[0].Part), filepath.Join(d.Dump, files[0].Final)))
		name := files[damaged].Part
		if damaged == 0 {
			name = files[0].Final
		}
		f, err := os.OpenFile(filepath.Join(d.Dump, name), os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("X"), 1)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		stands, err := d.Clean(context.Background(), runID("a"), true)
		require.NoError(t, err)
		require.False(t, stands)
		if damaged == 0 { // somebody wrote into what has its final name: it is not what we made
			requireOnly(t, d, files[0].Final)
		} else {
			requireOnly(t, d)
		}
	}
}

func TestCommitNeverReplacesAFile(t *testing.T) {
	d := newDirectory(t)
	in, files := parts(t, d, runID("a"), 1)
	planted := filepath.Join(d.Dump, in.Set.EventBusName())
	require.NoError(t, os.WriteFile(planted, []byte("somebody else's"), 0o644))
	require.ErrorIs(t, d.Commit(runID("a"), files, yes), ErrTaken)
	_, err := d.Clean(context.Background(), runID("a"), false)
	require.NoError(t, err)
	requireOnly(t, d, in.Set.EventBusName())
	b, err := os.ReadFile(planted)
	require.NoError(t, err)
	require.Equal(t, "somebody else's", string(b))
}

func second[T any](_ T, err error) error { return err }

func TestLeftoversAreOnlyOurs(t *testing.T) {
	d := newDirectory(t)
	_, err := reserve(d, runID("a"), "1.1", noon)
	require.NoError(t, err)
	l, err := d.Lock(runID("b"), true)
	require.NoError(t, err)
	l.Release()
	other := *d
	other.Instance = "another"
	_, err = reserve(&other, runID("c"), "1.1", noon)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(d.Temp, runID("d")), 0o755)) // no marker: not ours
	require.NoError(t, os.Mkdir(filepath.Join(d.Temp, "staged-by-the-catalog"), 0o755))
	left, err := d.Leftovers()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{runID("a"), runID("b")}, left)
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	d := newDirectory(t)
	require.NoError(t, d.Check(runID("a")))
	d.Dump = filepath.Join(d.Dump, "none")
	err := d.Check(runID("a"))
	require.ErrorContains(t, err, "alation.backup.data_dump_dir")
	require.ErrorContains(t, err, "create it")
	require.True(t, stage.IsPermanent(err))
	d = newDirectory(t)
	d.Temp = filepath.Join(d.Temp, "none")
	_, err = d.Lock(runID("a"), true)
	require.ErrorContains(t, err, "create it")
}

func TestEndLeftoversIsAskedForEveryNote(t *testing.T) {
	d := newDirectory(t)
	l, err := d.Lock(runID("a"), true)
	require.NoError(t, err)
	defer l.Release()
	var seen []string
	d.EndLeftover = func(_ context.Context, f string) error { seen = append(seen, filepath.Base(f)); return nil }
	require.NoError(t, os.Mkdir(filepath.Join(d.RunDir(runID("a")), "postgres.1"), 0o700))
	for _, n := range []string{"1.pid", "2.pid", "x"} {
		require.NoError(t, os.WriteFile(filepath.Join(d.RunDir(runID("a")), "postgres.1", n), nil, 0o600))
	}
	require.NoError(t, d.EndLeftovers(context.Background(), runID("a")))
	require.ElementsMatch(t, []string{"1.pid", "2.pid"}, seen)
	d.EndLeftover = func(context.Context, string) error { return errors.New("it lives on") }
	_, err = d.Clean(context.Background(), runID("a"), false)
	require.ErrorContains(t, err, "it lives on")
	require.DirExists(t, d.RunDir(runID("a")), "nothing is removed under a living process")
}
