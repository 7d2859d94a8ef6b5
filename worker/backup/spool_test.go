package backup

import (
	"encoding/json"
	"io"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
)

// What was stored anew is in the list once, as it was stored last, and counts once.
func TestSpoolReplaces(t *testing.T) {
	s, err := newSpool(filepath.Join(t.TempDir(), "files.jsonl"))
	require.NoError(t, err)
	defer s.Close()
	file := func(path string, size int64) set.File { return set.File{Path: path, Kind: "file", Size: size} }
	for _, f := range []set.File{file("/a", 1), file("/b", 2), {Path: "/d", Kind: "dir"}, file("/c", 3)} {
		require.NoError(t, s.add(f))
	}
	raw := set.File{Path: "/b", PathBytes: "L2L/", Kind: "file", Size: 7} // another name that looks the same
	for _, f := range []set.File{file("/b", 20), file("/new", 5), {Path: "/c", Kind: "symlink"}, file("/b", 200), raw} {
		require.NoError(t, s.replace(f))
	}
	sparse := func(holes int64) set.File { return set.File{Path: "/s", Kind: "file", Size: 1 << 40, Holes: holes} }
	require.NoError(t, s.add(sparse(1<<40)))
	require.NoError(t, s.replace(sparse(1<<40-4096)))
	require.NoError(t, s.settle())
	require.Equal(t, int64(7), s.count)
	require.Equal(t, int64(1+200+5+7+1<<40), s.bytes)
	require.Equal(t, int64(1<<40-4096), s.holes)
	for range 2 { // once for the copy in the archive, once for the manifest
		require.NoError(t, s.rewind())
		var got []string
		for {
			b, err := s.next()
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
			var f set.File
			require.NoError(t, json.Unmarshal(b, &f))
			got = append(got, f.Kind+f.Path+f.PathBytes)
		}
		require.Equal(t, []string{"file/a", "dir/d", "file/new", "symlink/c", "file/b", "file/bL2L/", "file/s"}, got)
	}
}
