package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// readWhole reads an archive to its last byte.
func readWhole(path string) (Sum, error) {
	r, err := Open(path)
	if err != nil {
		return Sum{}, err
	}
	defer r.Close()
	for {
		if _, err := r.Next(); err != nil {
			break
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			break
		}
	}
	return r.Finish()
}

func smallArchive(t *testing.T) (string, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	put(t, w, []piece1{{"a", text100(5000), Auto}, {"b", noise(100000), Auto}, {"c", text100(3000), Auto}, {"d", text100(200000), Packed}})
	_, err = w.Finish()
	require.NoError(t, err)
	return path, must(os.ReadFile(path))
}

// mustBeDamage requires an error that names the archive, the place and is one line,
// and the sum of the file as it is.
func mustBeDamage(t *testing.T, path, what string) {
	t.Helper()
	sum, err := readWhole(path)
	var d *DamageError
	require.True(t, errors.As(err, &d), "%s: %v", what, err)
	require.Contains(t, err.Error(), path)
	require.Contains(t, err.Error(), "byte ")
	require.NotContains(t, err.Error(), "\n")
	require.Equal(t, sumOf(t, path), sum, what)
}

func TestDamageIsFound(t *testing.T) {
	path, good := smallArchive(t)
	_, err := readWhole(path)
	require.NoError(t, err)
	try := func(what string, b []byte) {
		t.Helper()
		require.NoError(t, os.WriteFile(path, b, 0600))
		mustBeDamage(t, path, what)
	}
	for cut := 0; cut < len(good); cut += 1 + len(good)/300 {
		try("cut", good[:cut])
	}
	for back := 1; back < 60; back++ {
		try("cut at the end", good[:len(good)-back])
	}
	for range 400 {
		b := bytes.Clone(good)
		b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
		require.NoError(t, os.WriteFile(path, b, 0600))
		sum, err := readWhole(path)
		if err == nil { // in a gzip header's time or system: the content is the same, the hash is not
			require.NotEqual(t, sumOf(t, path).SHA256, Sum{}.SHA256)
		}
		require.Equal(t, sumOf(t, path), sum)
	}
	try("garbage after the last member", append(bytes.Clone(good), "garbage"...))
	try("zeros after the last member", append(bytes.Clone(good), make([]byte, 1000)...))
	try("one byte", append(bytes.Clone(good), 0))
	try("twice", append(bytes.Clone(good), good...))
	try("no gzip", bytes.Repeat([]byte("x"), 1000))
	try("empty", nil)
}

func TestMissingTrailerAndMiddle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	put(t, w, variety()[:5])
	_, err = w.Hold()
	require.NoError(t, err)
	run(t, "gzip", "-t", path)
	mustBeDamage(t, path, "no trailer")

	_, err = Open(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Open(t.TempDir())
	require.Error(t, err)
}

// A reader given up anywhere leaves no goroutine waiting: Close returns.
func TestCloseEarly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	require.NoError(t, w.Entry(context.Background(), &Header{Name: "x", Kind: Regular, Size: 30 << 20}, bytes.NewReader(noise(30<<20)), Auto))
	_, err = w.Finish()
	require.NoError(t, err)
	for n := range 4 {
		r, err := Open(path)
		require.NoError(t, err)
		if n > 0 {
			_, err = r.Next()
			require.NoError(t, err)
		}
		if n > 1 {
			_, err = io.CopyN(io.Discard, r, int64(n)<<20)
			require.NoError(t, err)
		}
		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
		_, err = r.Next()
		require.Error(t, err)
		_, err = r.Finish()
		require.Error(t, err)
	}
}

func FuzzTar(f *testing.F) {
	for _, h := range oddHeaders() {
		if h.Kind == 0 {
			h.Kind = Regular
		}
		b, _ := h.encode()
		f.Add(append(b, make([]byte, 1024)...))
	}
	b, _ := (&Header{Name: "s", Kind: Regular, Size: 9000, Sparse: []Extent{{100, 20}, {9000, 0}}}).encode()
	f.Add(append(append(b, make([]byte, 512)...), make([]byte, 1024)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		u := &unpacker{path: "x", plain: make(chan plain), reuse: make(chan []byte, 1)}
		close(u.plain)
		r := &Reader{u: u, have: b}
		for {
			h, err := r.Next()
			if err != nil {
				return
			}
			if h.Size > 1<<30 {
				return
			}
			_, _ = io.Copy(io.Discard, r)
		}
	})
}
