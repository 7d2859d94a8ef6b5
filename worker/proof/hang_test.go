package proof

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The disk that an older set's manifest was linked to hangs: the newest set is verified.
func TestDiskOfAnOlderSetHangs(t *testing.T) {
	x := newPlace(t)
	far := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Mount("dead", far, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)))
	t.Cleanup(func() {
		_ = unix.Close(fd)
		_ = unix.Unmount(far, unix.MNT_DETACH)
	})
	require.NoError(t, os.Symlink(filepath.Join(far, "m"), filepath.Join(x.p.Dir, set.ID("202611210000_10-0-0-147420").ManifestName())))
	x.end <- nil
	done := make(chan error, 1)
	go func() { done <- x.deliver() }()
	require.Equal(t, "202611230000_10-0-0-147420", wait(t, x.begun))
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(patience):
		t.Fatal("it hangs")
	}
}
