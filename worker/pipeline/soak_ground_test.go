package pipeline

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/lab/faultfs"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// soakGround is a ground whose disk, Redis and workers can be broken and mended.
type soakGround struct {
	*ground
	dice   *rand.Rand
	ledger *ledger
	slots  []*slotOf
	all    []*slotOf // also those that ended
	real   string    // directory of dump and temp that no fault takes away
	shadow bool      // dump and temp are mounts: what lies under them is seen when they are away
	fs     *faultfs.FS
	disk   string // the small file system that can be filled
	then   string // a snapshot of Redis; "" = none yet
	skewed bool
	hard   int  // how much breaks, from 2 to 9
	short  bool // no worker stays frozen
	faults []*fault
	done   map[string]int
	// apart says that temp was away while this run was open: two attempts may then hold
	// locks on two directories of one name.
	apart bool
}

// slotOf is one worker of the two, from its start to its end.
type slotOf struct {
	*process
	frozen bool
	ended  atomic.Int64 // when it ended, in ns since 1970; 0: it lives
}

// The file systems that dump and temp directories lie on.
const (
	plainDisk  = "plain"  // an ordinary directory, which can be moved away
	smallDisk  = "small"  // a tmpfs that can be filled and unmounted
	faultyDisk = "faulty" // a file system that gives errors and hangs
)

const soakArchive = 40_000

func newSoakGround(t *testing.T, disk string, seed uint64) *soakGround {
	s := &soakGround{ground: newGroundOn(t, lab.Redis(t), 0, "catalog"), dice: rand.New(rand.NewPCG(seed, 1)), ledger: newLedger(t), done: map[string]int{}}
	root := filepath.Dir(s.opts.Dump)
	s.real = root
	s.opts.Size = soakArchive
	s.opts.Limits.Crashes, s.opts.Limits.Interruptions = 1000, 1000
	s.opts.Limits.Backoff = 20 * time.Millisecond
	s.opts.Limits.Timeout = soakTimeout
	s.opts.Limits.CloseAfter = soakClose
	s.opts.Duration = time.Duration(50+s.dice.IntN(200)) * time.Millisecond
	s.opts.Linger = time.Duration(s.dice.IntN(400)) * time.Millisecond
	s.opts.Limits.Errors = 1 + s.dice.IntN(5)
	s.skewed, s.hard = s.dice.IntN(3) == 0, 2+s.dice.IntN(8)
	switch disk {
	case smallDisk:
		s.real, s.disk, s.shadow = root+"/real", root+"/real", true
		require.NoError(t, os.Mkdir(s.real, 0o755))
		require.NoError(t, unix.Mount("tmpfs", s.real, "tmpfs", 0, "size=4m,nr_inodes=2000"))
		t.Cleanup(func() { _ = unix.Unmount(s.real, unix.MNT_DETACH) })
		for _, d := range []string{"dump", "temp"} {
			s.ledgerOfDump(d, root)
			require.NoError(t, os.Mkdir(filepath.Join(s.real, d), 0o755))
			s.bind(d)
			t.Cleanup(func() { _ = unix.Unmount(filepath.Join(root, d), unix.MNT_DETACH) })
		}
	case faultyDisk:
		s.fs = faultfs.Mount(t, root)
		s.opts.Dump, s.opts.Temp = s.fs.Path+"/dump", s.fs.Path+"/temp"
	}
	s.ledger.watch(filepath.Join(s.real, "dump"))
	for range 2 {
		s.slots = append(s.slots, s.start())
	}
	return s
}

func (s *soakGround) ledgerOfDump(d, root string) {
	if d == "dump" {
		s.ledger.watch(filepath.Join(root, d))
	}
}

func (s *soakGround) bind(d string) {
	require.NoError(s.t, unix.Mount(filepath.Join(s.real, d), filepath.Join(filepath.Dir(s.real), d), "", unix.MS_BIND, ""))
}

// start gives a new worker, whose clock may be an hour off.
func (s *soakGround) start() *slotOf {
	off := time.Duration(0)
	if s.skewed {
		off = []time.Duration{0, 0, time.Hour, -time.Hour}[s.dice.IntN(4)]
	}
	w := &slotOf{process: s.worker(func(o *workerOptions) { o.ClockOff = off })}
	s.all = append(s.all, w)
	go func() { <-w.waited; w.ended.Store(time.Now().UnixNano()) }()
	return w
}

// replace ends a worker and starts the next one beside it: the old one may take its
// time, also after a SIGKILL, while its disk does not answer.
func (s *soakGround) replace(i int, sig syscall.Signal) {
	w := s.slots[i]
	w.signal(sig)
	if w.frozen && sig != syscall.SIGKILL {
		w.signal(syscall.SIGCONT)
	}
	if sig == syscall.SIGKILL && !s.broken("disk") {
		<-w.waited
	}
	s.slots[i] = s.start()
}

// supervise starts a worker again that has ended by itself, e.g. since there was no
// Redis when it began.
func (s *soakGround) supervise() {
	for i, w := range s.slots {
		select {
		case <-w.waited:
			s.slots[i] = s.start()
		default:
		}
	}
}

// allEnded asserts that the workers that were replaced are gone.
func (s *soakGround) allEnded() {
	s.t.Helper()
	late := time.After(soakSlack)
	for _, w := range s.all {
		if slices.Contains(s.slots, w) {
			continue
		}
		select {
		case <-w.waited:
		case <-late:
			s.t.Fatalf("the worker %d does not end", w.Process.Pid)
		}
	}
}

// live gives a worker that is not frozen, and how many there are.
func (s *soakGround) live() (int, int) {
	var found []int
	for i, w := range s.slots {
		if !w.frozen {
			found = append(found, i)
		}
	}
	return found[s.dice.IntN(len(found))], len(found)
}
