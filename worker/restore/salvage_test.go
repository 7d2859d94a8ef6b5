package restore

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/stage"
)

// layout is what a whole archive looks like in its file.
type layout struct {
	raw     []byte
	members []member
	parts   []span // of the plain stream, by part
	copyAt  int64  // where the manifest's copy begins in it
}

type member struct{ rawFrom, rawTo, from, to int64 }

type span struct {
	part     string
	entry    string
	from, to int64
}

func layoutOf(t testing.TB, path string) *layout {
	t.Helper()
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	l := &layout{raw: raw}
	in := bytes.NewReader(raw)
	var plain bytes.Buffer
	for in.Len() > 0 {
		m := member{rawFrom: int64(len(raw) - in.Len()), from: int64(plain.Len())}
		z, err := gzip.NewReader(in)
		require.NoError(t, err)
		z.Multistream(false)
		_, err = io.Copy(&plain, z)
		require.NoError(t, err)
		m.rawTo, m.to = int64(len(raw)-in.Len()), int64(plain.Len())
		l.members = append(l.members, m)
	}
	l.walk(plain.Bytes())
	return l
}

// walk finds the entries in a plain tar, each with its extended headers and padding.
func (l *layout) walk(b []byte) {
	for at := int64(0); at+512 <= int64(len(b)) && b[at] != 0; {
		from := at
		name := ""
		for {
			var size int64
			_, _ = fmt.Sscanf(string(b[at+124:at+135]), "%o", &size)
			flag := b[at+156]
			if name == "" && flag == 'x' { // "NN path=…"
				if _, rest, ok := bytes.Cut(b[at+512:at+512+size], []byte("path=")); ok {
					name = string(bytes.SplitN(rest, []byte("\n"), 2)[0])
				}
			}
			if name == "" && flag != 'x' && flag != 'L' && flag != 'K' {
				name = string(bytes.TrimRight(b[at:at+100], "\x00"))
			}
			at += 512 + (size+511)&^511
			if flag != 'x' && flag != 'L' && flag != 'K' {
				break
			}
		}
		if name == set.ManifestCopy {
			l.copyAt = from
		}
		l.parts = append(l.parts, span{partOf(strings.TrimSuffix(strings.TrimPrefix(name, "GNUSparseFile.0/"), "/")), name, from, at})
	}
}

// touched are the parts that have bytes in a member that the raw bytes [from, to) lie in.
func (l *layout) touched(from, to int64) map[string]bool {
	out := map[string]bool{}
	for _, m := range l.members {
		if m.rawTo <= from || m.rawFrom >= to {
			continue
		}
		for _, s := range l.parts {
			if s.from < m.to && s.to > m.from {
				out[s.part] = true
			}
		}
	}
	return out
}

// smallSet is a set of an earlier version: small, so that it can be damaged many times.
func smallSet(t testing.TB) (manifest string, m *set.Manifest) {
	t.Helper()
	found, err := filepath.Glob("../e2e/testdata/v0.1/bus/*_alation_backup.json")
	require.NoError(t, err)
	require.Len(t, found, 1)
	m, err = set.ReadManifest(found[0])
	require.NoError(t, err)
	return found[0], m
}

// salvaged verifies a set and unpacks the parts that can be restored: what comes out of
// each, by path.
func salvaged(t testing.TB, manifest string, parts ...string) (map[string]map[string]string, *Report) {
	t.Helper()
	s, err := Open(t.Context(), manifest, "")
	require.NoError(t, err)
	o := options(filepath.Join(scratch(t), "target"))
	o.Phase = func(string) stage.Progress { return stage.NoProgress{} }
	j := &job{o: o, s: s, parts: parts, result: &Result{Set: s.Manifest.Set}}
	r, err := Verify(t.Context(), s, VerifyOptions{Kinds: j.kinds()})
	require.NoError(t, err)
	_, _, j.parts = judge(r.Damage, parts)
	j.sums = r.sums
	require.NoError(t, j.makeTarget())
	require.NoError(t, j.unpack(t.Context()))
	out := map[string]map[string]string{}
	for _, part := range j.parts {
		out[part] = map[string]string{}
		for name, x := range tree(t, filepath.Join(j.o.Target, map[string]string{PostgresPart: stagingName, FilesPart: "files", EventBusPart: "eventbus"}[part])) {
			if part != FilesPart && x[0] == '4' || part == FilesPart && !strings.HasPrefix("/"+name, s.Manifest.Files.Paths[0]) {
				x = "a directory without an entry of its own"
			}
			out[part][name] = x
		}
	}
	require.NoError(t, os.RemoveAll(filepath.Dir(j.o.Target)))
	return out, r
}

// hit is something done to the bytes [from, to) of a file.
type hit struct {
	name     string
	from, to int64
	do       func(b []byte) []byte
}

// hits are damages of every kind at every kind of place.
func (l *layout) hits(random int) []hit {
	var out []hit
	end := int64(len(l.raw))
	add := func(name string, from, to int64, do func(b []byte) []byte) {
		if to = min(to, end); from < to {
			out = append(out, hit{fmt.Sprintf("%s %d-%d", name, from, to), from, to, do})
		}
	}
	flip := func(at int64) { add("flip", at, at+1, func(b []byte) []byte { b[at] ^= 0x10; return b }) }
	zero := func(at, n int64) {
		add("zeros", at, at+n, func(b []byte) []byte { clear(b[at:min(at+n, end)]); return b })
	}
	cut := func(at int64) { add("cut", at, end, func(b []byte) []byte { return b[:at] }) }
	for _, m := range l.members {
		for _, i := range []int64{0, 2, 3, 4, 9} { // of a header: magic, method, flags, time, system
			flip(m.rawFrom + i)
		}
		flip((m.rawFrom + m.rawTo) / 2)
		flip(m.rawTo - 3) // length
		flip(m.rawTo - 6) // checksum
		zero(m.rawFrom, 40)
		cut(m.rawTo)
	}
	r := rand.New(rand.NewPCG(7, 7))
	for range random {
		flip(r.Int64N(end))
		zero(r.Int64N(end), 1+r.Int64N(1<<(1+r.IntN(18))))
		cut(r.Int64N(end))
		at, n := r.Int64N(end-10), r.Int64N(100_000)
		add("hole", at, end, func(b []byte) []byte { return append(b[:at], b[min(at+n, end):]...) })
	}
	return out
}

// A part that is judged whole comes out as it was, whatever is wrong in the file; and
// one that lies in no damaged gzip member is judged whole.
func TestSalvageAnyDamage(t *testing.T) {
	manifest, m := smallSet(t)
	for _, kind := range []string{set.MainArchive, set.EventBusArchive} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, _ := m.Archive(kind)
			l := layoutOf(t, filepath.Join(filepath.Dir(manifest), a.Name))
			parts := []string{PostgresPart, FilesPart}
			if kind == set.EventBusArchive {
				parts = []string{EventBusPart}
			}
			good, r := salvaged(t, manifest, parts...)
			require.Empty(t, r.Damage)
			whole, spared := 0, 0
			hits := l.hits(10)
			for _, h := range hits {
				dir := scratch(t)
				text, err := os.ReadFile(manifest)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(manifest)), text, 0o600))
				require.NoError(t, os.WriteFile(filepath.Join(dir, a.Name), h.do(bytes.Clone(l.raw)), 0o600))
				got, r := salvaged(t, filepath.Join(dir, filepath.Base(manifest)), parts...)
				require.False(t, r.Good, h.name)
				touched := l.touched(h.from, h.to)
				for _, p := range parts {
					if got[p] == nil {
						require.True(t, touched[p], "%s: %s lies elsewhere: %v", h.name, p, r.Damage)
						continue
					}
					require.Equal(t, good[p], got[p], h.name)
					whole++
					if !touched[p] {
						spared++
					}
				}
				require.NoError(t, os.RemoveAll(dir))
			}
			t.Logf("%d damages of %d gzip members: a part came out whole %d times, %d of them beside the damage", len(hits), len(l.members), whole, spared)
			require.Greater(t, whole, len(hits)/3)
		})
	}
}

// The archive of an older set is among the files, where the archive is damaged: nothing in it
// is taken for the database, nor its manifest for that of the set.
func TestSalvageOverAnOlderSet(t *testing.T) {
	from, older := smallSet(t)
	packed, err := os.ReadFile(filepath.Join(filepath.Dir(from), set.ID(older.Set).MainName()))
	require.NoError(t, err)
	entry := set.FilesPrefix + source.app[1:] + "/older_alation_backup.tar.gz"
	dir, m := source.copyOf(t)
	rewrite(t, dir, set.MainArchive, m, func(l []item) []item {
		at := slices.IndexFunc(l, func(x item) bool { return partOf(x.h.Name) == FilesPart && x.h.Kind == archive.Regular })
		h := *l[at].h
		h.Name, h.Size = entry, int64(len(packed))
		return slices.Insert(l, at, item{&h, packed})
	}, nil)
	path := filepath.Join(dir, source.id().MainName())
	l := layoutOf(t, path)
	at := slices.IndexFunc(l.parts, func(s span) bool { return s.entry == entry })
	own := slices.IndexFunc(l.members, func(x member) bool { return x.from > l.parts[at].from })
	clear(l.raw[l.members[own].rawFrom:][:40]) // of what is stored in it as it is, the first member is found next
	require.NoError(t, os.WriteFile(path, l.raw, 0o600))

	whole, _ := salvaged(t, source.manifest(source.dump), PostgresPart)
	got, r := salvaged(t, source.manifest(dir), PostgresPart, FilesPart)
	require.True(t, maps.Equal(whole[PostgresPart], got[PostgresPart]), "%v", r.Damage)
	require.Nil(t, got[FilesPart])
	require.NoError(t, os.Remove(source.manifest(dir)))
	s, err := Open(t.Context(), path, "")
	require.NoError(t, err)
	require.Equal(t, source.set, s.Manifest.Set)
	require.Empty(t, s.before)
}
