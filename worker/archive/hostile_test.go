package archive

import (
	"archive/tar"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/worker/stage"
)

// hostile writes an archive that no honest program would, with Go's own writer.
func hostile(t *testing.T, list ...tar.Header) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "evil.tar.gz")
	f, err := os.Create(path)
	require.NoError(t, err)
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	for _, h := range list {
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		h.Mode = 0644
		require.NoError(t, w.WriteHeader(&h))
		if h.Size > 0 {
			_, err = w.Write([]byte("evil"))
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	require.NoError(t, z.Close())
	require.NoError(t, f.Close())
	return path
}

func TestHostileArchives(t *testing.T) {
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	reg, sym, hard, dir := byte(tar.TypeReg), byte(tar.TypeSymlink), byte(tar.TypeLink), byte(tar.TypeDir)
	for what, list := range map[string][]tar.Header{
		"dots":                     {{Name: "../outside/f", Typeflag: reg}},
		"dots within":              {{Name: "a/../../outside/f", Typeflag: reg}},
		"absolute":                 {{Name: outside + "/f", Typeflag: reg}},
		"absolute, two slashes":    {{Name: "//" + outside + "/f", Typeflag: reg}},
		"through a link":           {{Name: "l", Typeflag: sym, Linkname: outside}, {Name: "l/f", Typeflag: reg}},
		"through a relative link":  {{Name: "d/l", Typeflag: sym, Linkname: "../../outside"}, {Name: "d/l/f", Typeflag: reg}},
		"through two links":        {{Name: "a", Typeflag: sym, Linkname: "."}, {Name: "a/b", Typeflag: sym, Linkname: ".."}, {Name: "a/b/outside/f", Typeflag: reg}},
		"a directory over a link":  {{Name: "l", Typeflag: sym, Linkname: outside}, {Name: "l", Typeflag: dir}},
		"a hard link outside":      {{Name: "h", Typeflag: hard, Linkname: "../outside/precious"}, {Name: "h", Typeflag: reg}},
		"a hard link, absolute":    {{Name: "h", Typeflag: hard, Linkname: outside + "/precious"}},
		"a hard link via a link":   {{Name: "l", Typeflag: sym, Linkname: outside}, {Name: "h", Typeflag: hard, Linkname: "l/precious"}},
		"a hard link to a link":    {{Name: "l", Typeflag: sym, Linkname: outside + "/precious"}, {Name: "h", Typeflag: hard, Linkname: "l"}},
		"a hard link to nothing":   {{Name: "h", Typeflag: hard, Linkname: "none"}},
		"a hard link to itself":    {{Name: "h", Typeflag: hard, Linkname: "h"}},
		"a device":                 {{Name: "dev", Typeflag: tar.TypeBlock, Devmajor: 8}},
		"a pipe":                   {{Name: "p", Typeflag: tar.TypeFifo}},
		"a file under a file":      {{Name: "f", Typeflag: reg}, {Name: "f/g", Typeflag: reg}},
		"a file over a directory":  {{Name: "d/x", Typeflag: reg}, {Name: "d", Typeflag: reg}},
		"the root":                 {{Name: ".", Typeflag: dir}},
		"parent":                   {{Name: "..", Typeflag: dir}},
		"a link to nothing at all": {{Name: "l", Typeflag: sym, Linkname: ""}},
	} {
		t.Run(what, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(outside))
			write(t, outside+"/precious", []byte("precious"), 0600)
			before := shapes(t, outside)
			root := filepath.Join(top, "root")
			require.NoError(t, os.RemoveAll(root))
			require.NoError(t, os.Mkdir(root, 0700))
			x, err := NewExtractor(root, ExtractOptions{})
			require.NoError(t, err)
			r, err := Open(hostile(t, list...))
			require.NoError(t, err)
			defer r.Close()
			var failed error
			for failed == nil {
				h, err := r.Next()
				if err != nil {
					break
				}
				failed = x.Entry(h, r)
			}
			if failed == nil {
				_, failed = x.Finish()
			}
			x.Close()
			require.Error(t, failed)
			require.NotContains(t, failed.Error(), "\n")
			require.Equal(t, before, shapes(t, outside))
			require.NoError(t, filepath.Walk(root, func(p string, _ os.FileInfo, err error) error { return err }))
		})
	}
}

// The same, found before anything is written.
func TestCheckerRefuses(t *testing.T) {
	for _, list := range [][]*Header{
		{{Name: "../x", Kind: Regular}}, {{Name: "/x", Kind: Regular}}, {{Name: "x", Kind: FIFO}}, {{Name: "x", Kind: 'Z'}},
		{{Name: "l", Kind: Symlink, Link: "/"}, {Name: "l/x", Kind: Regular}},
		{{Name: "a/l", Kind: Symlink, Link: "/"}, {Name: "a/l/b/c", Kind: Dir}},
		{{Name: "l", Kind: Symlink, Link: "/"}, {Name: "h", Kind: HardLink, Link: "l"}},
		{{Name: "l", Kind: Symlink, Link: "/"}, {Name: "h", Kind: HardLink, Link: "l/etc/passwd"}},
		{{Name: "h", Kind: HardLink, Link: "../x"}},
		{{Name: "l", Kind: Symlink, Link: "/"}, {Name: "l", Kind: Dir}},
	} {
		c := NewChecker()
		var err error
		for _, h := range list {
			if err == nil {
				err = c.Check(h)
			}
		}
		require.Error(t, err, "%v", list[0])
	}
	c := NewChecker()
	for _, h := range []*Header{{Name: "l", Kind: Symlink, Link: "/"}, {Name: "lx/y", Kind: Regular}, {Name: "l", Kind: Regular}, {Name: "h", Kind: HardLink, Link: "l"}} {
		require.NoError(t, c.Check(h))
	}
}

func TestLaterEntriesWin(t *testing.T) {
	path := hostile(t, tar.Header{Name: "f", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, tar.Header{Name: "f", Typeflag: tar.TypeReg},
		tar.Header{Name: "g", Typeflag: tar.TypeLink, Linkname: "f"}, tar.Header{Name: "f", Typeflag: tar.TypeSymlink, Linkname: "g"})
	dir, _ := extract(t, path)
	link, err := os.Readlink(dir + "/f")
	require.NoError(t, err)
	require.Equal(t, "g", link)
	require.Equal(t, "evil", string(must(os.ReadFile(dir+"/g"))))
}

func TestExtractIntoFullDisk(t *testing.T) {
	path, _ := smallArchive(t)
	x, err := NewExtractor(tmpfs(t, "64k"), ExtractOptions{})
	require.NoError(t, err)
	defer x.Close()
	r, err := Open(path)
	require.NoError(t, err)
	defer r.Close()
	for err == nil {
		var h *Header
		h, err = r.Next()
		require.NoError(t, err)
		err = x.Entry(h, r)
	}
	require.True(t, stage.IsPermanent(err), "%v", err)
	require.ErrorContains(t, err, "target is full")
}

func TestCheckEntryName(t *testing.T) {
	for _, good := range []string{"a", "a/b", "a/", "...", "..a/b", "a\\b", "caf\xe9", " ", "-rf"} {
		require.NoError(t, CheckEntryName(good), "%q", good)
	}
	for _, bad := range []string{"", "/", "/a", "a//b", "a//", ".", "..", "./a", "a/.", "a/..", "a/../b", "../a", "a\x00"} {
		require.Error(t, CheckEntryName(bad), "%q", bad)
	}
}
