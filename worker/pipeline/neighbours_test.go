package pipeline

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Two hosts on one machine: the kernel's name is another for each, and locks that they
// do not share are directories that differ.

func onHost(name string) func(*workerOptions) {
	return func(o *workerOptions) { o.Boot, o.Host, o.Label = "boot-of-"+name, name, "-"+name }
}

// apart makes directories that only look the same as those of the other host: all files
// are there, but locks are not seen.
func (g *ground) apart(name string) func(*workerOptions) {
	root := g.t.TempDir()
	for _, d := range []string{"dump", "temp"} {
		require.NoError(g.t, os.Mkdir(filepath.Join(root, d), 0o755))
	}
	host := onHost(name)
	return func(o *workerOptions) {
		host(o)
		o.Temp, o.Dump = root+"/temp", root+"/dump"
	}
}

func (g *ground) live() map[string]run.Worker {
	g.t.Helper()
	l, err := g.store.Workers(context.Background(), g.opts.Instance)
	require.NoError(g.t, err)
	out := map[string]run.Worker{}
	for _, w := range l {
		out[w.Host] = w
	}
	return out
}

func (g *ground) joined(host string) {
	g.t.Helper()
	g.eventually(10*time.Second, "worker of "+host+" is signed in", func() bool { return g.live()[host].Joined > 0 })
}

func (g *ground) refused(p *process, limit time.Duration) string {
	g.t.Helper()
	select {
	case <-p.waited:
	case <-time.After(limit):
		g.t.Fatal("the worker was not refused")
	}
	require.Equal(g.t, 1, p.ProcessState.ExitCode(), p.log.String())
	return p.log.String()
}

func (g *ground) workerLocks(o workerOptions) (names []string) {
	for _, dir := range []string{o.Temp, o.Dump} {
		l, err := filepath.Glob(filepath.Join(dir, ".catalog-backup-worker.*.lock"))
		require.NoError(g.t, err)
		names = append(names, l...)
	}
	return names
}

func TestHostsThatShareLocksWorkTogether(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	a := g.worker(onHost("a"))
	g.joined("a")
	b := g.worker(onHost("b"))
	g.joined("b")
	r := g.begin()
	g.waitOver(r.ID, run.Succeeded, 10*time.Second)
	require.Len(t, g.workerLocks(g.opts), 4)
	a.signal(syscall.SIGSTOP) // frozen, it holds its lock: the third host sees it
	g.worker(onHost("c"))
	g.joined("c")
	r = g.begin()
	g.eventually(20*time.Second, "the run goes on beside a frozen worker", func() bool { return g.get(r.ID).Stage != FirstStage || g.get(r.ID).Node != "" })
	a.signal(syscall.SIGCONT)
	g.waitOver(r.ID, run.Succeeded, 20*time.Second)
	a.term(t)
	b.term(t)
	require.Len(t, g.workerLocks(g.opts), 2, "who ends takes its lock along")
}

func TestHostsThatDoNotShareLocksDoNotWorkTogether(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	a := g.worker(onHost("a"))
	g.joined("a")
	b := g.worker(g.apart("b"))
	text := g.refused(b, 20*time.Second)
	require.Contains(t, text, "start: work beside worker node1-a-"+fmt.Sprint(a.Process.Pid)+" on host a, which serves node node1 too: its lock file ")
	require.Contains(t, text, "is not there")
	require.Contains(t, text, "the key node")
	require.NotContains(t, g.live(), "b")
	r := g.begin()
	g.waitOver(r.ID, run.Succeeded, 10*time.Second) // the earlier one works on
	other := g.worker(g.apart("d"), func(o *workerOptions) { o.Node = "node2" })
	g.joined("d")
	other.term(t)
	a.kill9()
	require.NoError(t, g.rdb.PExpire(context.Background(), "catalog-backup:catalog:worker:"+g.live()["a"].ID, time.Second).Err()) // as 11 s later
	g.worker(onHost("c"))
	g.joined("c") // the lock of a dead one is no reason, as soon as its sign is over
	r = g.begin()
	g.waitOver(r.ID, run.Succeeded, 30*time.Second)
}

// The file is seen, its lock is not: as with local_lock on the mount of either host.
func TestLockFileThatIsThereButNotLocked(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	a := g.worker(onHost("a"))
	g.joined("a")
	there := g.apart("b")
	o := g.opts
	there(&o)
	for _, path := range g.workerLocks(g.opts) { // the names are there on both
		dir := map[string]string{g.opts.Temp: o.Temp, g.opts.Dump: o.Dump}[filepath.Dir(path)]
		require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(path)), nil, 0o600))
	}
	text := g.refused(g.worker(there), 20*time.Second)
	require.Contains(t, text, "is there, but not locked for this host")
	// The same on one machine, as with two containers that mount a file system each.
	text = g.refused(g.worker(there, func(o *workerOptions) { o.Boot = "boot-of-a" }), 20*time.Second)
	require.Contains(t, text, "is there, but not locked for this host")
	a.term(t)
	g.worker(there)
	g.joined("b") // when the other is gone, it may
	r := g.begin()
	g.eventually(10*time.Second, "it works", func() bool { return g.get(r.ID).State.Over() })
}

// Of many that come at once and do not share locks exactly one works.
func TestOfHostsThatComeAtOnceOneWorks(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	var all []*process
	for _, name := range []string{"a", "b", "c", "d"} {
		all = append(all, g.worker(g.apart(name)))
	}
	alive := func() (n int) {
		for _, p := range all {
			select {
			case <-p.waited:
			default:
				n++
			}
		}
		return n
	}
	g.eventually(20*time.Second, "all but one are refused", func() bool { return alive() == 1 })
	r := g.begin()
	g.eventually(10*time.Second, "the one works", func() bool { return g.get(r.ID).State.Over() })
	require.Equal(t, 1, alive())
}

// A worker that could not reach Redis comes back: who came in that time, and could not
// know of it, goes.
func TestWhoComesBackIsFoundByWhoCameMeanwhile(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	a := g.worker(onHost("a"))
	g.joined("a")
	mine := g.live()["a"]
	a.signal(syscall.SIGSTOP)
	require.NoError(t, g.store.SignOut(context.Background(), g.opts.Instance, mine.ID)) // as after 12 s
	b := g.worker(g.apart("b"))
	g.joined("b")
	a.signal(syscall.SIGCONT)
	require.Contains(t, g.refused(b, 30*time.Second), "refused: work beside worker "+mine.ID)
	require.Equal(t, mine.Joined, g.live()["a"].Joined)
}

// Workers of an earlier version show no lock: they are believed where no other host can
// share the file system, and on the same host.
func TestWorkerOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	ctx := context.Background()
	old := run.Worker{ID: "node1-1-old", Node: "node1", Host: "old", Version: "0.0.9"}
	sign := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			_ = g.store.SignIn(ctx, g.opts.Instance, old)
			select {
			case <-sign:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	defer func() { close(sign); <-ended }()
	g.eventually(5*time.Second, "it signs", func() bool { return len(g.live()) == 1 })
	g.worker(onHost("a")).term(t) // /tmp is local

	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	n := newNeighbours(Params{Store: g.store, Instance: g.opts.Instance, Now: time.Now, Dir: &dump.Directory{Dump: g.opts.Dump, Temp: g.opts.Temp, Instance: g.opts.Instance, Node: "node1"}}, run.Worker{ID: "me", Node: "node1", Host: "b", Neighbour: run.Neighbour{Boot: "b", Joined: 2}})
	certain, err := n.look(ctx)
	require.NoError(t, err)
	require.True(t, certain)
	require.NoError(t, unix.Mount("files:/export", g.opts.Temp, "fuse", unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)))
	defer func() { _ = unix.Unmount(g.opts.Temp, unix.MNT_DETACH); _ = unix.Close(fuse) }()
	n.proven = map[string]bool{}
	n.who.Host = "old"
	certain, err = n.look(ctx)
	require.NoError(t, err)
	require.True(t, certain, "the same host sees the lock on the directory")
	n.proven, n.who.Host = map[string]bool{}, "b"
	g.eventually(10*time.Second, "it is refused", func() bool { _, err = n.look(ctx); return err != nil })
	require.ErrorContains(t, err, "it is of an earlier version (0.0.9), whose locks no other host sees over a network: stop it first")
	require.ErrorContains(t, err, g.opts.Temp+" is on fuse of files:/export at "+g.opts.Temp)
	require.False(t, strings.Contains(err.Error(), "\n"))
}

// What killed workers leave is swept by the next, at once.
func TestLocksOfDeadWorkersAreSwept(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	a := g.worker(onHost("a"))
	g.joined("a")
	left := g.workerLocks(g.opts)
	require.Len(t, left, 2)
	a.kill9()
	require.NoError(t, g.store.SignOut(context.Background(), g.opts.Instance, g.live()["a"].ID)) // as after 12 s
	g.worker(onHost("b"))
	g.eventually(10*time.Second, "they are swept", func() bool { return len(g.workerLocks(g.opts)) == 2 && g.workerLocks(g.opts)[0] != left[0] })
	for _, path := range g.workerLocks(g.opts) { // somebody tidies up
		require.NoError(t, os.Remove(path))
	}
	g.eventually(10*time.Second, "a lock that is removed is taken anew", func() bool { return len(g.workerLocks(g.opts)) == 2 })
	g.worker(onHost("c"))
	g.joined("c")
	r := g.begin()
	g.waitOver(r.ID, run.Succeeded, 20*time.Second)
}
