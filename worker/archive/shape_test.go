package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// shape is all that must come back of one file.
type shape struct {
	Kind, Mode, Content, Target, Time string
	UID, GID                          uint32
	Xattrs                            map[string]string
	First                             string // the first name of the same inode
}

// shapes describes a tree by relative path; data larger than 64 MiB is left unread.
func shapes(t *testing.T, root string) map[string]shape {
	t.Helper()
	out := map[string]shape{}
	first := map[uint64]string{}
	require.NoError(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		rel, _ := filepath.Rel(root, p)
		s := shapeOf(t, p)
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(p, &st))
		if st.Nlink > 1 && st.Mode&unix.S_IFMT == unix.S_IFREG {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			s.First = first[st.Ino]
		}
		out[rel] = s
		return nil
	}))
	return out
}

func shapeOf(t *testing.T, p string) shape {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(p, &st))
	s := shape{Kind: fmt.Sprintf("%o", st.Mode&unix.S_IFMT), Mode: fmt.Sprintf("%o", st.Mode&07777), UID: st.Uid, GID: st.Gid, Time: modTime(&st).UTC().String()}
	x := ofPath(p).read()
	require.NoError(t, x.fault)
	s.Xattrs = x.values
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		s.Target, err = os.Readlink(p)
		require.NoError(t, err)
	case unix.S_IFREG:
		s.Content = fmt.Sprint(st.Size)
		if st.Size < 64<<20 {
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			sum := sha256.Sum256(b)
			s.Content = fmt.Sprint(len(b), " ", hex.EncodeToString(sum[:]))
		}
	}
	return s
}

func mustOpen(t *testing.T, dir string) int {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}
