package pipeline

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"catalog-backup/shared/lab/faultfs"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fault is something that is broken until a time, when mend mends it.
type fault struct {
	name  string
	until time.Time
	long  bool // it outlasts its run
	mend  func()
}

// a breakage begins a fault, and gives its mending; nil: it cannot be now.
type breakage struct {
	name string
	on   string // the disk that it is for; "": any
	do   func(s *soakGround) func()
}

func breakages() []breakage {
	return []breakage{
		{name: "kill", do: func(s *soakGround) func() { return s.kill(syscall.SIGKILL) }},
		{name: "kill", do: func(s *soakGround) func() { return s.kill(syscall.SIGKILL) }},
		{name: "SIGTERM", do: func(s *soakGround) func() { return s.kill(syscall.SIGTERM) }},
		{name: "freeze", do: (*soakGround).freeze},
		{name: "freeze", do: (*soakGround).freeze},
		{name: "Redis killed", do: func(s *soakGround) func() {
			require.NoError(s.t, s.redis.Kill9())
			return func() { require.NoError(s.t, s.redis.Start()) }
		}},
		{name: "Redis frozen", do: func(s *soakGround) func() {
			require.NoError(s.t, s.redis.Stop())
			return func() { require.NoError(s.t, s.redis.Cont()) }
		}},
		{name: "Redis emptied", do: (*soakGround).empty},
		{name: "Redis rolled back", do: (*soakGround).rollBack},
		{name: "dump moved away", on: plainDisk, do: func(s *soakGround) func() { return s.moveAway("dump") }},
		{name: "temp moved away", on: plainDisk, do: func(s *soakGround) func() { return s.moveAway("temp") }},
		{name: "full", on: smallDisk, do: (*soakGround).fill},
		{name: "full", on: smallDisk, do: (*soakGround).fill},
		{name: "dump unmounted", on: smallDisk, do: func(s *soakGround) func() { return s.unmount("dump") }},
		{name: "temp unmounted", on: smallDisk, do: func(s *soakGround) func() { return s.unmount("temp") }},
		{name: "errors", on: faultyDisk, do: (*soakGround).diskErrors},
		{name: "errors", on: faultyDisk, do: (*soakGround).diskErrors},
		{name: "disk hangs", on: faultyDisk, do: (*soakGround).hang},
	}
}

func (s *soakGround) kill(sig syscall.Signal) func() {
	i, _ := s.live()
	if s.dice.IntN(8) == 0 {
		i = s.dice.IntN(len(s.slots)) // also one that is frozen
	}
	s.replace(i, sig)
	return func() {}
}

// freeze stops a worker while another one is there.
func (s *soakGround) freeze() func() {
	i, n := s.live()
	if n < 2 {
		return nil
	}
	if at := s.working(); at >= 0 && s.dice.IntN(4) > 0 {
		i = at
	}
	w := s.slots[i]
	w.frozen = true
	w.signal(syscall.SIGSTOP)
	return func() { w.frozen = false; w.signal(syscall.SIGCONT) }
}

// empty loses every record, which ends most trouble: not too often.
func (s *soakGround) empty() func() {
	if s.dice.IntN(3) > 0 {
		return nil
	}
	require.NoError(s.t, s.redis.FlushAll())
	return func() {}
}

// working gives the worker that has the attempt that runs; -1: none.
func (s *soakGround) working() int {
	pid := 0
	for _, l := range s.journal() {
		switch l.word {
		case "begin":
			pid = l.pid
		case "over":
			pid = 0
		}
	}
	return slices.IndexFunc(s.slots, func(w *slotOf) bool { return w.Process.Pid == pid })
}

func (s *soakGround) rollBack() func() {
	if s.then == "" || s.broken("Redis") {
		return nil
	}
	s.ledger.rolledBack()
	require.NoError(s.t, s.redis.Rollback(s.then))
	return func() {}
}

// remember takes the snapshot that a later rollback gives back.
func (s *soakGround) remember() {
	if s.broken("Redis") {
		return
	}
	s.then = filepath.Join(s.t.TempDir(), "then")
	require.NoError(s.t, s.redis.Snapshot(s.then))
}

func (s *soakGround) moveAway(name string) func() {
	path := filepath.Join(s.real, name)
	require.NoError(s.t, os.Rename(path, path+".away"))
	s.apart = s.apart || name == "temp"
	return func() {
		entries, err := os.ReadDir(path)
		if !errors.Is(err, os.ErrNotExist) {
			require.NoError(s.t, err)
			s.t.Logf("%s was made anew while it was away, with %v", path, entries)
			require.NoError(s.t, os.Rename(path, path+".new"))
		}
		require.NoError(s.t, os.Rename(path+".away", path))
	}
}

func (s *soakGround) fill() func() {
	b := filepath.Join(s.disk, "ballast")
	f, err := os.Create(b)
	require.NoError(s.t, err)
	block := make([]byte, 64<<10)
	for size := len(block); size > 0; {
		if _, err := f.Write(block[:size]); err != nil {
			size /= 2
		}
	}
	require.NoError(s.t, f.Close())
	return func() { require.NoError(s.t, os.Remove(b)) }
}

func (s *soakGround) unmount(name string) func() {
	path := filepath.Join(filepath.Dir(s.real), name)
	require.NoError(s.t, unix.Unmount(path, unix.MNT_DETACH))
	s.apart = s.apart || name == "temp"
	return func() { s.bind(name) }
}

// diskErrors lets some operations fail: all of some kind, or some of all kinds.
func (s *soakGround) diskErrors() func() {
	if s.broken("disk") || s.broken("errors") {
		return nil
	}
	errno := []syscall.Errno{syscall.EIO, syscall.EIO, syscall.ESTALE, syscall.EACCES, syscall.ENOSPC, syscall.EROFS, syscall.ENOTCONN}[s.dice.IntN(7)]
	kinds := []string{faultfs.Lookup, faultfs.Open, faultfs.Read, faultfs.Opendir, faultfs.Readdir, faultfs.Getattr, faultfs.Create, faultfs.Write,
		faultfs.Fsync, faultfs.Fsyncdir, faultfs.Rename, faultfs.Unlink, faultfs.Mkdir, faultfs.Rmdir, faultfs.Lock, ""}
	kind, every := kinds[s.dice.IntN(len(kinds))], 1+s.dice.IntN(8)
	what := []string{"", "", "", "_backup.json", ".intent", ".tar.gz", ".lock", "owner", "result"}[s.dice.IntN(9)]
	if what != "" {
		kind, every = "", 1+s.dice.IntN(2)
	}
	s.fs.Hook(func(op faultfs.Op) syscall.Errno {
		if (kind == "" || op.Kind == kind) && op.N%every == 0 && strings.Contains(op.Path, what) {
			return errno
		}
		return 0
	})
	return func() { s.fs.Hook(nil) }
}

// hang lets each operation of some kinds wait until the fault is over.
func (s *soakGround) hang() func() {
	if s.broken("disk") || s.broken("errors") {
		return nil
	}
	release := make(chan struct{})
	var waiting atomic.Int64
	all := s.dice.IntN(2) == 0
	s.fs.Hook(func(op faultfs.Op) syscall.Errno {
		if all || op.Kind == faultfs.Fsync || op.Kind == faultfs.Unlink || op.Kind == faultfs.Read {
			waiting.Add(1)
			<-release
		}
		return 0
	})
	return func() { s.fs.Hook(nil); close(release) }
}

func (s *soakGround) broken(word string) bool {
	for _, f := range s.faults {
		if strings.HasPrefix(f.name, word) {
			return true
		}
	}
	return false
}

// breakSomething begins a fault, if one is chosen that can be now.
func (s *soakGround) breakSomething(disk string) {
	all := breakages()
	b := all[s.dice.IntN(len(all))]
	if b.on != "" && b.on != disk || b.name != "freeze" && s.broken(b.name) {
		return
	}
	if s.broken("Redis") && strings.HasPrefix(b.name, "Redis") {
		return
	}
	mend := b.do(s)
	if mend == nil {
		return
	}
	s.done[b.name]++
	f := &fault{name: b.name, mend: mend, until: time.Now().Add(time.Duration(50+s.dice.IntN(1500)) * time.Millisecond)}
	if b.name == "freeze" && s.dice.IntN(2) == 0 && !s.short {
		f.long, f.until = true, time.Now().Add(time.Hour)
	}
	s.faults = append(s.faults, f)
}

// mend ends the faults whose time is over; all: every one that may not outlast its run.
func (s *soakGround) mend(all, long bool) {
	var on []*fault
	for _, f := range s.faults {
		if time.Now().After(f.until) || all && (!f.long || long) {
			f.mend()
		} else {
			on = append(on, f)
		}
	}
	s.faults = on
}
