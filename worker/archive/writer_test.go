package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

// run runs a program that must succeed and say nothing on stderr.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	require.NoError(t, cmd.Run(), "%s %v: %s", name, args, bad.String())
	require.Empty(t, bad.String(), "%s %v", name, args)
	return out.String()
}

// noise is incompressible, text compressible content.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func text100(n int) []byte {
	return bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, again and again...\n"), n/64+1)[:n]
}

type piece1 struct {
	name string
	data []byte
	c    Class
}

// variety is content that makes the writer switch members in every way.
func variety() []piece1 {
	mixed := append(append(text100(9<<20), noise(9<<20)...), text100(1<<20)...)
	return []piece1{
		{"empty", nil, Auto}, {"one", []byte("x"), Packed}, {"small-noise", noise(1000), Auto},
		{"text", text100(300 << 10), Auto}, {"noise", noise(300<<10 + 1), Auto}, {"after-noise", text100(511), Auto},
		{"packed", text100(1 << 20), Packed}, {"packed-again", noise(65536), Packed}, {"block", text100(512), Text},
		{"mixed", mixed, Auto}, {"edge-64k", noise(64<<10 - 1), Auto}, {"edge-64k+", noise(64<<10 + 1), Auto}, {"last", text100(700), Text},
	}
}

func put(t *testing.T, w *Writer, list []piece1) {
	t.Helper()
	for _, p := range list {
		h := &Header{Name: "v/" + p.name, Kind: Regular, Size: int64(len(p.data)), Mode: 0640, ModTime: time.Unix(1700000000, 123456789)}
		require.NoError(t, w.Entry(context.Background(), h, bytes.NewReader(p.data), p.c))
	}
}

// checkWith has every other program read the archive, and Go's own libraries.
func checkWith(t *testing.T, path string, list []piece1) {
	t.Helper()
	run(t, "gzip", "-t", path)
	for _, prog := range []string{"tar", "bsdtar"} {
		dir := t.TempDir()
		run(t, prog, "-xzf", path, "-C", dir)
		for _, p := range list {
			b, err := os.ReadFile(filepath.Join(dir, "v", p.name))
			require.NoError(t, err)
			require.True(t, bytes.Equal(p.data, b), "%s: %s", prog, p.name)
		}
	}
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	tr := tar.NewReader(z)
	for _, p := range list {
		h, err := tr.Next()
		require.NoError(t, err)
		require.Equal(t, "v/"+p.name, h.Name)
		b, err := io.ReadAll(tr)
		require.NoError(t, err)
		require.True(t, bytes.Equal(p.data, b))
	}
	_, err = tr.Next()
	require.Equal(t, io.EOF, err)
	ours(t, path, list)
}

// ours reads with our reader and returns the sum.
func ours(t *testing.T, path string, list []piece1) Sum {
	t.Helper()
	r, err := Open(path)
	require.NoError(t, err)
	defer r.Close()
	for _, p := range list {
		h, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, "v/"+p.name, h.Name)
		require.Equal(t, int64(0640), h.Mode)
		require.True(t, h.ModTime.Equal(time.Unix(1700000000, 123456789)))
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(p.data, b), p.name)
	}
	_, err = r.Next()
	require.Equal(t, io.EOF, err)
	sum, err := r.Finish()
	require.NoError(t, err)
	return sum
}

func sumOf(t *testing.T, path string) Sum {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	s := sha256.Sum256(b)
	return Sum{int64(len(b)), hex.EncodeToString(s[:])}
}

func TestOtherProgramsReadTheArchive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	old := unix.Umask(0)
	defer unix.Umask(old)
	w, err := Create(path, Options{})
	require.NoError(t, err)
	list := variety()
	put(t, w, list)
	sum, err := w.Finish()
	require.NoError(t, err)
	w.Abort()
	require.Equal(t, sumOf(t, path), sum)
	require.Contains(t, run(t, "sha256sum", path), sum.SHA256)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0600), st.Mode().Perm())
	checkWith(t, path, list)
	require.Equal(t, sum, ours(t, path, list))
	// 9 MiB of the 19 in "mixed" and the text must have been compressed, the noise not blown up.
	require.Less(t, sum.Size, int64(13<<20))

	_, err = Create(path, Options{})
	require.ErrorIs(t, err, os.ErrExist)
}

func TestEmptyArchive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	_, err = w.Finish()
	require.NoError(t, err)
	checkWith(t, path, nil)
}

// A crash after Hold leaves anything from the held bytes on; what comes out after
// Resume must not depend on it.
func TestResumeAtAnyCut(t *testing.T) {
	list := variety()
	for cut := 0; cut <= len(list); cut += 3 {
		path := filepath.Join(t.TempDir(), "a.tar.gz")
		w, err := Create(path, Options{Level: 3, Parallel: 2})
		require.NoError(t, err)
		put(t, w, list[:cut])
		b, err := w.Hold()
		require.NoError(t, err)
		js, err := json.Marshal(b)
		require.NoError(t, err)
		var again Begun
		require.NoError(t, json.Unmarshal(js, &again))
		for _, junk := range []int{0, 1, 511, 100000} {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			require.NoError(t, err)
			_, err = f.Write(noise(junk))
			require.NoError(t, err)
			f.Close()
			w, err := Resume(again, Options{})
			require.NoError(t, err)
			put(t, w, list[cut:])
			sum, err := w.Finish()
			require.NoError(t, err)
			require.Equal(t, sumOf(t, path), sum)
			require.Equal(t, sum, ours(t, path, list))
		}
		run(t, "gzip", "-t", path)
		run(t, "tar", "-tzf", path)
		require.NoError(t, os.Truncate(path, max(b.Size-1, 0)))
		_, err = Resume(again, Options{})
		if b.Size > 0 {
			require.True(t, stage.IsPermanent(err), "%v", err)
		}
		require.NoError(t, os.Remove(path))
		_, err = Resume(again, Options{})
		require.True(t, stage.IsPermanent(err), "what is gone does not come back: %v", err)
		require.ErrorContains(t, err, "run the backup again")
	}
}

func TestContentOfAnotherLength(t *testing.T) {
	for _, have := range []int{0, 99, 101, 1 << 20} {
		path := filepath.Join(t.TempDir(), "a.tar.gz")
		w, err := Create(path, Options{})
		require.NoError(t, err)
		h := &Header{Name: "x", Kind: Regular, Size: 100}
		err = w.Entry(context.Background(), h, bytes.NewReader(noise(have)), Auto)
		require.ErrorContains(t, err, "x")
		require.Error(t, w.Entry(context.Background(), h, bytes.NewReader(noise(100)), Auto), "the writer stays broken")
		_, err = w.Hold()
		require.Error(t, err)
		w.Abort()
	}
}

func TestBadHeaderLeavesTheWriterGood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	for _, name := range []string{"", "/a", "a/../b", "..", "./a", "a//b", "a\x00b", "a/"} {
		require.Error(t, w.Entry(context.Background(), &Header{Name: name, Kind: Regular}, nil, Auto), "%q", name)
	}
	require.Error(t, w.Entry(context.Background(), &Header{Name: "x", Kind: FIFO}, nil, Auto))
	require.Error(t, w.Entry(context.Background(), &Header{Name: "x", Kind: Regular, Xattrs: map[string]string{"user.x": strings.Repeat("x", 2<<20)}}, nil, Auto))
	list := variety()
	put(t, w, list[:3])
	_, err = w.Finish()
	require.NoError(t, err)
	ours(t, path, list[:3])
}

func TestCancelEndsAnEntry(t *testing.T) {
	w, err := Create(filepath.Join(t.TempDir(), "a.tar.gz"), Options{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancelCause(context.Background())
	stop := errors.New("cancelled by hand")
	r := readerFunc(func(p []byte) (int, error) { cancel(stop); clear(p); return len(p), nil })
	require.ErrorIs(t, w.Entry(ctx, &Header{Name: "x", Kind: Regular, Size: 1 << 40}, r, Auto), stop)
	w.Abort()
	w.Abort()
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// tmpfs mounts a small file system.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size), "this test must be root to make a file system that fills up")
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func TestFullDisk(t *testing.T) {
	for _, c := range []Class{Packed, Text} {
		dir := tmpfs(t, "4m")
		w, err := Create(filepath.Join(dir, "a.tar.gz"), Options{})
		require.NoError(t, err)
		data := noise(1 << 20)
		for i := 0; i < 64 && err == nil; i++ {
			err = w.Entry(context.Background(), &Header{Name: fmt.Sprint("f", i), Kind: Regular, Size: 1 << 20}, bytes.NewReader(data), c)
		}
		if err == nil {
			_, err = w.Finish()
		}
		require.ErrorIs(t, err, unix.ENOSPC)
		require.True(t, stage.IsPermanent(err))
		require.ErrorContains(t, err, "free space")
		require.NotContains(t, err.Error(), "\n")
		w.Abort()
	}
}

// The disk may be full only when the last bytes are flushed.
func TestFullDiskAtTheEnd(t *testing.T) {
	dir := tmpfs(t, "64k")
	w, err := Create(filepath.Join(dir, "a.tar.gz"), Options{})
	require.NoError(t, err)
	require.NoError(t, w.Entry(context.Background(), &Header{Name: "f", Kind: Regular, Size: 100000}, bytes.NewReader(noise(100000)), Packed))
	_, err = w.Finish()
	require.ErrorIs(t, err, unix.ENOSPC)
	require.True(t, stage.IsPermanent(err))
}

func TestEntriesFromSeveralGoroutines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	done := make(chan error)
	for i := range 8 {
		go func() {
			data := text100(100000 + i)
			done <- w.Entry(context.Background(), &Header{Name: fmt.Sprint("f", i), Kind: Regular, Size: int64(len(data))}, bytes.NewReader(data), Auto)
		}()
	}
	for range 8 {
		require.NoError(t, <-done)
	}
	_, err = w.Finish()
	require.NoError(t, err)
	require.Len(t, strings.Fields(run(t, "tar", "-tzf", path)), 8)
}
