package redisserver

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// watchful is a worker that says early what is wrong; said gives its errors so far.
func watchful(t *testing.T, o Options) (s *Server, said func() []string) {
	t.Helper()
	var mu sync.Mutex
	var errs []string
	o.Logf = t.Logf
	o.Errorf = func(f string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, fmt.Sprintf(f, a...))
		t.Logf("error: "+f, a...)
	}
	s = New(o)
	s.gentle, s.tellAfter, s.limit = time.Second, 500*time.Millisecond, 500*time.Millisecond
	return s, func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), errs...) }
}

// The owner is frozen and its Redis dead: who waits says whom to end, not again and
// again; who starts ends with that too; and what they say mends it.
func TestFrozenOwnerIsNamed(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	owner, _ := startWorker(t, dir)
	s, said := watchful(t, options(dir))
	require.NoError(t, s.Start(t.Context()))
	t.Cleanup(func() { require.NoError(t, s.Shutdown(context.Background())) })
	require.NoError(t, client(t, dir).Set(t.Context(), "k", "v", 0).Err())
	server := servers(dir)
	require.Len(t, server, 1)
	require.NoError(t, owner.Process.Signal(syscall.SIGSTOP))
	require.NoError(t, syscall.Kill(server[0], syscall.SIGKILL))
	waitFor(t, "the client to say so", func() bool { return len(said()) > 0 })
	host, err := os.Hostname()
	require.NoError(t, err)
	who := fmt.Sprintf("worker PID %d (unknown) on host %s keeps it and is stopped", owner.Process.Pid, host)
	require.Contains(t, said()[0], who)
	require.Contains(t, said()[0], fmt.Sprintf("`kill -9 %d`", owner.Process.Pid))

	late, _ := watchful(t, options(dir))
	err = late.Start(t.Context())
	require.ErrorIs(t, err, ErrSilent)
	require.ErrorContains(t, err, who)
	require.NotContains(t, err.Error(), "\n")

	require.NoError(t, owner.Process.Kill())
	waitFor(t, "the takeover", s.Owner)
	require.Equal(t, "v", client(t, dir).Get(t.Context(), "k").Val())
	require.Len(t, said(), 1)
}

// A server that loads its data for longer than the limit is waited for.
func TestLoadingServerIsNotSilent(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "redis"), 0o700))
	s, said := watchful(t, options(dir))
	other, err := s.tryLock()
	require.NoError(t, err)
	defer s.release(other)
	l, err := net.Listen("unix", s.Socket)
	require.NoError(t, err)
	defer l.Close()
	loaded := time.Now().Add(3 * s.limit)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			answer := "-LOADING Redis is loading the dataset in memory\r\n"
			if time.Now().After(loaded) {
				answer = "+PONG\r\n"
			}
			_, _ = conn.Write([]byte(answer))
			conn.Close()
		}
	}()
	require.NoError(t, s.Start(t.Context()))
	require.True(t, time.Now().After(loaded))
	require.Empty(t, said())
	require.NoError(t, s.Shutdown(t.Context()))
}

// The state directory is moved away and back: workers say so, nobody owns what others
// cannot see, and it goes on where it was.
func TestStateDirectoryMovedAway(t *testing.T) {
	t.Parallel()
	root := shortDir(t)
	state := filepath.Join(root, "state")
	require.NoError(t, os.Mkdir(state, 0o700))
	s, said := watchful(t, options(state))
	require.NoError(t, s.Start(t.Context()))
	t.Cleanup(func() { require.NoError(t, s.Shutdown(context.Background())) })
	require.NoError(t, client(t, state).Set(t.Context(), "k", "v", 0).Err())
	server := servers(root)
	require.Len(t, server, 1)
	require.NoError(t, os.Rename(state, state+".away"))
	require.NoError(t, syscall.Kill(server[0], syscall.SIGKILL))
	waitFor(t, "the owner to say so", func() bool {
		return strings.Contains(strings.Join(said(), "\n"), "state_dir "+state+" is not there: if it was moved")
	})
	require.Contains(t, said()[0], "was moved away under this worker")
	lock, err := os.OpenFile(filepath.Join(state+".away", "redis/lock"), os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), "it is given back")
	require.NoError(t, lock.Close())
	require.NoError(t, os.Rename(state+".away", state))
	waitFor(t, "the takeover", s.Owner)
	require.Equal(t, "v", client(t, state).Get(t.Context(), "k").Val())
}

// Its disk is full: Redis ends, again and again, and its owner says why; with room it
// goes on by itself.
func TestStateDirectoryFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("an ordinary user cannot mount a small disk; the root run of this test does")
		return
	}
	dir := shortDir(t)
	state := filepath.Join(dir, "state")
	require.NoError(t, os.Mkdir(state, 0o700))
	require.NoError(t, unix.Mount("tmpfs", state, "tmpfs", 0, "size=4m,mode=700"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(state, unix.MNT_DETACH)) })
	s, said := watchful(t, options(state))
	require.NoError(t, s.Start(t.Context()))
	t.Cleanup(func() { require.NoError(t, s.Shutdown(context.Background())) })
	c := client(t, state)
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	ballast := filepath.Join(state, "ballast")
	require.ErrorIs(t, os.WriteFile(ballast, make([]byte, 8<<20), 0o600), unix.ENOSPC)
	large := strings.Repeat("x", 1<<16)
	waitFor(t, "the owner to say so", func() bool {
		_ = c.Set(t.Context(), "large", large, 0).Err()
		return len(said()) > 0
	})
	require.Contains(t, said()[0], "the disk of state_dir "+state+" is full: make room")
	require.NoError(t, os.Remove(ballast))
	waitFor(t, "Redis", func() bool { return c.Get(t.Context(), "k").Val() == "v" })
	require.Len(t, said(), 1)
}

// A disk without room for the signature keeps nobody from owning.
func TestOwnerThatCannotSign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("an ordinary user cannot mount a small disk; the root run of this test does")
		return
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	require.NoError(t, os.Mkdir(filepath.Join(dir, "redis"), 0o700))
	require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 1<<17), 0o600), unix.ENOSPC)
	var log string
	o := options(dir)
	o.Logf = func(f string, a ...any) { log += fmt.Sprintf(f, a...) }
	s := New(o)
	lock, err := s.tryLock()
	require.NoError(t, err)
	require.NotNil(t, lock)
	defer s.release(lock)
	require.Contains(t, log, "no space left on device")
	next, err := s.tryLock()
	require.NoError(t, err)
	require.Nil(t, next, "it is held")
}
