package archive

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
)

// Whatever a manifest says of a file, the list gives it back, and finds it by its entry.
func TestListKeepsWhateverItIsGiven(t *testing.T) {
	at := time.Date(2026, 11, 23, 1, 2, 3, 4, time.UTC)
	plain := set.File{Path: "/data/site/a", Kind: kindFile, Size: 1 << 40, ModTime: at, Mode: "0644", UID: 1, GID: 4294967295, SHA256: strings.Repeat("0a", 32)}
	files := []set.File{plain}
	for _, change := range []func(f *set.File){
		func(f *set.File) { f.Mode = "7777" },
		func(f *set.File) { f.Mode = "644" },
		func(f *set.File) { f.Mode = "rw-r--r--" },
		func(f *set.File) { f.Mode = "" },
		func(f *set.File) { f.Kind = "fifo" },
		func(f *set.File) { f.Kind, f.SHA256 = kindDir, "" },
		func(f *set.File) { f.SHA256 = strings.Repeat("0A", 32) },
		func(f *set.File) { f.SHA256 = strings.Repeat("0a", 31) },
		func(f *set.File) { f.SHA256 = strings.Repeat("0a", 33) },
		func(f *set.File) { f.SHA256 = "none" },
		func(f *set.File) { f.SHA256Of = ofExtents },
		func(f *set.File) { f.SHA256Of = "half" },
		func(f *set.File) { f.UID = -1 },
		func(f *set.File) { f.GID = 1 << 40 },
		func(f *set.File) { f.Size = -1 },
		func(f *set.File) { f.Changed = vanished },
		func(f *set.File) { f.Changed = "eaten" },
		func(f *set.File) { f.ModTime = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC) },
		func(f *set.File) { f.ModTime = at.In(time.FixedZone("", 3600)) },
		func(f *set.File) { f.Kind, f.Target = kindSymlink, "../conf/"+strings.Repeat("x", 4000) },
		func(f *set.File) { f.Kind, f.Target = kindSymlink, strings.Repeat("x", 100000) },
		func(f *set.File) { f.Kind = kindHardLink; f.Target, f.TargetBytes = text("/data/\xff") },
		func(f *set.File) { f.TargetBytes = "%%" },
		func(f *set.File) { f.Path, f.PathBytes = text("/data/\xff/b") },
		func(f *set.File) { f.Path = "/" + strings.Repeat("long", 20000) },
		func(f *set.File) { f.Path = "/" },
		func(f *set.File) { f.Path = "/data/slash/" },
		func(f *set.File) { f.Path = "no/slash" },
	} {
		f := plain
		f.Path = fmt.Sprintf("/data/site/%d", len(files))
		change(&f)
		files = append(files, f)
	}
	for i := range 3 * listChunk {
		f := plain
		f.Path = fmt.Sprintf("/data/%d/%d", i%100, i)
		files = append(files, f)
	}
	l := &List{}
	var size int64
	for i := range files {
		require.NoError(t, l.Add(&files[i]))
		if files[i].Kind == kindFile {
			size += files[i].Size
		}
	}
	require.Equal(t, len(files), l.Len())
	require.Equal(t, size, l.Bytes)
	x := newNameIndex(l)
	for i := range files {
		want := files[i]
		want.ModTime = want.ModTime.UTC()
		require.Equal(t, want, l.file(i))
		path, err := bytesOf(files[i].Path, files[i].PathBytes)
		require.NoError(t, err)
		at, ok := x.find(nameOf(path))
		require.True(t, ok, path)
		require.Equal(t, i, at)
	}
	_, ok := x.find("files/data/site/none")
	require.False(t, ok)
	require.Less(t, len(l.odd), 30)
}

// Of two files of one name the later one counts; a path that is no base64 is found by none.
func TestListWithBadNames(t *testing.T) {
	l := &List{}
	for _, f := range []set.File{{Path: "/a", Kind: kindDir}, {Path: "/a", Kind: kindDir, Mode: "0700"}, {Path: "/b", PathBytes: "%%", Kind: kindDir}} {
		require.NoError(t, l.Add(&f))
	}
	x := newNameIndex(l)
	at, ok := x.find("files/a")
	require.True(t, ok)
	require.Equal(t, 1, at)
	_, ok = x.find("files/b")
	require.False(t, ok)
	var found []set.Damage
	v := NewVerifier(l, func(d set.Damage) { found = append(found, d) })
	require.NoError(t, v.Entry(&Header{Name: "files/a", Kind: Dir, Mode: 0o755}, nil))
	require.NoError(t, v.Finish(true))
	require.Len(t, found, 3)
	require.Contains(t, found[0].Problem, "missing")
	require.Contains(t, found[1].Problem, "mode")
	require.Contains(t, found[2].Problem, "base64")
}
