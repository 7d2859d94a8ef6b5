package restore

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
)

func TestJudge(t *testing.T) {
	pg := Damage{Archive: "m", Part: PostgresPart, Entry: "postgres/pgbackrest/x", Problem: "flipped"}
	soft := Damage{Archive: "m", Part: PostgresPart, Entry: "wal", Problem: "a tablespace was made", Restorable: true}
	file := Damage{Archive: "m", Part: FilesPart, Entry: "files/x", Problem: "flipped"}
	sum := Damage{Archive: "m", Entry: "m", Problem: "the archive's SHA-256 is another"}
	whole := Damage{Entry: "manifest", Problem: "it is of another set"}
	for name, c := range map[string]struct {
		found, against []Damage
		parts, whole   []string
	}{
		"nothing":                   {nil, nil, AllParts, AllParts},
		"in the part":               {[]Damage{pg}, []Damage{pg}, []string{PostgresPart}, nil},
		"in another part":           {[]Damage{pg}, nil, []string{FilesPart, EventBusPart}, []string{FilesPart, EventBusPart}},
		"in one of three":           {[]Damage{pg}, []Damage{pg}, AllParts, []string{FilesPart, EventBusPart}},
		"in two of three":           {[]Damage{pg, file}, []Damage{pg, file}, AllParts, []string{EventBusPart}},
		"restorable":                {[]Damage{soft}, nil, AllParts, AllParts},
		"restorable and another":    {[]Damage{soft, pg}, []Damage{pg}, AllParts, []string{FilesPart, EventBusPart}},
		"the archive's own hash":    {[]Damage{sum}, nil, AllParts, AllParts},
		"the manifest of all parts": {[]Damage{whole}, []Damage{whole}, []string{FilesPart}, nil},
	} {
		against, beside, left := judge(c.found, c.parts)
		require.Equal(t, c.against, against, name)
		require.Equal(t, c.whole, left, name)
		require.Len(t, beside, len(c.found)-len(c.against), name)
	}
}

func TestPartOf(t *testing.T) {
	for entry, part := range map[string]string{
		"postgres/pgbackrest": PostgresPart, "postgres/pgbackrest/x": PostgresPart, "postgres/config/etc/x": PostgresPart, "postgres": "", "postgres/x": "",
		"files": FilesPart, "files/x": FilesPart, "files2/x": "", "eventbus/topics/t/0/x.log": EventBusPart, "eventbus/x": "",
		set.ManifestCopy: "", "x_alation_backup.tar.gz": "",
	} {
		require.Equal(t, part, partOf(entry), entry)
	}
}

// A set of an earlier version, in which a name is a hard link to an entry that a later one took
// the place of: nothing but the archive's own checksums tell of that one's content.
func TestHardLinkToWhatWasReplaced(t *testing.T) {
	dir, m := source.copyOf(t)
	held := make([]byte, 100_000)
	for i, x := 0, uint32(1); i < len(held); i++ {
		x = x*1664525 + 1013904223
		held[i] = byte(x >> 24)
	}
	rewrite(t, dir, set.MainArchive, m, func(l []item) []item {
		at := slices.IndexFunc(l, func(x item) bool { return strings.HasSuffix(x.h.Name, "/bin/run") })
		require.Equal(t, archive.HardLink, l[at+1].h.Kind)
		h := *l[at].h
		h.Size = int64(len(held))
		same := l[at+1]
		l = slices.Delete(l, at+1, at+2)
		return slices.Insert(l, at, item{&h, held}, same)
	}, nil)
	manifest, main := source.manifest(dir), filepath.Join(dir, source.id().MainName())
	require.Equal(t, []Damage{}, append([]Damage{}, verified(t, manifest).Damage...))
	b, err := os.ReadFile(main)
	require.NoError(t, err)
	at := bytes.Index(b, held[5000:5032])
	require.Positive(t, at)
	b[at] ^= 1
	require.NoError(t, os.WriteFile(main, b, 0o600))
	for _, what := range []string{manifest, main} {
		_, errs, code := source.run(t, "restore", what, "--only", "files", "--target", scratch(t)+"/target")
		require.Equal(t, 8, code, "%s", errs)
		require.Contains(t, errs, "hard link to an entry")
		require.NoError(t, os.RemoveAll(manifest)) // then the copy in the archive serves
	}
}

// A part is restored whatever is wrong with another one, and what is wrong is said.
func TestOnlyWhatIsWhole(t *testing.T) {
	dir, m := source.copyOf(t)
	rewrite(t, dir, set.MainArchive, m, func(l []item) []item {
		at := slices.IndexFunc(l, func(x item) bool {
			return x.h.Kind == archive.Regular && strings.HasSuffix(x.h.Name, "alation_conf.yaml")
		})
		l[at].data[7] ^= 0x20
		return l
	}, nil)
	manifest := source.manifest(dir)
	require.False(t, verified(t, manifest).Good)

	_, errs, code := source.run(t, "restore", manifest, "--target", scratch(t)+"/all")
	require.Equal(t, 8, code)
	require.Contains(t, errs, "restore the rest by --only postgres,eventbus")
	_, errs, code = source.run(t, "restore", manifest, "--only", "files", "--target", scratch(t)+"/files")
	require.Equal(t, 8, code)
	require.Contains(t, errs, "alation_conf.yaml")
	require.NotContains(t, errs, "--only")

	v := source.warned(t, manifest, "--only", "postgres,eventbus", "--target", scratch(t)+"/rest")
	require.Contains(t, strings.Join(v.Warnings, "\n"), "in its part files, which was not asked for")
	require.Contains(t, strings.Join(v.Warnings, "\n"), "alation_conf.yaml")
	require.Equal(t, source.rows, serve(t, v)(rowsDigest))
}

// damaged copies the small set, with its main archive changed.
func damaged(t testing.TB, change func(b []byte, l *layout) []byte) (dir, manifest string, m *set.Manifest) {
	t.Helper()
	from, m := smallSet(t)
	dir = scratch(t)
	for _, name := range []string{filepath.Base(from), set.ID(m.Set).MainName(), set.ID(m.Set).EventBusName()} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(from), name))
		require.NoError(t, err)
		if name == set.ID(m.Set).MainName() {
			b = change(b, layoutOf(t, filepath.Join(filepath.Dir(from), name)))
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	return dir, filepath.Join(dir, filepath.Base(from)), m
}

// The programs, with the database damaged and the archive of the bus unusable: files
// come out as they were; nothing else does, and each refusal says what is left.
func TestOnlyFilesAreWhole(t *testing.T) {
	from, m := smallSet(t)
	app := filepath.Join("files", m.Files.Paths[0])
	whole := source.restore(t, from, "--only", "files", "--target", scratch(t)+"/t")
	flipped := func(b []byte, l *layout) []byte {
		big := slices.MaxFunc(l.members, func(x, y member) int { return int(x.rawTo - x.rawFrom - y.rawTo + y.rawFrom) })
		b[(big.rawFrom+big.rawTo)/2] ^= 1
		return b
	}
	for name, bus := range map[string]func(path string) error{
		"missing":     os.Remove,
		"a directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
		"a pipe":      func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"empty":       func(path string) error { return os.Truncate(path, 0) },
		"whole":       func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir, manifest, m := damaged(t, flipped)
			require.NoError(t, bus(filepath.Join(dir, set.ID(m.Set).EventBusName())))
			r := verified(t, manifest)
			require.False(t, r.Good)
			require.True(t, slices.ContainsFunc(r.Damage, func(d Damage) bool { return d.Part == PostgresPart }))
			v := source.warned(t, manifest, "--only", "files", "--target", scratch(t)+"/t")
			require.Equal(t, tree(t, filepath.Join(whole.Target, app)), tree(t, filepath.Join(v.Target, app)))
			for _, only := range []string{"", "postgres", "eventbus"} {
				args := []string{"restore", manifest, "--target", scratch(t) + "/t"}
				if only != "" {
					args = append(args, "--only", only)
				}
				_, errs, code := source.run(t, args...)
				if only == "eventbus" && name == "whole" {
					require.Zero(t, code, errs)
					continue
				}
				require.Equal(t, 8, code, errs)
				require.Equal(t, only == "", strings.Contains(errs, "--only "), errs)
			}
		})
	}
	// The manifest is gone too: its copy lies behind the damage.
	_, manifest, m := damaged(t, flipped)
	require.NoError(t, os.Remove(manifest))
	v := source.warned(t, filepath.Join(filepath.Dir(manifest), set.ID(m.Set).MainName()), "--only", "files", "--target", scratch(t)+"/t")
	require.Equal(t, tree(t, filepath.Join(whole.Target, app)), tree(t, filepath.Join(v.Target, app)))
}

// All behind the database is gone: files, and the copy of the manifest.
func TestOnlyTheDatabaseIsWhole(t *testing.T) {
	dir, _ := source.copyOf(t)
	path := filepath.Join(dir, source.id().MainName())
	l := layoutOf(t, path)
	at := slices.IndexFunc(l.parts, func(s span) bool { return s.part == FilesPart })
	require.Positive(t, at)
	for _, m := range l.members {
		if m.to > l.parts[at].from+20_000 { // the first of the files are in one member with the last of the database
			require.NoError(t, os.Truncate(path, (m.rawFrom+m.rawTo)/2))
			break
		}
	}
	_, errs, code := source.run(t, "restore", source.manifest(dir), "--target", scratch(t)+"/t")
	require.Equal(t, 8, code)
	require.Contains(t, errs, "restore the rest by --only postgres,eventbus")
	v := source.warned(t, source.manifest(dir), "--only", "postgres", "--target", scratch(t)+"/t")
	require.Equal(t, source.rows, serve(t, v)(rowsDigest))
	require.Contains(t, strings.Join(v.Warnings, "\n"), "SHA-256")
}

// What is wrong with the archive as a whole keeps no part back; what a manifest says of a
// part that its copy does not, does.
func TestJudgedByPart(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *set.Manifest)
		bad    []string // parts
	}{
		"no hash":          {func(m *set.Manifest) { m.Archives[0].SHA256 = "" }, nil},
		"other size":       {func(m *set.Manifest) { m.Archives[0].Size++ }, nil},
		"a note":           {func(m *set.Manifest) { m.Notes = append(m.Notes, "all is well") }, nil},
		"stop LSN":         {func(m *set.Manifest) { m.Postgres.StopLSN = "0/1" }, []string{PostgresPart}},
		"position":         {func(m *set.Manifest) { m.EventBus.Groups[0].Offsets[0].Offset++ }, []string{EventBusPart}},
		"file's mode":      {func(m *set.Manifest) { m.Files.Entries[0].Mode = "0777" }, []string{FilesPart}},
		"count of files":   {func(m *set.Manifest) { m.Files.Count++ }, []string{FilesPart}},
		"bus part dropped": {func(m *set.Manifest) { m.EventBus = nil }, []string{EventBusPart}},
	} {
		t.Run(name, func(t *testing.T) {
			_, manifest, m := damaged(t, func(b []byte, _ *layout) []byte { return b })
			c.change(m)
			text, err := json.Marshal(m)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(manifest, text, 0o600))
			r := verified(t, manifest)
			require.False(t, r.Good)
			_, _, whole := judge(r.Damage, AllParts)
			for _, p := range AllParts {
				require.Equal(t, !slices.Contains(c.bad, p), slices.Contains(whole, p), "%s: %v", p, r.Damage)
			}
		})
	}
}

// A name or a link that leads out keeps its own part back, and no other.
func TestHostileEntriesByPart(t *testing.T) {
	dir, m := source.copyOf(t)
	path := filepath.Join(dir, source.id().MainName())
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	var member bytes.Buffer // before all others: our own Writer refuses such entries
	z := gzip.NewWriter(&member)
	w := tar.NewWriter(z)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "files/out", Typeflag: tar.TypeSymlink, Linkname: "/"}))
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "files/out/evil", Typeflag: tar.TypeReg}))
	require.NoError(t, errors.Join(w.Flush(), z.Close()))
	require.NoError(t, os.WriteFile(path, append(member.Bytes(), whole...), 0o600))
	signFile(t, dir, set.MainArchive, m)
	r := verified(t, source.manifest(dir))
	require.Contains(t, fmt.Sprint(r.Damage), "below this symbolic link")
	_, _, left := judge(r.Damage, AllParts)
	require.Equal(t, []string{PostgresPart, EventBusPart}, left)
}
