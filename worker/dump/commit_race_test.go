package dump

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// An attempt whose lock was lost, or that was frozen, stands between the renames of its
// commit while another looks at it. Either the manifest was first, and the set stays
// whole; or what is taken back can become no set any more.
func TestTakingBackBesideACommitter(t *testing.T) {
	for _, manifestFirst := range []bool{false, true} {
		d := newDirectory(t)
		in, names := halfCommitted(t, d)
		manifest := in.Commit.Files[len(in.Commit.Files)-1]
		wake := func() error {
			return moveTo(filepath.Join(d.Dump, manifest.Part), filepath.Join(d.Dump, manifest.Final))
		}
		if manifestFirst { // after the other has seen no manifest
			require.NoError(t, wake())
			require.ErrorIs(t, second(d.seal(in)), errCommitted)
			for _, n := range names {
				require.FileExists(t, filepath.Join(d.Dump, n))
			}
			continue
		}
		require.NoError(t, second(d.seal(in)))
		require.ErrorIs(t, wake(), fs.ErrNotExist)
		_, err := d.Clean(context.Background(), in.Run, false)
		require.NoError(t, err)
		for _, n := range names {
			require.NoFileExists(t, filepath.Join(d.Dump, n))
		}
	}
}

// halfCommitted is a commit before its last rename.
func halfCommitted(t *testing.T, d *Directory) (Intent, []string) {
	t.Helper()
	in, _, err := d.Reserve(t.Context(), runID("a"), "1.1", noon)
	require.NoError(t, err)
	var files []CommitFile
	var names []string
	for _, final := range []string{in.Set.MainName(), in.Set.ManifestName()} {
		part := "." + final + "." + in.Run + ".1.part"
		require.NoError(t, os.WriteFile(filepath.Join(d.Dump, part), []byte("x"), 0o600))
		st, err := os.Stat(filepath.Join(d.Dump, part))
		require.NoError(t, err)
		files = append(files, CommitFile{Part: part, Final: final, Size: 1, Inode: inode(st)})
		names = append(names, final)
	}
	in.Commit = &Commit{Files: files}
	require.NoError(t, d.writeIntent(in))
	require.NoError(t, moveTo(filepath.Join(d.Dump, files[0].Part), filepath.Join(d.Dump, files[0].Final)))
	return in, names
}
