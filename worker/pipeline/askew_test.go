package pipeline

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
)

// Workers whose hosts' clocks are an hour off, asynq's too, do a run that errs, and one
// whose worker is killed, about as soon as others: alone, and beside one that is right.
func TestClocksAnHourOff(t *testing.T) {
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		for _, alone := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s alone %v", off, alone), func(t *testing.T) {
				t.Parallel()
				g := newGround(t)
				g.opts.Limits.NodeLostAfter = 30 * time.Second
				wrong := func(o *workerOptions) { o.ClockOff = off }
				w := g.worker(wrong)
				if !alone {
					g.worker()
				}
				g.control("fail-postgres", "1")
				r := g.waitOver(g.begin().ID, run.Succeeded, 30*time.Second)
				g.clean(r)
				require.Equal(t, map[run.Outcome]int{run.Good: 4, run.Erred: 1}, outcomes(r))
				g.control("hold-eventbus", "")
				r = g.begin()
				g.waitStage(r.ID, "eventbus")
				w.kill9()
				g.free("hold-eventbus")
				g.worker(wrong)
				g.clean(g.waitOver(r.ID, run.Succeeded, 30*time.Second))
			})
		}
	}
}

// A leader an hour ahead does not take another node for lost, and does not end its run.
func TestLeaderAnHourAhead(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.opts.Limits.NodeLostAfter, g.opts.Limits.Timeout = time.Minute, 10*time.Minute
	g.control("hold-eventbus", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "eventbus")
	dump, temp := t.TempDir(), t.TempDir()
	ahead := g.worker(func(o *workerOptions) { o.ClockOff, o.Node, o.Dump, o.Temp = time.Hour, "node2", dump, temp })
	w.signal(syscall.SIGSTOP) // until the other one leads
	g.eventually(15*time.Second, "the other worker leads", func() bool {
		return g.rdb.Get(t.Context(), "catalog-backup:catalog:leader").Val() == fmt.Sprintf("node2-%d", ahead.Process.Pid)
	})
	w.signal(syscall.SIGCONT)
	looks := time.Now().Add(3 * lookInterval)
	g.eventually(10*time.Second, "the leader has looked some times", func() bool { return time.Now().After(looks) })
	require.Equal(t, run.Running, g.get(r.ID).State)
	require.Zero(t, g.count(r.ID, "over", "eventbus"))
	g.free("hold-eventbus")
	g.waitOver(r.ID, run.Succeeded, 20*time.Second)
}
