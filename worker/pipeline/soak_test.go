package pipeline

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// The limits of a soak's runs, and what is granted on top on a busy machine.
const (
	soakTimeout = 3 * time.Second
	soakClose   = 1500 * time.Millisecond
	soakSlack   = 40 * time.Second
)

// TestSoak sends runs through two workers of one node while everything breaks at
// random: workers are killed and frozen, the disk is full, away, or gives errors,
// Redis is killed, frozen, emptied and rolled back, clocks are an hour off. Each run
// comes to an end, no committed set is ever touched, and once the faults are gone
// nothing is left but sets. SOAK_RUNS makes it longer (make soak), SOAK_SEED repeats
// the choices of one, SOAK_DISK takes one kind of disk.
func TestSoak(t *testing.T) {
	runs, each, short := 6, 2, true
	if n, err := strconv.Atoi(os.Getenv("SOAK_RUNS")); err == nil {
		runs, each, short = n, 10, false
	}
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64); err == nil {
		seed = n
	}
	disks := []string{plainDisk, smallDisk, faultyDisk}
	if d := os.Getenv("SOAK_DISK"); d != "" {
		disks = []string{d}
	}
	states, faults := map[string]int{}, map[string]int{}
	for i := 0; i*each < runs; i++ {
		disk := disks[i%len(disks)]
		ok := t.Run(disk+"/"+strconv.FormatUint(seed+uint64(i), 10), func(t *testing.T) {
			season(t, disk, seed+uint64(i), each, short, states, faults)
		})
		if !ok {
			t.Fatalf("again: SOAK_SEED=%d SOAK_DISK=%s SOAK_RUNS=%d", seed+uint64(i), disk, each)
		}
	}
	t.Logf("%d runs: %v; faults: %v", runs, states, faults)
}

// season is some runs on one ground.
func season(t *testing.T, disk string, seed uint64, runs int, short bool, states, faults map[string]int) {
	s := newSoakGround(t, disk, seed)
	s.short = short
	defer func() { s.mend(true, true) }() // nobody can end a worker that hangs
	ids := []string{}
	for range runs {
		s.apart = slices.ContainsFunc(s.faults, func(f *fault) bool { return strings.HasPrefix(f.name, "temp") })
		begin := time.Now()
		id := s.open()
		ids = append(ids, id)
		r, known := s.through(id, disk)
		state := "lost with Redis"
		if known {
			state = string(r.State)
			if r.State == run.Succeeded {
				_, stands := s.ledger.of(r.ID)
				require.True(t, stands, "the run is told as succeeded, and no set of it was committed")
			}
			if s.dice.IntN(2) == 0 { // or a frozen worker sleeps on through the next run
				s.mend(true, true)
			}
		}
		states[state]++
		t.Logf("%s: %s after %s; faults left: %d %s", id, state, time.Since(begin).Round(time.Millisecond), len(s.faults), r.Error)
		if !s.apart {
			s.requireOneAtATime(id)
		}
		require.Empty(t, s.ledger.check(filepath.Join(s.real, "dump"), soakArchive))
	}
	s.calm(ids)
	for name, n := range s.done {
		faults[name] += n
	}
}

// open starts a run. One that a rollback has opened again comes to its end before.
func (s *soakGround) open() string {
	s.t.Helper()
	for {
		b := make([]byte, 5)
		for i := range b {
			b[i] = byte(s.dice.IntN(256))
		}
		id := run.NewID(time.Now(), b)
		r, err := s.store.Start(context.Background(), run.Request{ID: id, Instance: s.opts.Instance, Requested: "full", Type: "full", FirstStage: FirstStage, Epoch: freshEpoch()})
		var busy *run.BusyError
		if errors.As(err, &busy) {
			s.over(busy.Run.ID)
			continue
		}
		require.NoError(s.t, err)
		require.NoError(s.t, s.enqueuer().Enqueue(context.Background(), r.Epoch, "", task.Payload{Run: id, Instance: s.opts.Instance, Stage: FirstStage, Generation: 1}, nil))
		return id
	}
}

// through breaks things until the run is over, or its time is over by far.
func (s *soakGround) through(id, disk string) (run.Record, bool) {
	s.t.Helper()
	if s.dice.IntN(4) == 0 {
		s.control("fail-"+[]string{"prepare", "postgres", "eventbus", "archive"}[s.dice.IntN(4)], "1")
	}
	cancelAt := time.Duration(s.dice.IntN([]int{1000, 20000, 20000, 20000}[s.dice.IntN(4)])) * time.Millisecond
	begin := time.Now()
	for time.Since(begin) < 2*soakTimeout {
		time.Sleep(time.Duration(20+s.dice.IntN(150)) * time.Millisecond)
		s.mend(false, false)
		s.supervise()
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		r, err := s.store.Get(ctx, id)
		if err == nil && time.Since(begin) > cancelAt && !r.Cancel {
			_, _ = s.store.Cancel(ctx, r)
		}
		cancel()
		if err == nil && r.State.Over() || errors.Is(err, run.ErrNotFound) {
			break
		}
		switch n := s.dice.IntN(12); {
		case n < 2:
			s.remember()
		case n < 3+s.hard && len(s.faults) <= s.hard/2:
			s.breakSomething(disk)
		}
	}
	s.mend(true, false)
	return s.over(id)
}

// over waits until a run is over, or unknown to an emptied Redis. With no fault but a
// frozen worker, its limits are the bound.
func (s *soakGround) over(id string) (run.Record, bool) {
	s.t.Helper()
	deadline := time.Now().Add(soakTimeout + soakClose + soakSlack)
	for {
		s.supervise()
		r, err := s.store.Get(context.Background(), id)
		if errors.Is(err, run.ErrNotFound) {
			return r, false
		}
		if err == nil && r.State.Over() {
			return r, true
		}
		require.True(s.t, time.Now().Before(deadline), "the run hangs: %v %+v; disk: %v", err, r, s.left())
		time.Sleep(20 * time.Millisecond)
	}
}

// calm asserts that all is well once the faults are gone.
func (s *soakGround) calm(ids []string) {
	s.t.Helper()
	s.mend(true, true)
	_ = os.Remove(filepath.Join(s.opts.Control, "fail-"+FirstStage))
	for _, n := range []string{"postgres", "eventbus", "archive"} {
		_ = os.Remove(filepath.Join(s.opts.Control, "fail-"+n))
	}
	for _, id := range ids {
		s.over(id)
	}
	id := s.open()
	r, known := s.over(id)
	require.True(s.t, known)
	s.allEnded()
	require.Equal(s.t, run.Succeeded, r.State, "the run after all faults: %s", r.Error)
	deadline := time.Now().Add(soakSlack)
	for left := s.left(); len(left) > 0; left = s.left() {
		s.supervise()
		require.True(s.t, time.Now().Before(deadline), "left on disk: %v", left)
		time.Sleep(50 * time.Millisecond)
	}
	open, err := s.store.Open(context.Background(), s.opts.Instance)
	require.NoError(s.t, err)
	require.Empty(s.t, open)
	for _, k := range s.rdb.Keys(context.Background(), "catalog-backup:*:lock").Val() {
		require.ErrorIs(s.t, s.rdb.Get(context.Background(), k).Err(), redis.Nil)
	}
	require.Empty(s.t, s.ledger.check(filepath.Join(s.real, "dump"), soakArchive))
	if s.shadow { // what was committed while the file system was away lies under it
		for _, w := range s.slots {
			w.kill9()
		}
		root := filepath.Dir(s.real)
		s.unmount("dump")
		require.Empty(s.t, s.ledger.check(filepath.Join(root, "dump"), soakArchive))
		s.bind("dump")
	}
}

// left names what lies on disk and is not of a committed set, nor a lock of a worker.
// A directory that a kill kept from getting its marker goes when it is an hour old.
func (s *soakGround) left() []string {
	var left []string
	for _, d := range []string{"dump", "temp"} {
		dir := filepath.Join(s.real, d)
		entries, err := os.ReadDir(dir)
		if err != nil {
			left = append(left, err.Error())
		}
		for _, e := range entries {
			id, ok := set.IDOfName(e.Name())
			of, isLock := strings.CutSuffix(e.Name(), ".lock")
			switch path := filepath.Join(dir, e.Name()); {
			case ok && e.Name()[0] != '.':
				_, err := os.Stat(filepath.Join(dir, id.ManifestName()))
				ok = err == nil
			case e.IsDir() && e.Name() == "pgbackrest":
				children, err := os.ReadDir(path)
				ok = err == nil && !slices.ContainsFunc(children, func(c os.DirEntry) bool { return !halfMade(filepath.Join(path, c.Name())) })
			case e.IsDir():
				ok = halfMade(path)
			default:
				ok = strings.HasPrefix(e.Name(), ".catalog-backup") || isLock && halfMade(filepath.Join(dir, of[1:]))
			}
			if !ok {
				left = append(left, d+"/"+e.Name())
			}
		}
	}
	return left
}

// halfMade tells a directory with nothing in it, but for half a marker.
func halfMade(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return !strings.HasSuffix(e.Name(), ".new") })
}

// requireOneAtATime asserts that no two attempts of a run ever ran together: one
// begins only after the one before ended, or its process was killed.
func (s *soakGround) requireOneAtATime(id string) {
	s.t.Helper()
	killed := map[int]int64{}
	for _, w := range s.all {
		killed[w.Process.Pid] = w.ended.Load()
	}
	var running *line
	for _, l := range s.journal() {
		if l.run != id {
			continue
		}
		switch l.word {
		case "begin":
			if running != nil {
				at := killed[running.pid]
				require.True(s.t, at != 0 && at <= l.at+int64(time.Second), "an attempt of %s (%+v) began while another one (%+v) ran, whose process lived (killed: %d, now: %v)",
					id, l, *running, at, syscall.Kill(running.pid, 0))
			}
			running = &l
		case "over":
			if running != nil && running.pid == l.pid {
				running = nil
			}
		}
	}
}
