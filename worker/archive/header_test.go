package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// odd headers, each of which needs an extended record or a decision.
func oddHeaders() []*Header {
	at := time.Unix(1700000000, 0)
	deep := strings.Repeat("directory/", 60) + "f"
	return []*Header{
		{Name: "plain", Mode: 0644, ModTime: at},
		{Name: "nanoseconds", Mode: 0644, ModTime: time.Unix(1700000000, 1)},
		{Name: "before-1970", Mode: 0644, ModTime: time.Unix(-2, 0)},
		{Name: "before-1970-ns", Mode: 0644, ModTime: time.Unix(-2, 999999999)},
		{Name: "minus-half", Mode: 0644, ModTime: time.Unix(-1, 500000000)},
		{Name: "far", Mode: 0644, ModTime: time.Unix(13000000000, 5)},
		{Name: "setuid", Mode: 07755, ModTime: at},
		{Name: "owner", UID: 1 << 21, GID: 1<<31 + 5, User: "someone", Group: "a group", ModTime: at},
		{Name: "long-user", User: strings.Repeat("ü", 40), ModTime: at},
		{Name: "größe", ModTime: at},
		{Name: "caf\xe9", ModTime: at},
		{Name: strings.Repeat("d\xe9/", 60) + "long\xff", ModTime: at},
		{Name: strings.Repeat("n", 255), ModTime: at},
		{Name: strings.Repeat("x", 100), ModTime: at},
		{Name: deep, ModTime: at},
		{Name: "new\nline and \t tab", ModTime: at},
		{Name: "back\\slash *?[", ModTime: at},
		{Name: " leading and trailing ", ModTime: at},
		{Name: "d", Kind: Dir, Mode: 01777, ModTime: at},
		{Name: strings.Repeat("q", 99) + "d", Kind: Dir, Mode: 0700, ModTime: at},
		{Name: "sym", Kind: Symlink, Link: "/no/../where//", Mode: 0777, ModTime: at},
		{Name: "sym-long", Kind: Symlink, Link: strings.Repeat("t/", 300) + "\xfe", Mode: 0777, ModTime: at},
		{Name: "hard", Kind: HardLink, Link: "plain", Mode: 0644, ModTime: at},
		{Name: "hard-long", Kind: HardLink, Link: deep, Mode: 0644, ModTime: at},
		{Name: "xattr", ModTime: at, Xattrs: map[string]string{"user.a=b%c": "\x00\n=binary\xff", "user.empty": "", "user.long": strings.Repeat("v", 3000)}},
	}
}

func TestOddHeadersComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	list := oddHeaders()
	for _, h := range list {
		if h.Kind == 0 {
			h.Kind = Regular
		}
		require.NoError(t, w.Entry(context.Background(), h, nil, Auto))
	}
	_, err = w.Finish()
	require.NoError(t, err)

	r, err := Open(path)
	require.NoError(t, err)
	defer r.Close()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	tr := tar.NewReader(z)
	for _, want := range list {
		got, err := r.Next()
		require.NoError(t, err)
		require.True(t, want.ModTime.Equal(got.ModTime), "%s: %v %v", want.Name, want.ModTime, got.ModTime)
		a, b := *want, *got
		a.ModTime, b.ModTime = time.Time{}, time.Time{}
		require.Equal(t, a, b)

		g, err := tr.Next()
		require.NoError(t, err, want.Name)
		require.Equal(t, want.Name, strings.TrimSuffix(g.Name, "/"))
		require.Equal(t, want.Link, g.Linkname)
		require.Equal(t, byte(want.Kind), g.Typeflag)
		require.Equal(t, want.UID, g.Uid)
		require.Equal(t, want.GID, g.Gid)
		require.Equal(t, want.User, g.Uname)
		require.True(t, want.ModTime.Equal(g.ModTime), "%s: Go reads %v", want.Name, g.ModTime)
	}
	// GNU tar and bsdtar: the names, byte for byte.
	for _, prog := range []string{"tar", "bsdtar"} {
		dir := t.TempDir()
		args := []string{"-xzf", path, "-C", dir, "--no-same-owner"}
		if prog == "tar" {
			args = append(args, "--warning=no-timestamp")
		}
		run(t, prog, args...)
		for _, h := range list {
			st, err := os.Lstat(filepath.Join(dir, h.Name))
			require.NoError(t, err, "%s %q", prog, h.Name)
			// bsdtar 3.6 is a second off for fractions before 1970; GNU tar and Go read the same as we do.
			if h.Kind == Regular && (prog == "tar" || h.ModTime.Unix() >= 0 || h.ModTime.Nanosecond() == 0) {
				require.True(t, st.ModTime().Equal(h.ModTime), "%s %q: %v", prog, h.Name, st.ModTime())
			}
			if h.Kind == Symlink {
				got, err := os.Readlink(filepath.Join(dir, h.Name))
				require.NoError(t, err)
				require.Equal(t, h.Link, got)
			}
		}
	}
}

// What other programs write in formats that we do not write but may meet.
func TestReadsOtherPrograms(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	long := filepath.Join(src, strings.Repeat("l", 200))
	require.NoError(t, os.MkdirAll(long, 0755))
	require.NoError(t, os.WriteFile(filepath.Join(long, strings.Repeat("m", 200)), text100(70000), 0644))
	require.NoError(t, os.Symlink(strings.Repeat("z", 300), filepath.Join(src, "s")))
	for _, format := range []string{"gnu", "oldgnu", "pax", "ustar", "v7"} {
		if format == "ustar" || format == "v7" {
			require.NoError(t, os.RemoveAll(long))
			os.Remove(filepath.Join(src, "s"))
			require.NoError(t, os.MkdirAll(filepath.Join(src, "short"), 0755))
			require.NoError(t, os.WriteFile(filepath.Join(src, "short", "m"), text100(70000), 0644))
		}
		path := filepath.Join(dir, format+".tar.gz")
		run(t, "tar", "-czf", path, "--format="+format, "-C", dir, "src")
		r, err := Open(path)
		require.NoError(t, err)
		n := 0
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			require.NoError(t, err, format)
			if h.Kind == Regular {
				b, err := io.ReadAll(r)
				require.NoError(t, err)
				require.True(t, bytes.Equal(b, text100(70000)))
				n++
			}
		}
		require.Equal(t, 1, n, format)
		_, err = r.Finish()
		require.NoError(t, err, format)
		r.Close()
	}
}

func TestTimesAsText(t *testing.T) {
	for _, x := range []struct {
		sec  int64
		ns   int
		want string
	}{{0, 0, "0"}, {1, 500000000, "1.5"}, {-1, 500000000, "-0.5"}, {-2, 0, "-2"}, {-2, 1, "-1.999999999"}, {0, 1, "0.000000001"}, {1 << 40, 10, "1099511627776.00000001"}} {
		require.Equal(t, x.want, formatTime(x.sec, x.ns))
		got, err := parseTime(x.want)
		require.NoError(t, err)
		require.True(t, got.Equal(time.Unix(x.sec, int64(x.ns))), x.want)
	}
}

func TestPaxRecordLength(t *testing.T) {
	for n := range 1100 {
		rec := paxRecord("path", strings.Repeat("x", n))
		m, err := parsePAX([]byte(rec))
		require.NoError(t, err)
		require.Len(t, m["path"], n)
	}
}

// A size beyond 8 GiB, without writing it: only the header is made and read.
func TestHugeSize(t *testing.T) {
	h := &Header{Name: "huge", Kind: Regular, Size: 9 << 30, ModTime: time.Unix(5, 0)}
	b, err := h.encode()
	require.NoError(t, err)
	g, err := tar.NewReader(bytes.NewReader(b)).Next()
	require.NoError(t, err)
	require.Equal(t, h.Size, g.Size)
	r := &Reader{have: b}
	got, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, h.Size, got.Size)
}
