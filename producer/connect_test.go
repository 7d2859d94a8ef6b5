package main

import (
	"os"
	"path/filepath"
	"testing"

	"catalog-backup/shared/exit"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A state directory that is full or gone is told as that, not as a worker that is
// missing; also where Redis answers, and refuses.
func TestStateDirectoryFullOrGone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("an ordinary user cannot mount a small disk; the root run of this test does")
		return
	}
	s := newSite(t)
	base, err := os.MkdirTemp("/tmp", "cb-full-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	state := filepath.Join(base, "state")
	s.configure("redis: embedded\nstate_dir: " + state + "\n")
	told := func(what string) {
		t.Helper()
		r := s.do("status")
		require.Equal(t, exit.Unreachable, r.code, r.err)
		require.Contains(t, r.err, what)
	}
	told("state_dir " + state + " is not there: if it was moved")
	require.NoError(t, os.Mkdir(state, 0o700))
	require.NoError(t, unix.Mount("tmpfs", state, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
	told("the disk of state_dir " + state + " is full: make room")
	require.NoError(t, os.Mkdir(filepath.Join(state, "redis.socket"), 0o700))
	require.NoError(t, os.Symlink(s.redis.Addr, filepath.Join(state, "redis.socket", "redis.sock")))
	require.NoError(t, s.rdb.ConfigSet(t.Context(), "min-replicas-to-write", "1").Err()) // it refuses writes, as for a full disk
	r := s.do("backup-all")
	require.Equal(t, exit.Unreachable, r.code, r.err)
	require.Contains(t, r.err, "NOREPLICAS")
	require.Contains(t, r.err, "the disk of state_dir "+state+" is full: make room")
}
