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

	"github.com/sirupsen/logrus/hooks/test"
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

// begun starts a worker and waits until it takes work.
func (g *ground) begun(change ...func(*workerOptions)) *process {
	g.t.Helper()
	p := g.worker(change...)
	g.eventually(time.Minute, "the worker takes work", func() bool { return strings.Contains(p.log.String(), "it takes work") })
	return p
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
	a := g.begun(onHost("a"))
	b := g.begun(onHost("b"))
	r := g.begin()
	g.waitOver(r.ID, run.Succeeded, 10*time.Second)
	require.Len(t, g.workerLocks(g.opts), 4)
	a.signal(syscall.SIGSTOP) // frozen, it holds its lock: the third host sees it
	g.begun(onHost("c"))
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
	a := g.begun(onHost("a"))
	b := g.worker(g.apart("b"))
	text := g.refused(b, 20*time.Second)
	require.Contains(t, text, "start: work beside worker node1-a-"+fmt.Sprint(a.Process.Pid)+" on host a, which serves node node1 too: its lock file ")
	require.Contains(t, text, "is not there")
	require.Contains(t, text, "the key node")
	require.NotContains(t, g.live(), "b")
	r := g.begin()
	g.waitOver(r.ID, run.Succeeded, 10*time.Second) // the earlier one works on
	other := g.begun(g.apart("d"), func(o *workerOptions) { o.Node = "node2" })
	other.term(t)
	a.kill9()
	require.NoError(t, g.rdb.PExpire(context.Background(), "catalog-backup:catalog:worker:"+g.live()["a"].ID, time.Second).Err()) // as 11 s later
	g.begun(onHost("c"))                                                                                                          // the lock of a dead one is no reason, as soon as its sign is over
	r = g.begin()
	g.waitOver(r.ID, run.Succeeded, 30*time.Second)
}

// The files of the other host are seen, its locks are not, as with local_lock on a mount:
// an overlay shows them, and a lock on what it shows is on a file of its own.
func (g *ground) behind(name string) func(*workerOptions) {
	root := g.t.TempDir()
	require.NoError(g.t, unix.Mount("none", root, "tmpfs", 0, ""))
	g.t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	for _, d := range []struct{ name, lower string }{{"temp", g.opts.Temp}, {"dump", g.opts.Dump}} {
		at := filepath.Join(root, d.name)
		for _, sub := range []string{"", "/upper", "/work", "/all"} {
			require.NoError(g.t, os.Mkdir(at+sub, 0o755))
		}
		require.NoError(g.t, unix.Mount("overlay", at+"/all", "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", d.lower, at, at)))
		g.t.Cleanup(func() { _ = unix.Unmount(at+"/all", unix.MNT_DETACH) })
	}
	host := onHost(name)
	return func(o *workerOptions) {
		host(o)
		o.Temp, o.Dump = root+"/temp/all", root+"/dump/all"
	}
}

func TestLockFileThatIsThereButNotLocked(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	there := g.behind("b")
	a := g.begun(onHost("a"))
	text := g.refused(g.worker(there), 20*time.Second)
	require.Contains(t, text, "is there, but not locked for this host")
	// The same on one machine, as with two containers that mount a file system each.
	text = g.refused(g.worker(there, func(o *workerOptions) { o.Boot = "boot-of-a" }), 20*time.Second)
	require.Contains(t, text, "is there, but not locked for this host")
	a.term(t)
	g.begun(there) // when the other is gone, it may
	r := g.begin()
	g.waitOver(r.ID, run.Succeeded, 20*time.Second)
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

// What begins to hold no more while two work is found too, and the later one goes.
func TestWorkersGoOnLooking(t *testing.T) {
	t.Parallel()
	back := newGround(t)
	a := back.begun(onHost("a"))
	mine := back.live()["a"]
	a.signal(syscall.SIGSTOP)                                                                 // it cannot reach Redis, and another comes that cannot know of it
	require.NoError(t, back.store.SignOut(context.Background(), back.opts.Instance, mine.ID)) // as after 12 s
	b := back.begun(back.apart("b"))
	a.signal(syscall.SIGCONT)

	// A directory is unmounted under a worker: the empty one below takes its place.
	away, there := newGround(t), t.TempDir()
	c := away.begun(onHost("c"))
	require.NoError(t, unix.Mount(away.opts.Temp, there, "", unix.MS_BIND, ""))
	defer func() { _ = unix.Unmount(there, unix.MNT_DETACH) }()
	d := away.begun(onHost("d"), func(o *workerOptions) { o.Temp = there })
	require.NoError(t, unix.Unmount(there, unix.MNT_DETACH))

	require.Contains(t, back.refused(b, 40*time.Second), "refused: work beside worker "+mine.ID)
	require.Equal(t, mine.Joined, back.live()["a"].Joined)
	require.Contains(t, away.refused(d, 40*time.Second), fmt.Sprint("refused: work beside worker node1-c-", c.Process.Pid))
	for _, g := range []*ground{back, away} {
		g.waitOver(g.begin().ID, run.Succeeded, 20*time.Second) // the earlier one works on
	}
}

// Of two that do not see each other's locks it is always the later one that refuses.
func TestTheLaterOneRefuses(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	ctx := context.Background()
	var two []*neighbours
	for _, name := range []string{"b", "a"} { // neither the name nor the time of the look decides
		o := g.opts
		g.apart(name)(&o)
		n := newNeighbours(Params{Store: g.store, Instance: o.Instance, Now: time.Now, Dir: &dump.Directory{Dump: o.Dump, Temp: o.Temp, Instance: o.Instance, Node: o.Node}},
			run.Worker{ID: "worker-" + name, Node: o.Node, Host: name, Neighbour: run.Neighbour{Boot: name}})
		var err error
		n.lock, err = n.p.Dir.NewWorkerLock(n.who.ID)
		require.NoError(t, err)
		n.renew()
		n.who.Joined, err = g.store.Join(ctx, o.Instance, n.who)
		require.NoError(t, err)
		two = append(two, n)
	}
	g.eventually(10*time.Second, "the later one refuses", func() bool {
		for _, n := range two {
			require.NoError(t, g.store.SignIn(ctx, g.opts.Instance, n.shown()))
		}
		_, refused := two[1].look(ctx, time.Second)
		certain, err := two[0].look(ctx, time.Second)
		require.NoError(t, err)
		require.True(t, certain)
		return refused != nil
	})
}

// signs shows a worker as live until the function that it returns is called.
func (g *ground) signs(w run.Worker) (end func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			_ = g.store.SignIn(context.Background(), g.opts.Instance, w)
			select {
			case <-done:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// Workers of an earlier version show no lock: they are believed where no other host can
// share the file system, and on the same host.
func TestWorkerOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	ctx := context.Background()
	old := run.Worker{ID: "node1-1-old", Node: "node1", Host: "old", Version: "0.0.9"}
	defer g.signs(old)()
	g.eventually(5*time.Second, "it signs", func() bool { return len(g.live()) == 1 })
	g.worker(onHost("a")).term(t) // /tmp is local

	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	n := newNeighbours(Params{Store: g.store, Instance: g.opts.Instance, Now: time.Now, Dir: &dump.Directory{Dump: g.opts.Dump, Temp: g.opts.Temp, Instance: g.opts.Instance, Node: "node1"}}, run.Worker{ID: "me", Node: "node1", Host: "b", Neighbour: run.Neighbour{Boot: "b", Joined: 2}})
	certain, err := n.look(ctx, time.Second)
	require.NoError(t, err)
	require.True(t, certain)
	require.NoError(t, unix.Mount("files:/export", g.opts.Temp, "fuse", unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)))
	defer func() { _ = unix.Unmount(g.opts.Temp, unix.MNT_DETACH); _ = unix.Close(fuse) }()
	n.proven = map[string]string{}
	n.who.Host = "old"
	certain, err = n.look(ctx, time.Second)
	require.NoError(t, err)
	require.True(t, certain, "the same host sees the lock on the directory")
	n.proven, n.who.Host = map[string]string{}, "b"
	g.eventually(10*time.Second, "it is refused", func() bool { _, err = n.look(ctx, time.Second); return err != nil })
	require.ErrorContains(t, err, "it is of an earlier version (0.0.9), whose locks no other host sees over a network: stop it first")
	require.ErrorContains(t, err, g.opts.Temp+" is on fuse of files:/export at "+g.opts.Temp)
	require.False(t, strings.Contains(err.Error(), "\n"))
}

// On the host of a killed worker the next begins at once, though Redis shows the dead one
// still; what that left is swept as soon as Redis does not.
func TestLocksOfDeadWorkersAreSwept(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	a := g.begun(onHost("a"))
	left := g.workerLocks(g.opts)
	require.Len(t, left, 2)
	dead := g.live()["a"]
	a.kill9()
	end := g.signs(dead) // its sign is never over: who waits for that never begins
	g.begun(onHost("a")).term(t)
	end()
	require.Equal(t, left, g.workerLocks(g.opts))
	require.NoError(t, g.store.SignOut(context.Background(), g.opts.Instance, dead.ID)) // as after 12 s
	g.begun(onHost("b"))
	g.eventually(90*time.Second, "they are swept", func() bool {
		now := g.workerLocks(g.opts)
		return len(now) == 2 && now[0] != left[0]
	})
	for _, path := range g.workerLocks(g.opts) { // somebody tidies up
		require.NoError(t, os.Remove(path))
	}
	g.eventually(30*time.Second, "a lock that is removed is taken anew", func() bool { return len(g.workerLocks(g.opts)) == 2 })
	g.begun(onHost("c"))
	r := g.begin()
	g.waitOver(r.ID, run.Succeeded, 20*time.Second)
}

// A worker that died on another machine, under a clock of Redis that was ahead, keeps nobody
// waiting for longer than another dead one, and who waits says so.
func TestTheSignOfADeadWorkerEnds(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	dead := "catalog-backup:catalog:worker:node1-dead"
	require.NoError(t, g.store.SignIn(ctx, g.opts.Instance, run.Worker{ID: "node1-dead", Node: "node1", Host: "h", Neighbour: run.Neighbour{Boot: "another", Joined: 1}}))
	require.NoError(t, g.rdb.PExpire(ctx, dead, time.Hour).Err())
	log, told := test.NewNullLogger()
	n := newNeighbours(Params{Store: g.store, Instance: g.opts.Instance, Now: time.Now, Log: log, Dir: g.directory()},
		run.Worker{ID: "me", Node: "node1", Host: "b", Neighbour: run.Neighbour{Boot: "b", Joined: 2}})
	proved := make(chan error, 1)
	go func() { proved <- n.prove(ctx, 0) }()
	g.eventually(5*time.Second, "it says what it waits for", func() bool { return told.LastEntry() != nil })
	require.Contains(t, told.LastEntry().Message, "node1-dead")
	require.LessOrEqual(t, g.rdb.PTTL(ctx, dead).Val(), 12*time.Second)
	require.NoError(t, g.rdb.PExpire(ctx, dead, time.Second).Err()) // as after 11 s
	require.NoError(t, <-proved)
	require.Len(t, told.AllEntries(), 1)
}
