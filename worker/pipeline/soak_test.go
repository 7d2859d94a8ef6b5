package pipeline

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
)

// TestSoak sends runs through two workers of one node that are killed at random
// all the time, some by SIGTERM, some runs with errors, some cancelled. SOAK_RUNS
// makes it longer (make soak).
func TestSoak(t *testing.T) {
	runs := 15
	if n, err := strconv.Atoi(os.Getenv("SOAK_RUNS")); err == nil {
		runs = n
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 1))
	g := newGround(t)
	g.opts.Limits.Crashes = 1000
	g.opts.Limits.Backoff = 20 * time.Millisecond
	g.opts.Duration = 60 * time.Millisecond
	workers := []*process{g.worker(), g.worker()}
	kills, states := 0, map[run.State]int{}
	for range runs {
		if dice.IntN(3) == 0 {
			g.control("fail-"+[]string{"prepare", "postgres", "eventbus", "archive"}[dice.IntN(4)], "1")
		}
		r := g.begin()
		cancelAt := time.Now().Add(time.Duration(dice.IntN(4000)) * time.Millisecond)
		cancelled := dice.IntN(5) != 0
		deadline := time.Now().Add(60 * time.Second)
		for {
			time.Sleep(time.Duration(50+dice.IntN(250)) * time.Millisecond)
			if !cancelled && time.Now().After(cancelAt) {
				_, err := g.store.Cancel(context.Background(), g.get(r.ID))
				require.NoError(t, err)
				cancelled = true
			}
			if now := g.get(r.ID); now.State.Over() {
				r = now
				break
			}
			require.True(t, time.Now().Before(deadline), "the run hangs: %+v", g.get(r.ID))
			if dice.IntN(3) == 0 {
				continue // some peace, so that runs end
			}
			i := dice.IntN(len(workers))
			if dice.IntN(4) == 0 {
				workers[i].signal(syscall.SIGTERM)
			} else {
				workers[i].signal(syscall.SIGKILL)
			}
			<-workers[i].waited
			kills++
			workers[i] = g.worker()
		}
		states[r.State]++
		g.clean(r)
		require.NotEqual(t, run.Failed, r.State, r.Error)
		require.LessOrEqual(t, r.Cleanups, 1)
		g.requireOneAtATime(r.ID)
	}
	t.Logf("%d runs, %d kills: %v", runs, kills, states)
}

// requireOneAtATime asserts that no two attempts of a run ever ran together: one
// begins only after the one before ended, or its process was killed.
func (g *ground) requireOneAtATime(id string) {
	g.t.Helper()
	var running *line
	ends := map[string]int{}
	for _, l := range g.journal() {
		if l.run != id {
			continue
		}
		switch l.word {
		case "begin":
			if running != nil {
				require.NotEqual(g.t, running.pid, l.pid, "one process, two attempts")
				require.Error(g.t, syscall.Kill(running.pid, 0), "an attempt began while another one's process lives")
			}
			running = &l
		case "over":
			running = nil
		case "end":
			ends[l.stage]++
		}
	}
	require.LessOrEqual(g.t, ends["archive"], 2, "a committed stage was done again")
}
