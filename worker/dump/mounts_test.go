package dump

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const mountinfo = `22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
30 22 0:40 / /data2 rw,relatime shared:5 master:2 - nfs4 files:/backup rw,vers=4.2,hard,proto=tcp,local_lock=none,addr=10.0.0.9
31 30 0:41 / /data2/tmp rw - nfs files:/tmp rw,vers=3,nolock,local_lock=all
32 22 0:42 / /data20 rw - cifs //files/x rw,nobrl,vers=3.1.1
33 22 0:43 / /my\040data\134x rw - nfs4 f\040s:/b rw,local_lock=flock
34 22 0:44 / /mnt rw - ext4 /dev/sdb rw
35 34 0:45 / /mnt rw - fuse.sshfs me@files: rw,user_id=0
36 22 0:46 / /posix rw - nfs4 files:/p rw,local_lock=posix
37 22 0:47 / /smb rw - cifs //files/y rw,vers=3.1.1
nonsense
`

func TestMountsTellWhereLocksHold(t *testing.T) {
	for id, want := range map[string]struct {
		point, option string
		local         bool
	}{
		"22": {"/", "", true},
		"30": {"/data2", "", false},
		"31": {"/data2/tmp", "nolock", false},
		"32": {"/data20", "nobrl", false},
		"33": {`/my data\x`, "local_lock=flock", false},
		"34": {"/mnt", "", true},
		"35": {"/mnt", "", false},
		"36": {"/posix", "", false},
		"37": {"/smb", "", false},
	} {
		m, ok := mountByID(id, mountinfo)
		require.True(t, ok)
		require.Equal(t, want.point, m.Point, id)
		require.Equal(t, want.option, m.HostLocal(), id)
		require.Equal(t, want.local, m.Local(), id)
	}
	m, _ := mountByID("33", mountinfo)
	require.Equal(t, `nfs4 of f s:/b at /my data\x with local_lock=flock`, m.String())
	for _, none := range []string{"3", "nonsense", ""} {
		_, ok := mountByID(none, mountinfo)
		require.False(t, ok)
	}
}

func TestMountOfARealDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b\\c")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, unix.Mount("mine", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	link := dir + ".link"
	require.NoError(t, os.Symlink(dir, link))
	for _, d := range []string{dir, link, dir + "/not/there"} {
		m, err := MountOf(d)
		require.NoError(t, err)
		require.Equal(t, Mount{Point: dir, Type: "tmpfs", Source: "mine", Options: m.Options}, m)
		require.Contains(t, m.Options, "rw")
		require.True(t, m.Local())
	}
	over, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Mount("files:/x", dir, "fuse", unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", over)))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)); require.NoError(t, unix.Close(over)) })
	m, err := MountOf(dir) // it covers the other, and does not answer
	require.NoError(t, err)
	require.Equal(t, "fuse of files:/x at "+dir, m.String())
	require.False(t, m.Local())
}
