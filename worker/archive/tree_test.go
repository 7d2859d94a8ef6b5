package archive

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func write(t *testing.T, path string, data []byte, mode uint32) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0755))
	require.NoError(t, os.WriteFile(path, data, 0600))
	require.NoError(t, unix.Chmod(path, mode))
}

func setTime(t *testing.T, path string, sec, ns int64) {
	t.Helper()
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 5}, {Sec: sec, Nsec: ns}}, unix.AT_SYMLINK_NOFOLLOW))
}

// acl is a POSIX ACL: user::rw-, user:1234:r--, group::r--, mask::r--, other::---.
var acl = []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xd2, 4, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}

// sparseFile writes data at the offsets of a file with holes, the last one at its end.
func sparseFile(t *testing.T, path string, size int64, at ...int64) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	for _, o := range at {
		_, err := f.WriteAt(noise(5000), o)
		require.NoError(t, err)
	}
	require.NoError(t, f.Truncate(size))
}

// nastyTree makes a tree with one of everything.
func nastyTree(t *testing.T, root string) {
	t.Helper()
	for _, d := range []string{"empty-dir", "sticky", "sub/deeper", "locked", "z"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, d), 0755))
	}
	write(t, root+"/plain", []byte("hello\n"), 0644)
	write(t, root+"/empty", nil, 0600)
	write(t, root+"/setuid", []byte("x"), 06755)
	write(t, root+"/none", []byte("no rights"), 0)
	write(t, root+"/large-text", text100(3<<20), 0640)
	write(t, root+"/large-noise", noise(3<<20+17), 0640)
	write(t, root+"/sub/deeper/edge", noise(smallEntry), 0644)
	write(t, root+"/sub/deeper/edge+1", noise(smallEntry+1), 0644)
	write(t, root+"/caf\xe9", []byte("latin"), 0644)
	write(t, root+"/grün", []byte("utf8"), 0644)
	write(t, root+"/new\nline", []byte("nl"), 0644)
	write(t, root+"/-dash", []byte("dash"), 0644)
	write(t, root+"/"+strings.Repeat("n", 255), []byte("long"), 0644)
	write(t, root+"/d\xe9p/"+strings.Repeat("\xfe", 200), []byte("long latin"), 0644)
	require.NoError(t, os.Symlink("plain", root+"/link"))
	require.NoError(t, os.Symlink("/nowhere/\xe9", root+"/dangling"))
	require.NoError(t, os.Symlink("..", root+"/up"))
	require.NoError(t, os.Link(root+"/large-noise", root+"/sub/hard-large"))
	require.NoError(t, os.Link(root+"/plain", root+"/z/hard-plain"))
	require.NoError(t, os.Link(root+"/caf\xe9", root+"/z/hard-\xe9"))
	sparseFile(t, root+"/sparse", 10<<20, 0, 4<<20)
	sparseFile(t, root+"/sparse-end", 8<<20, 0, 8<<20-5000)
	sparseFile(t, root+"/sparse-\xe9", 1<<20, 1<<19)
	sparseFile(t, root+"/all-hole", 5<<20)
	sparseFile(t, root+"/terabyte", 1<<40, 1<<30, 1<<39)
	require.NoError(t, unix.Mkfifo(root+"/pipe", 0600))
	require.NoError(t, unix.Mknod(root+"/device", unix.S_IFCHR|0600, int(unix.Mkdev(1, 3))))
	require.NoError(t, unix.Mknod(root+"/socket", unix.S_IFSOCK|0600, 0))
	require.NoError(t, unix.Setxattr(root+"/plain", "user.note", []byte("a\x00b=c\n"), 0))
	require.NoError(t, unix.Setxattr(root+"/plain", "user.ü %=", []byte("odd name"), 0))
	require.NoError(t, unix.Setxattr(root+"/large-text", "user.big", noise(2000), 0))
	require.NoError(t, unix.Setxattr(root+"/large-text", "system.posix_acl_access", acl, 0))
	require.NoError(t, unix.Setxattr(root+"/sub", "user.dir", []byte("1"), 0))
	require.NoError(t, unix.Setxattr(root+"/sub", "system.posix_acl_default", acl, 0))
	require.NoError(t, unix.Lsetxattr(root+"/link", "trusted.link", []byte("2"), 0))
	require.NoError(t, os.Lchown(root+"/large-text", 1234, 3000000))
	require.NoError(t, os.Lchown(root+"/link", 77, 88))
	require.NoError(t, os.Lchown(root+"/sub", 99, 98))
	require.NoError(t, unix.Chmod(root+"/sticky", 01777))
	setTime(t, root+"/plain", 1600000000, 123456789)
	setTime(t, root+"/empty", -1000, 0)
	setTime(t, root+"/none", -1000, 5)
	setTime(t, root+"/link", 1500000000, 987654321)
	setTime(t, root+"/sub", 1400000000, 1)
	require.NoError(t, unix.Chmod(root+"/locked", 0500))
	setTime(t, root+"/locked", 1300000000, 2)
	setTime(t, root, 1200000000, 3)
}
