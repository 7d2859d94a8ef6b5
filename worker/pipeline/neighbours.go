package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"
)

// neighbours prove that the workers of one node see each other's locks, wherever they
// run: who does not see the lock of a live attempt takes it for dead. Each worker holds
// a lock of its own and shows it in Redis; whoever comes later looks at those of all
// who came before, and takes no work unless it finds them locked.
type neighbours struct {
	p    Params
	lock *dump.WorkerLock
	disk looks
	// limit is how long the disk may take to give the lock, or to show another's.
	limit time.Duration

	mu  sync.Mutex
	who run.Worker

	proven  map[string]string    // by worker: the lock files, its and ours, with which it was proved
	lacking bool                 // the last renewal of the lock failed
	watched chan struct{}        // closed while watch does not run
	doubts  map[string]time.Time // workers whose lock is not seen: until when the sign counts that they had given
}

const (
	// proofInterval is how often a worker looks again before it begins.
	proofInterval = 250 * time.Millisecond
	// proofTold is after how long a worker that does not begin says what it waits for.
	proofTold = 5 * time.Second
	// bootFile names the kernel since it started: random(4).
	bootFile = "/proc/sys/kernel/random/boot_id"
)

func newNeighbours(p Params, who run.Worker) *neighbours {
	unwatched := make(chan struct{})
	close(unwatched)
	return &neighbours{p: p, who: who, limit: 5 * time.Second, watched: unwatched, proven: map[string]string{}, doubts: map[string]time.Time{}}
}

// shown is the worker as Redis shows it.
func (n *neighbours) shown() run.Worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.who
}

// join takes the worker's lock, shows it, and returns when it is proved that those of
// all who came before are seen; an error if one is not, or ctx ends.
func (n *neighbours) join(ctx context.Context) error {
	n.who.Boot = n.p.Boot
	if n.who.Boot == "" {
		b, err := os.ReadFile(bootFile)
		if err != nil {
			return fmt.Errorf("find out which kernel runs this worker: %w", err)
		}
		n.who.Boot = strings.TrimSpace(string(b))
	}
	var err error
	if n.lock, err = n.p.Dir.NewWorkerLock(n.who.ID); err != nil {
		return err
	}
	n.renew() // before the first sign: who sees the sign finds the lock
	who := n.shown()
	if who.Joined, err = n.p.Store.Join(ctx, n.p.Instance, who); err == nil {
		n.mu.Lock()
		n.who.Joined = who.Joined
		n.mu.Unlock()
		err = n.prove(ctx, proofTold)
	}
	if err != nil {
		n.leave()
	}
	return err
}

// prove looks until it is certain. After tell it says what it waits for.
func (n *neighbours) prove(ctx context.Context, tell time.Duration) error {
	t := time.NewTicker(proofInterval)
	defer t.Stop()
	begun := n.p.Now()
	for told := false; ; {
		certain, err := n.look(ctx, time.Second)
		hangs := errors.Is(err, errHangs)
		if err != nil && !hangs || certain {
			return err
		}
		switch {
		case told || n.p.Now().Sub(begun) <= tell:
		case hangs:
			told = true
			n.p.Log.WithError(err).Warn("this worker takes no work yet: Redis shows others of its node, whose locks it must see first")
		default:
			told = true
			n.p.Log.Warnf("this worker takes no work yet: Redis shows others of its node whose locks it does not see (%s); one that died counts as live until shortly after its last sign",
				strings.Join(slices.Sorted(maps.Keys(n.doubts)), ", "))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
		if err := n.p.Store.SignIn(ctx, n.p.Instance, n.shown()); err != nil {
			return err
		}
	}
}

// renew takes the worker's lock anew where somebody removed it. A worker that gets none
// works, but alone. One that comes late, from a disk that hung, is noted the next time.
func (n *neighbours) renew() {
	err := n.disk.at("lock", n.limit, n.lock.Renew)
	hangs := errors.Is(err, errHangs)
	if hangs {
		err = hung(err, n.p.Dir.Temp+" and "+n.p.Dir.Dump)
	}
	if err != nil && !n.lacking {
		n.p.Log.WithError(err).Warn("no other worker of this node can begin while this one lacks its lock; trying on")
	}
	n.lacking = err != nil
	if hangs {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.who.TempLock, n.who.DumpLock = n.lock.Files()
}

// look goes once over the live workers of the node that came before this one. It is
// certain if each was proved or is dead. A lock that is not seen is an error once its
// worker has given a sign by patience later: until then it may just have died.
func (n *neighbours) look(ctx context.Context, patience time.Duration) (certain bool, err error) {
	live, err := n.p.Store.Workers(ctx, n.p.Instance)
	if err != nil {
		return false, err
	}
	me := n.shown()
	certain = true
	for _, w := range live {
		if w.Node != me.Node || w.ID == me.ID || !w.Before(me) || n.proven[w.ID] == locks(w, me) {
			continue
		}
		seen, dead, err := n.seeSoon(w, me)
		if err != nil {
			return false, err // not that it is not seen
		}
		if dead {
			continue
		}
		if seen == "" {
			n.proven[w.ID] = locks(w, me)
			delete(n.doubts, w.ID)
			continue
		}
		left, err := n.p.Store.Sign(ctx, n.p.Instance, w.ID)
		if err != nil {
			return false, err
		}
		until := n.p.Now().Add(left)
		if first, ok := n.doubts[w.ID]; !ok {
			n.doubts[w.ID] = until
		} else if until.After(first.Add(patience)) {
			return false, notSeen{n.refusal(w, seen)}
		}
		certain = certain && left == 0
	}
	return certain, nil
}

// locks names the files of a proof. Where one is made anew, as in a directory that was
// unmounted, it is no proof any more.
func locks(w, me run.Worker) string {
	return strings.Join([]string{w.TempLock, w.DumpLock, me.TempLock, me.DumpLock}, " ")
}

// seeSoon is see, and an error where the disk hangs.
func (n *neighbours) seeSoon(w, me run.Worker) (seen string, dead bool, err error) {
	type sights struct {
		seen string
		dead bool
	}
	got := make(chan sights, 1)
	err = n.disk.at("see "+w.ID, n.limit, func() error {
		seen, dead := n.see(w, me)
		got <- sights{seen, dead}
		return nil
	})
	if err != nil {
		return "", false, hung(err, n.p.Dir.Temp+" and "+n.p.Dir.Dump)
	}
	s := <-got
	return s.seen, s.dead, nil
}

// see looks at the locks of a worker: "" if both are seen locked, else what is seen.
// It is dead if nobody holds the very file that it holds while it lives: on one kernel
// there is no doubt about that.
func (n *neighbours) see(w, me run.Worker) (seen string, dead bool) {
	if w.Boot == "" {
		if w.Host == me.Host || n.local() {
			return "", false // on this host the lock on the run's directory is seen
		}
		return fmt.Sprintf("it is of an earlier version (%s), whose locks no other host sees over a network: stop it first", w.Version), false
	}
	temp, dmp := n.p.Dir.SeeWorker(w.ID)
	held := temp.Held || dmp.Held
	for _, x := range []struct {
		dump.Sight
		shown string
	}{{temp, w.TempLock}, {dmp, w.DumpLock}} {
		switch {
		case x.Err != nil:
			seen = fmt.Sprintf("its lock cannot be looked at: %v", x.Err)
		case x.Held:
		case x.File == "":
			seen = fmt.Sprintf("its lock file %s is not there", x.Path)
		case w.Boot == me.Boot && x.File == x.shown && !held:
			return "", true
		default:
			seen = fmt.Sprintf("its lock file %s is there, but not locked for this host", x.Path)
		}
	}
	return seen, false
}

// local tells whether both directories are on file systems that no other host shares.
func (n *neighbours) local() bool {
	for _, dir := range []string{n.p.Dir.Temp, n.p.Dir.Dump} {
		if m, err := dump.MountOf(dir); err != nil || !m.Local() {
			return false
		}
	}
	return true
}

// notSeen is the reason not to work beside another worker.
type notSeen struct{ error }

func (n *neighbours) refusal(w run.Worker, seen string) error {
	var mounts []string
	for _, dir := range []string{n.p.Dir.Temp, n.p.Dir.Dump} {
		if m, err := dump.MountOf(dir); err == nil {
			mounts = append(mounts, fmt.Sprintf("%s is on %s", dir, m))
		}
	}
	return fmt.Errorf("work beside worker %s on host %s, which serves node %s too: %s. "+
		"Workers that do not see each other's locks take each other for dead (here %s). "+
		"Let all workers of a node share the temp and the dump directory, on a file system whose locks hold between their hosts (NFS without local_lock and nolock, CIFS without nobrl), or give each host a node of its own (the key node)",
		w.ID, w.Host, w.Node, seen, strings.Join(mounts, ", "))
}

// watch goes on looking until done is closed: for workers that were not to be seen in
// Redis when this one came, and for locks of the dead. refuse is called, once, if this
// worker must not go on.
func (n *neighbours) watch(done <-chan struct{}, refuse func(error)) {
	ctx, end := context.WithCancel(context.Background())
	n.watched = make(chan struct{})
	go func() { <-done; end() }()
	go func() {
		defer close(n.watched)
		t := time.NewTicker(signInterval)
		defer t.Stop()
		for turn := 0; ; turn++ {
			if err := n.turn(ctx, turn); errors.As(err, &notSeen{}) {
				refuse(err)
				return
			}
			select {
			case <-done:
				return
			case <-t.C:
			}
		}
	}()
}

// sweepTurns is after how many signs the locks of the dead are swept: a minute.
const sweepTurns = int(sweepInterval / signInterval)

func (n *neighbours) turn(ctx context.Context, turn int) error {
	ctx, cancel := context.WithTimeout(ctx, signInterval)
	defer cancel()
	if turn%sweepTurns == 0 {
		n.sweep(ctx)
	}
	n.renew()
	_, err := n.look(ctx, 2*signInterval+time.Second) // it may just take its lock anew, too
	return err
}

// sweep removes the locks of workers that are gone.
func (n *neighbours) sweep(ctx context.Context) {
	workers, err := n.p.Store.Workers(ctx, n.p.Instance)
	if err != nil {
		return // who lives is not known
	}
	live := map[string]bool{n.shown().ID: true}
	for _, w := range workers {
		live[w.ID] = true
	}
	if err := n.p.Dir.RemoveWorkerLocks(live); err != nil {
		n.p.Log.WithError(err).Warn("the locks of workers that are gone stay; trying again later")
	}
}

// leave signs the worker out and gives its lock back. Where Redis shows it still, the
// files stay as a sign that it is dead; they are swept.
func (n *neighbours) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := n.p.Store.SignOut(ctx, n.p.Instance, n.shown().ID)
	if err != nil {
		n.p.Log.WithError(err).Debug("could not sign out")
	}
	select {
	case <-n.watched:
		_ = n.disk.at("lock", min(n.limit, 2*time.Second), func() error { n.lock.Release(err == nil); return nil })
	case <-ctx.Done(): // its file system does not answer; the end of the process gives the lock back
	}
}
