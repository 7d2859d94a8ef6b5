package pipeline

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What an attempt looks at before its stage begins hangs: it gives signs all the same, and
// heeds SIGTERM and a cancel.
func TestAttemptThatHangsBeforeItsStage(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.control("hold-postgres", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	g.control("hang-cleanup", "")
	w.kill9()
	hangs := func() {
		g.t.Helper()
		before := r.Fence
		g.eventually(15*time.Second, "the next attempt gives signs", func() bool {
			r = g.get(r.ID)
			last := r.Attempts[len(r.Attempts)-1]
			return last.Fence > before && r.Updated.Sub(last.Started) > 4*g.opts.Pulse
		})
		require.Equal(t, 1, g.count(r.ID, "begin", "postgres"))
	}
	r = g.get(r.ID)
	w = g.worker()
	hangs()
	at := time.Now()
	w.term(t)
	require.Less(t, time.Since(at), 15*time.Second)
	require.Equal(t, map[run.Outcome]int{run.Good: 1, run.Crashed: 1, run.Interrupted: 1}, outcomes(g.get(r.ID)))

	g.worker()
	hangs()
	g.cancel(r)
	g.eventually(15*time.Second, "the attempt ends", func() bool { return g.get(r.ID).Ending == run.Cancelled })
	g.free("hang-cleanup")
	r = g.waitOver(r.ID, run.Cancelled, 15*time.Second)
	g.free("hold-postgres")
	g.another()
	g.gone(r)
}

// The temp directory hangs before the lock of a run can be taken: the run fails, long
// before its time is over.
func TestLockThatHangs(t *testing.T) {
	g := impatient(t)
	g.opts.Limits.CloseAfter = 300 * time.Millisecond
	g.begun()
	end := hang(t, g.opts.Temp)
	r := g.waitOver(g.begin().ID, run.Failed, 20*time.Second)
	require.Contains(t, r.Error, "look at "+g.opts.Temp+": the file system does not answer")
	end()
	require.NoError(t, unix.Unmount(g.opts.Temp, unix.MNT_DETACH))
	g.another()
	g.gone(r)
}

// A lock that comes when nobody waits for it any more is given back.
func TestLockThatComesLate(t *testing.T) {
	d := &dump.Directory{Dump: t.TempDir(), Temp: t.TempDir(), Instance: "catalog", Node: "node1"}
	id := run.NewID(time.Now(), make([]byte, 5))
	answers := make(chan struct{})
	kept := make(chan *dump.Lock, 10000) // not even the garbage collector gives them back
	slow := func() (*dump.Lock, error) {
		<-answers
		l, err := d.Lock(id, true)
		kept <- l
		return l, err
	}
	_, err := take(context.Background(), time.Millisecond, slow)
	require.ErrorIs(t, err, errHangs)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errStopping)
	_, err = take(ctx, time.Minute, slow)
	require.ErrorIs(t, err, errStopping)
	close(answers)
	var l *dump.Lock
	eventually(t, func() bool {
		_, err := os.Lstat(d.RunDir(id))
		if err == nil {
			l, err = take(context.Background(), time.Minute, slow)
			require.True(t, err == nil || errors.Is(err, dump.ErrHeld), err)
		}
		return l != nil
	})
	_, err = take(context.Background(), time.Minute, slow)
	require.ErrorIs(t, err, dump.ErrHeld)
	l.Release()
}

// The temp directory hangs when a worker starts: it says so, signs in and looks after the
// runs of its node. Beside another whose lock it cannot see it waits, and can be stopped.
func TestWorkerThatStartsBesideADirectoryThatHangs(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	end := hang(t, g.opts.Temp)
	log, said := test.NewNullLogger()
	p := Params{Store: g.store, Dir: g.directory(), Instance: g.opts.Instance, Node: g.opts.Node, Now: time.Now, Log: log, StopWithin: time.Second}
	worker := func(id string) *Worker {
		w := New(p, g.rdb, run.Worker{ID: id, Node: g.opts.Node, PID: os.Getpid()})
		w.firstSweep, w.near.limit = 50*time.Millisecond, 50*time.Millisecond
		return w
	}
	w := worker("w1")
	require.NoError(t, w.Start(t.Context()))
	t.Cleanup(func() { end(); w.Shutdown() })
	require.NoError(t, w.SignedIn(t.Context()))
	require.Contains(t, said.AllEntries()[0].Data["error"].(error).Error(), "look at "+g.opts.Temp+" and "+g.opts.Dump+": the file system does not answer")
	ctx, stop := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { started <- worker("w2").Start(ctx) }()
	g.eventually(10*time.Second, "the second one comes", func() bool { in, err := g.store.SignedIn(t.Context(), g.opts.Instance, "w2"); return in && err == nil })
	stop()
	select {
	case err := <-started:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(10 * time.Second):
		t.Fatal("it cannot be stopped")
	}
}
