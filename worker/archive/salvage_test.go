package archive

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// salvageSource is an archive of many gzip members, with where in the file they lie.
type salvageSource struct {
	raw     []byte
	members [][4]int64 // from, to in the file; from, to in the plain stream
	list    []sourceEntry
	byName  map[string]int
}

type sourceEntry struct {
	h        Header
	content  string
	from, to int64 // in the plain stream, with headers and padding
	pax      bool
}

func newSalvageSource(t *testing.T) *salvageSource {
	s := &salvageSource{byName: map[string]int{}}
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{Level: 1})
	require.NoError(t, err)
	noise := rand.NewChaCha8([32]byte{3})
	at := int64(0)
	for i := range 80 {
		content := make([]byte, []int{300, 70_000, 5000, 0, 150_001}[i%5])
		_, _ = noise.Read(content)
		if i%5 == 2 {
			content = []byte(strings.Repeat("text ", 1000))
		}
		h := Header{Name: fmt.Sprintf("files/dir/%03d", i), Kind: Regular, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1_700_000_000+int64(i), 0)}
		if i%3 == 0 {
			h.ModTime = h.ModTime.Add(123)
		}
		if i%4 == 0 {
			h.Xattrs = map[string]string{"user.origin": fmt.Sprintf("%d %s", i, strings.Repeat("z", i))}
		}
		require.NoError(t, w.Entry(t.Context(), &h, bytes.NewReader(content), Auto))
		head, err := h.encode()
		require.NoError(t, err)
		to := at + int64(len(head)) + h.Size + padding(h.Size)
		s.byName[h.Name] = len(s.list)
		s.list = append(s.list, sourceEntry{h, string(content), at, to, head[156] == 'x'})
		at = to
	}
	_, err = w.Finish()
	require.NoError(t, err)
	s.raw, err = os.ReadFile(path)
	require.NoError(t, err)
	in := bytes.NewReader(s.raw)
	for plain := int64(0); in.Len() > 0; {
		from := int64(len(s.raw) - in.Len())
		z, err := gzip.NewReader(in)
		require.NoError(t, err)
		z.Multistream(false)
		n, err := io.Copy(io.Discard, z)
		require.NoError(t, err)
		s.members = append(s.members, [4]int64{from, int64(len(s.raw) - in.Len()), plain, plain + n})
		plain += n
	}
	return s
}

// touched tells whether an entry has bytes in a damaged member.
func (s *salvageSource) touched(x sourceEntry, from, to int64) bool {
	for _, m := range s.members {
		if m[0] < to && m[1] > from && m[2] < x.to && m[3] > x.from {
			return true
		}
	}
	return false
}

// salvaged reads what can be read.
func salvaged(t *testing.T, raw []byte, known map[string]int) (got map[string]*Header, content map[string]string, told map[string]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "damaged.tar.gz")
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	got, content, told = map[string]*Header{}, map[string]string{}, map[string]string{}
	r, err := OpenSalvage(path, Salvage{
		Fits:   func(h, _ *Header) bool { _, ok := known[h.Name]; return ok },
		Bare:   func(*Header) bool { return false },
		Damage: func(entry string, d *DamageError) { told[entry] += d.Error() + "\n" },
	})
	require.NoError(t, err)
	defer r.Close()
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		if err == nil {
			got[h.Name], content[h.Name] = h, string(b)
		}
	}
	sum, err := r.Finish()
	require.NoError(t, err)
	require.Equal(t, int64(len(raw)), sum.Size)
	require.NoError(t, os.Remove(path))
	return got, content, told
}

// Whatever is damaged: what lies in whole members is read, and extended attributes, which
// have no other checksum than the member's, do not change without a word.
func TestSalvage(t *testing.T) {
	s := newSalvageSource(t)
	require.Greater(t, len(s.members), 30)
	got, content, told := salvaged(t, s.raw, s.byName)
	require.Len(t, got, len(s.list))
	require.Empty(t, told)
	require.Equal(t, s.list[6].content, content[s.list[6].h.Name])
	end := int64(len(s.raw))
	r := rand.New(rand.NewPCG(1, 2))
	check := func(what string, touched func(sourceEntry) bool, damaged []byte) {
		t.Helper()
		got, content, told := salvaged(t, damaged, s.byName)
		require.NotEmpty(t, told, what)
		doubted, lost := len(s.list), 0
		for entry, d := range told {
			if strings.Contains(d, "extended attributes") {
				doubted = min(doubted, s.byName[entry])
			}
		}
		for i, x := range s.list {
			h := got[x.h.Name]
			if h != nil && content[x.h.Name] == x.content && h.ModTime.Equal(x.h.ModTime) && !reflect.DeepEqual(h.Xattrs, x.h.Xattrs) {
				require.LessOrEqual(t, doubted, i, "%s: the attributes of %s are %q, and nothing was said: %v", what, x.h.Name, h.Xattrs, told)
			}
			if touched(x) {
				continue
			}
			if h == nil && !x.pax {
				lost++ // the first one behind the break, which may have lost an extended header
				continue
			}
			require.NotNil(t, h, "%s: %s is whole: %v", what, x.h.Name, told)
			require.Equal(t, x.content, content[x.h.Name], "%s: %s", what, x.h.Name)
		}
		require.LessOrEqual(t, lost, 2, what) // one a break
	}
	in := func(from, to int64) func(sourceEntry) bool {
		return func(x sourceEntry) bool { return s.touched(x, from, to) }
	}
	for i, m := range s.members {
		b := bytes.Clone(s.raw)
		field, bit := i/2%4, i/3%8
		b[m[0]+int64(field)] ^= 1 << bit
		if field == 3 && bit == 0 {
			continue // "probably text": no harm
		}
		if field == 3 { // flags: what was skipped for them has broken an entry
			check(fmt.Sprintf("flags of member %d", i), func(x sourceEntry) bool { return x.from < m[2] && x.to > m[2] }, b)
		} else {
			check(fmt.Sprintf("header of member %d", i), in(0, 0), b) // nothing is lost
		}
	}
	for i := range 60 {
		at := r.Int64N(end)
		b := bytes.Clone(s.raw)
		if i%2 == 0 {
			b[at] ^= 1 << r.IntN(8)
			check(fmt.Sprintf("flip at %d", at), in(at, at+1), b)
			continue
		}
		n := min(end-at, 1+r.Int64N(1<<(1+r.IntN(17))))
		clear(b[at : at+n])
		if bytes.Equal(b, s.raw) {
			continue
		}
		check(fmt.Sprintf("%d zeros at %d", n, at), in(at, at+n), b)
	}
	for range 10 {
		at := r.Int64N(end-2) + 1
		check(fmt.Sprintf("cut at %d", at), in(at, end), bytes.Clone(s.raw[:at]))
	}
	for i := range 10 { // bytes gone, or come in: the rest is in another place
		at, n := r.Int64N(end-1000), r.Int64N(900)+1
		b := append(bytes.Clone(s.raw[:at]), s.raw[at+n:]...)
		if i%2 == 0 {
			b = append(append(bytes.Clone(s.raw[:at]), make([]byte, n)...), s.raw[at:]...)
		}
		check(fmt.Sprintf("%d bytes more or less at %d", n, at), in(at, at+n), b)
	}

	// Damage below the checksums of gzip, such as of a disk before the archive was written.
	z, err := gzip.NewReader(bytes.NewReader(s.raw))
	require.NoError(t, err)
	plain, err := io.ReadAll(z)
	require.NoError(t, err)
	again := func(change func(b []byte)) []byte {
		b := bytes.Clone(plain)
		change(b)
		var out bytes.Buffer
		z, err := gzip.NewWriterLevel(&out, gzip.HuffmanOnly)
		require.NoError(t, err)
		_, err = z.Write(b)
		require.NoError(t, errors.Join(err, z.Close()))
		return out.Bytes()
	}
	for i, x := range s.list {
		own := func(y sourceEntry) bool { return y.from == x.from }
		switch i % 3 {
		case 0:
			check(fmt.Sprintf("header of entry %d", i), own, again(func(b []byte) { b[x.from+int64(i%512)] ^= 4 }))
		case 1:
			check(fmt.Sprintf("header of entry %d zeroed", i), own, again(func(b []byte) { clear(b[x.from : x.from+512]) }))
		case 2:
			check(fmt.Sprintf("a trailer at entry %d", i), own, again(func(b []byte) { clear(b[x.from:min(x.from+1024, x.to)]) }))
		}
	}

	// An attribute that changed in the file: nothing but the member's checksum knows.
	at := bytes.Index(plain, []byte("zzzz"))
	var out bytes.Buffer
	store, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
	require.NoError(t, err)
	_, err = store.Write(plain)
	require.NoError(t, errors.Join(err, store.Close()))
	at = bytes.Index(out.Bytes(), plain[at-20:at+4])
	require.Positive(t, at)
	out.Bytes()[at+21] ^= 1
	check("attribute", in(0, 0), out.Bytes())
}
