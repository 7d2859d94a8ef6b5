package pipeline

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A lock that is taken away under an attempt ends it: what it would do later reaches no
// set. The run goes on by the next attempt once the lock is free.
func TestLockLostUnderAnAttempt(t *testing.T) {
	for name, lose := range map[string]func(g *ground, p *process, r run.Record) (back func()){
		"given to another": func(g *ground, p *process, r run.Record) func() {
			unlockOf(g.t, p.Process.Pid, lockFile(g, r)) // as an NFS server that restarted, or whose lease ran out
			f, err := os.OpenFile(lockFile(g, r), os.O_RDWR, 0)
			require.NoError(g.t, err)
			require.NoError(g.t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
			return func() { f.Close() }
		},
		"file removed": func(g *ground, p *process, r run.Record) func() {
			require.NoError(g.t, os.Remove(lockFile(g, r)))
			return func() {}
		},
		"staging removed": func(g *ground, p *process, r run.Record) func() {
			require.NoError(g.t, os.RemoveAll(filepath.Join(g.opts.Temp, r.ID)))
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGround(t)
			g.control("hold-eventbus", "")
			p := g.worker()
			r := g.begin()
			g.waitStage(r.ID, "eventbus")
			back := lose(g, p, r)
			g.eventually(10*time.Second, "the attempt ends", func() bool { return g.count(r.ID, "over", "eventbus") == 1 })
			require.Zero(t, g.count(r.ID, "end", "eventbus"))
			g.free("hold-eventbus")
			back()
			if name == "staging removed" { // what earlier stages handed on is gone too
				g.eventually(20*time.Second, "the run ends", func() bool { return g.get(r.ID).State.Over() })
			} else {
				g.waitOver(r.ID, run.Succeeded, 20*time.Second)
			}
			r = g.get(r.ID)
			require.Contains(t, p.log.String(), "the lock of the run was lost")
			g.clean(r)
		})
	}
}

func lockFile(g *ground, r run.Record) string {
	return filepath.Join(g.opts.Temp, "."+r.ID+".lock")
}

// unlockOf takes the flock of a file from another process, by a copy of its descriptor.
func unlockOf(t *testing.T, pid int, path string) {
	t.Helper()
	p, err := unix.PidfdOpen(pid, 0)
	require.NoError(t, err)
	defer unix.Close(p)
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	require.NoError(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != path {
			continue
		}
		n, err := strconv.Atoi(filepath.Base(fd))
		require.NoError(t, err)
		f, err := unix.PidfdGetfd(p, n, 0)
		require.NoError(t, err)
		defer unix.Close(f)
		require.NoError(t, unix.Flock(f, unix.LOCK_UN))
		return
	}
	t.Fatalf("process %d has %s not open", pid, path)
}

// An attempt that has worked to its end asks for its lock before the first effect: what
// it lost between two looks does not commit.
func TestLockLostRightBeforeTheCommit(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.control("hold-archive", "")
	p := g.worker(func(o *workerOptions) { o.Pulse = time.Hour }) // it does not look by itself
	r := g.begin()
	g.waitStage(r.ID, "archive")
	require.NoError(t, os.Remove(lockFile(g, r)))
	g.free("hold-archive")
	r = g.waitOver(r.ID, run.Succeeded, 20*time.Second)
	require.Contains(t, p.log.String(), "the lock of the run was lost")
	require.Equal(t, 1, g.count(r.ID, "end", "archive"), "the second attempt")
	g.clean(r)
}
