package restore

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
)

// item is an entry with its stored content.
type item struct {
	h    *archive.Header
	data []byte
}

func items(t testing.TB, path string) []item {
	t.Helper()
	r, err := archive.Open(path)
	require.NoError(t, err)
	defer r.Close()
	var list []item
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r.Data())
		require.NoError(t, err)
		list = append(list, item{h, data})
	}
	_, err = r.Finish()
	require.NoError(t, err)
	return list
}

// rewrite changes an archive's entries, and then makes the manifest agree with it:
// sizes and SHA-256 of the archive, and where agree says so of the entries too.
func rewrite(t testing.TB, dir, kind string, m *set.Manifest, change func([]item) []item, agree func(*set.Manifest)) {
	t.Helper()
	a, _ := m.Archive(kind)
	path := filepath.Join(dir, a.Name)
	list := change(items(t, path))
	require.NoError(t, os.Remove(path))
	w, err := archive.Create(path, archive.Options{})
	require.NoError(t, err)
	for _, x := range list {
		require.NoError(t, w.Entry(t.Context(), x.h, bytes.NewReader(x.data), archive.Auto))
	}
	sum, err := w.Finish()
	require.NoError(t, err)
	if agree != nil {
		agree(m)
	}
	sign(t, dir, kind, m, sum.Size, sum.SHA256)
}

// sign writes the manifest with an archive's new size and SHA-256.
func sign(t testing.TB, dir, kind string, m *set.Manifest, size int64, sha string) {
	t.Helper()
	for i := range m.Archives {
		if m.Archives[i].Kind == kind {
			m.Archives[i].Size, m.Archives[i].SHA256 = size, sha
		}
	}
	text, err := json.MarshalIndent(m, "", "\t")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(source.manifest(dir), text, 0o600))
}

func signFile(t testing.TB, dir, kind string, m *set.Manifest) {
	t.Helper()
	a, _ := m.Archive(kind)
	b, err := os.ReadFile(filepath.Join(dir, a.Name))
	require.NoError(t, err)
	sum := sha256.Sum256(b)
	sign(t, dir, kind, m, int64(len(b)), hex.EncodeToString(sum[:]))
}

// verified verifies the set in dir, which must give a report.
func verified(t testing.TB, what string) *Report {
	t.Helper()
	s, err := Open(t.Context(), what, "")
	require.NoError(t, err)
	r, err := Verify(t.Context(), s, VerifyOptions{})
	require.NoError(t, err)
	require.Equal(t, len(r.Damage) == 0, r.Good)
	return r
}

func TestVerifyGood(t *testing.T) {
	r := verified(t, source.manifest(source.dump))
	require.Empty(t, r.Damage)
	require.Empty(t, r.Notes)
	require.Greater(t, r.Bytes, int64(3<<20))
	m, err := set.ReadManifest(source.manifest(source.dump))
	require.NoError(t, err)
	require.Equal(t, int64(64<<20-4096), m.Files.Holes, "which are told, since they take no room")
}

// A set that is only packed anew is as good as before: what the tests below find is
// what they changed.
func TestVerifyPackedAnew(t *testing.T) {
	for _, kind := range []string{set.MainArchive, set.EventBusArchive} {
		dir, m := source.copyOf(t)
		rewrite(t, dir, kind, m, func(l []item) []item { return l }, nil)
		require.Empty(t, verified(t, source.manifest(dir)).Damage)
	}
}

func last(s string) func(string) bool { return func(n string) bool { return strings.HasSuffix(n, s) } }
func part(s string) func(string) bool { return func(n string) bool { return strings.Contains(n, s) } }

// victims are one entry of each kind that a set holds.
var victims = []struct {
	name string
	kind string
	is   func(entry string) bool
}{
	{"pgBackRest manifest", set.MainArchive, last("/backup.manifest")},
	{"copy of the pgBackRest manifest", set.MainArchive, last("/backup.manifest.copy")},
	{"backup.info", set.MainArchive, last("/backup.info")},
	{"archive.info copy", set.MainArchive, last("/archive.info.copy")},
	{"bundle", set.MainArchive, part("/bundle/1")},
	{"single file", set.MainArchive, func(n string) bool { return strings.Contains(n, "/pg_data/base/") && !strings.HasSuffix(n, "/") }},
	{"backup_label", set.MainArchive, part("/pg_data/backup_label")},
	{"WAL segment", set.MainArchive, part("/archive/catalog/15-1/0000000100000000/00000001")},
	{"configuration file", set.MainArchive, last("etc/extra.conf")},
	{"application file", set.MainArchive, last("alation_conf.yaml")},
	{"sparse file", set.MainArchive, last("app/sparse")},
	{"bus segment", set.EventBusArchive, part("lineage/1/")},
	{"copy of our manifest", set.MainArchive, last(set.ManifestCopy)},
	{"copy of our manifest, bus", set.EventBusArchive, last(set.ManifestCopy)},
}

// agreeing makes our manifest say what the changed entry now is, wherever it names it.
func agreeing(entry string, data []byte, gone bool) func(*set.Manifest) {
	sum := sha256.Sum256(data)
	sha := hex.EncodeToString(sum[:])
	return func(m *set.Manifest) {
		for i := range m.Postgres.Config {
			if c := &m.Postgres.Config[i]; set.PostgresConfig+c.Path[1:] == entry {
				c.Size, c.SHA256 = int64(len(data)), sha
			}
		}
		at := slices.IndexFunc(m.Files.Entries, func(f set.File) bool { return set.FilesPrefix+f.Path[1:] == entry })
		switch {
		case at >= 0 && gone:
			m.Files.Count--
			m.Files.Bytes -= m.Files.Entries[at].Size
			m.Files.Entries = slices.Delete(m.Files.Entries, at, at+1)
		case at >= 0 && m.Files.Entries[at].Size == int64(len(data)):
			m.Files.Entries[at].SHA256 = sha
		case at >= 0:
			m.Files.Bytes += int64(len(data)) - m.Files.Entries[at].Size
			m.Files.Entries[at].Size, m.Files.Entries[at].SHA256 = int64(len(data)), sha
		}
		for i := range m.EventBus.Topics {
			for j := range m.EventBus.Topics[i].Partitions {
				p := &m.EventBus.Topics[i].Partitions[j]
				for k := range p.Segments {
					if s := &p.Segments[k]; s.Entry == entry {
						p.Bytes += int64(len(data)) - s.Bytes
						s.Bytes, s.SHA256 = int64(len(data)), sha
					}
				}
				if gone {
					p.Segments = slices.DeleteFunc(p.Segments, func(s set.Segment) bool { return s.Entry == entry })
				}
			}
		}
	}
}

// Each kind of entry removed, cut and flipped, with our own manifest made to agree
// with the archive and with the entry.
func TestVerifyFindsEveryKindOfDamage(t *testing.T) {
	for _, v := range victims {
		for _, how := range []string{"removed", "cut", "flipped"} {
			t.Run(v.name+" "+how, func(t *testing.T) {
				t.Parallel()
				dir, m := source.copyOf(t)
				var entry string
				var agree func(*set.Manifest)
				rewrite(t, dir, v.kind, m, func(l []item) []item {
					at := slices.IndexFunc(l, func(x item) bool { return x.h.Kind == archive.Regular && v.is(x.h.Name) })
					require.GreaterOrEqual(t, at, 0)
					entry = l[at].h.Name
					x := &l[at]
					switch how {
					case "removed":
						l = slices.Delete(l, at, at+1)
						agree = agreeing(entry, nil, true)
						return l
					case "cut":
						x.data = x.data[:len(x.data)/2]
						if x.h.Sparse == nil {
							x.h.Size = int64(len(x.data))
						} else {
							x.h.Sparse[0].Length = int64(len(x.data))
							x.h.Sparse = x.h.Sparse[:1]
						}
					case "flipped":
						x.data = bytes.Clone(x.data)
						x.data[len(x.data)/2] ^= 0x04
					}
					agree = agreeing(entry, x.data, false)
					return l
				}, func(m *set.Manifest) { agree(m) })
				r := verified(t, source.manifest(dir))
				require.False(t, r.Good)
				t.Log(r.Damage[0])
			})
		}
	}
}

// Damage that lies in the file, not in an entry.
func TestVerifyDamagedArchiveFile(t *testing.T) {
	main := func(dir string) string { return filepath.Join(dir, source.id().MainName()) }
	change := func(f func([]byte) []byte) func(*testing.T, string, *set.Manifest) {
		return func(t *testing.T, dir string, m *set.Manifest) {
			b, err := os.ReadFile(main(dir))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(main(dir), f(b), 0o600))
		}
	}
	repack := func(f func([]byte) []byte) func([]byte) []byte {
		return func(b []byte) []byte {
			z, err := gzip.NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			plain, err := io.ReadAll(z)
			require.NoError(t, err)
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			_, err = w.Write(f(plain))
			require.NoError(t, err)
			require.NoError(t, w.Close())
			return out.Bytes()
		}
	}
	flip := func(at func([]byte) int) func([]byte) []byte {
		return func(b []byte) []byte { b[at(b)] ^= 0x10; return b }
	}
	for name, c := range map[string]struct {
		do   func(*testing.T, string, *set.Manifest)
		says string
	}{
		"truncated":        {change(func(b []byte) []byte { return b[:len(b)*2/3] }), "ends in the middle"},
		"last byte gone":   {change(func(b []byte) []byte { return b[:len(b)-1] }), "ends in the middle"},
		"trailing garbage": {change(func(b []byte) []byte { return append(b, "garbage that is long enough"...) }), "no gzip member"},
		"trailing member":  {change(func(b []byte) []byte { return append(b, repack(func([]byte) []byte { return []byte("hello") })(b)...) }), "after the tar trailer"},
		"gzip trailer":     {change(flip(func(b []byte) int { return len(b) - 6 })), "checksum of a gzip member"},
		"gzip header":      {change(flip(func([]byte) int { return 0 })), "no gzip"},
		"emptied":          {change(func([]byte) []byte { return nil }), "empty"},
		"tar header":       {change(repack(flip(func(b []byte) int { return bytes.Index(b, []byte("bundle/1\x00")) }))), "tar header"},
		"no tar trailer":   {change(repack(func(b []byte) []byte { return b[:len(b)-1024] })), "trailer"},
		"cut at an entry":  {change(repack(func(b []byte) []byte { return b[:bytes.Index(b, []byte("postgres/pgbackrest/backup/catalog/2"))] })), "trailer"},
		"archive missing":  {func(t *testing.T, dir string, _ *set.Manifest) { require.NoError(t, os.Remove(main(dir))) }, "the archive is missing"},
		"dangling link": {func(t *testing.T, dir string, _ *set.Manifest) {
			require.NoError(t, os.Remove(main(dir)))
			require.NoError(t, os.Symlink("nowhere", main(dir)))
		}, "the archive is missing"},
	} {
		for _, agrees := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dir, m := source.copyOf(t)
				c.do(t, dir, m)
				if _, err := os.Stat(main(dir)); err == nil && agrees {
					signFile(t, dir, set.MainArchive, m)
				}
				r := verified(t, source.manifest(dir))
				require.False(t, r.Good)
				text := ""
				for _, d := range r.Damage {
					text += d.String() + "\n"
				}
				require.Contains(t, text, c.says)
			})
		}
	}
}

// Entries that a set never holds.
func TestVerifyStrangeEntries(t *testing.T) {
	file := func(name string) item {
		return item{&archive.Header{Name: name, Kind: archive.Regular, Size: 5, Mode: 0o644}, []byte("hello")}
	}
	for name, c := range map[string]struct {
		kind string
		add  func([]item) []item
		says string
	}{
		"stray at the root":      {set.MainArchive, func(l []item) []item { return append([]item{file("README")}, l...) }, "README"},
		"stray application file": {set.MainArchive, func(l []item) []item { return append([]item{file("files/etc/shadow")}, l...) }, "files/etc/shadow"},
		"stray repository file":  {set.MainArchive, func(l []item) []item { return append([]item{file(set.PostgresRepo + "x")}, l...) }, set.PostgresRepo + "x"},
		"stray configuration":    {set.MainArchive, func(l []item) []item { return append([]item{file(set.PostgresConfig + "etc/x.conf")}, l...) }, "x.conf"},
		"stray segment": {set.EventBusArchive, func(l []item) []item {
			return append([]item{file(set.EventBusPrefix + "lineage/0/00000000000000000009.log")}, l...)
		}, "9.log"},
		"segment in the main one": {set.MainArchive, func(l []item) []item {
			return append([]item{file(set.EventBusPrefix + "lineage/0/00000000000000000000.log")}, l...)
		}, "does not belong there"},
		"file in the bus one": {set.EventBusArchive, func(l []item) []item { return append([]item{file("files/x")}, l...) }, "does not belong there"},
		"link in the repository": {set.MainArchive, func(l []item) []item {
			return append([]item{{&archive.Header{Name: set.PostgresRepo + "l", Kind: archive.Symlink, Link: "/etc"}, nil}}, l...)
		}, "no regular file"},
		"entry after the copy": {set.MainArchive, func(l []item) []item { return append(l, l[len(l)-2]) }, "comes after the copy"},
		"copy twice":           {set.MainArchive, func(l []item) []item { return append(l, l[len(l)-1]) }, "twice"},
		"WAL twice": {set.MainArchive, func(l []item) []item {
			at := slices.IndexFunc(l, func(x item) bool { return x.h.Kind == archive.Regular && victims[7].is(x.h.Name) })
			return slices.Insert(l, at, l[at])
		}, "twice"},
		"mode changed": {set.MainArchive, func(l []item) []item {
			l[slices.IndexFunc(l, func(x item) bool { return strings.HasSuffix(x.h.Name, "bin/run") })].h.Mode = 0o777
			return l
		}, "mode"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, m := source.copyOf(t)
			rewrite(t, dir, c.kind, m, c.add, nil)
			r := verified(t, source.manifest(dir))
			require.False(t, r.Good)
			text := ""
			for _, d := range r.Damage {
				text += d.String() + "\n"
			}
			require.Contains(t, text, c.says)
		})
	}
}

func TestVerifyManifestThatContradictsItself(t *testing.T) {
	for name, change := range map[string]func(*set.Manifest){
		"no hash":             func(m *set.Manifest) { m.Archives[0].SHA256 = "" },
		"other hash":          func(m *set.Manifest) { m.Archives[1].SHA256 = m.Archives[0].SHA256 },
		"other size":          func(m *set.Manifest) { m.Archives[0].Size++ },
		"bus archive dropped": func(m *set.Manifest) { m.Archives = m.Archives[:1] },
		"bus part dropped":    func(m *set.Manifest) { m.EventBus = nil },
		"postgres dropped":    func(m *set.Manifest) { m.Postgres = nil },
		"files dropped":       func(m *set.Manifest) { m.Files = nil },
		"kinds swapped":       func(m *set.Manifest) { m.Archives[0].Kind, m.Archives[1].Kind = m.Archives[1].Kind, m.Archives[0].Kind },
		"a note changed":      func(m *set.Manifest) { m.Notes = append(m.Notes, "all is well") },
		"stop LSN changed":    func(m *set.Manifest) { m.Postgres.StopLSN = "0/1" },
		"position changed":    func(m *set.Manifest) { m.EventBus.Groups[0].Offsets[0].Offset++ },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, m := source.copyOf(t)
			change(m)
			text, err := json.Marshal(m)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(source.manifest(dir), text, 0o600))
			require.False(t, verified(t, source.manifest(dir)).Good)
		})
	}
}

func sha(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:8]
}
