package run

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOlderGenerationMayDecideNothing(t *testing.T) {
	b := newBench(t)
	old := claimed(b)
	_, err := b.Again(ctx, old, old.Stage, old.Generation, Retry{Kind: Crashed, Error: "died", Budget: 5})
	require.NoError(t, err)
	before := b.snapshot(old)
	n, err := b.Again(ctx, old, old.Stage, old.Generation, Retry{Kind: Crashed, Error: "died", Budget: 5})
	require.NoError(t, err)
	require.Equal(t, "stale", n.Kind, "a death is counted once")
	n, err = b.Stop(ctx, old, old.Generation, Failed, "late", false)
	require.NoError(t, err)
	require.Equal(t, "stale", n.Kind)
	n, err = b.Anew(ctx, old, old.Generation)
	require.NoError(t, err)
	require.Equal(t, "stale", n.Kind)
	require.Equal(t, before, b.snapshot(old))
}

func TestBudgetsAreByKind(t *testing.T) {
	for kind, count := range map[Outcome]func(Record) int{
		Erred:       func(r Record) int { return r.Errors },
		Crashed:     func(r Record) int { return r.Crashes },
		Interrupted: func(r Record) int { return r.Interruptions },
	} {
		t.Run(string(kind), func(t *testing.T) {
			b := newBench(t)
			r := b.begin()
			const budget = 2
			for i := 1; i <= budget; i++ {
				r = b.claim(r)
				require.Equal(t, i, r.Attempt)
				n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: kind, Error: "why", Budget: budget})
				require.NoError(t, err)
				require.Equal(t, "again", n.Kind)
				require.Equal(t, r.Generation+1, n.Generation)
				r = b.reload(r)
				require.Equal(t, i, count(r))
				require.Equal(t, i, r.Errors+r.Crashes+r.Interruptions, "only its own kind")
				require.Equal(t, "why", r.Error)
			}
			r = b.claim(r)
			n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: kind, Error: "the last one", Budget: budget})
			require.NoError(t, err)
			require.Equal(t, "cleanup", n.Kind)
			r = b.reload(r)
			require.Equal(t, Cleanup, r.Stage)
			require.Equal(t, Failed, r.Ending)
			require.Equal(t, Running, r.State)
			require.Equal(t, "the last one", r.Error)
			require.Equal(t, 0, r.Errors+r.Crashes+r.Interruptions, "the cleanup begins with a new count")
			require.Equal(t, r.ID, b.locked(), "the lock is held until the cleanup is over")
			for _, a := range r.Attempts {
				require.Equal(t, kind, *a.Outcome)
			}
		})
	}
}

// Nobody works on a stage between two attempts: the bytes and the rate of the first
// are not shown as if somebody did.
func TestNoProgressBetweenAttempts(t *testing.T) {
	for _, kind := range []Outcome{Erred, Crashed, Interrupted} {
		b := newBench(t)
		r := b.claim(b.begin())
		done, total, rate := int64(5), int64(10), int64(1)
		require.NoError(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, &done, &total, &rate))
		require.NotNil(t, b.reload(r).Rate)
		_, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: kind, Error: "why", Budget: 2})
		require.NoError(t, err)
		r = b.reload(r)
		require.Equal(t, []*int64{nil, nil, nil}, []*int64{r.BytesDone, r.BytesTotal, r.Rate}, kind)
	}
}

func TestStagesDoNotShareABudget(t *testing.T) {
	b := newBench(t)
	r := b.claim(retried(b))
	require.Equal(t, 1, r.Errors)
	require.Equal(t, 2, r.Attempt)
	r = b.advance(r, "postgres")
	require.Zero(t, r.Errors)
	require.Zero(t, r.Attempt)
	require.Empty(t, r.Error, "a stage that went well has no error")
}

func TestRetryWaits(t *testing.T) {
	b := newBench(t)
	r := retried(b)
	require.Equal(t, b.clock.Add(time.Minute), *r.NotBefore)
	n, err := b.Anew(ctx, r, r.Generation)
	require.NoError(t, err)
	require.Equal(t, "again", n.Kind)
	r = b.reload(r)
	require.Equal(t, n.Generation, r.Generation)
	require.NotNil(t, r.NotBefore, "a new task waits as the old one did")
	require.Equal(t, 1, r.Errors, "and no failure is counted")
	require.Nil(t, b.claim(r).NotBefore)
}

func TestCleanupIsTriedForEver(t *testing.T) {
	b := newBench(t)
	r := cleaning(b)
	for range 10 {
		n, err := b.Again(ctx, r, Cleanup, r.Generation, Retry{Kind: Erred, Error: "cannot remove", Budget: 1, Permanent: true})
		require.NoError(t, err)
		require.Equal(t, "again", n.Kind)
		r = b.claim(r)
	}
	require.Equal(t, "disk full", r.Error, "why the run failed stays")
	require.NoError(t, b.Cleaned(ctx, r, r.Hold(), false))
	r = b.reload(r)
	require.Equal(t, Failed, r.State)
	require.Equal(t, 1, r.Cleanups)
	require.ErrorIs(t, b.Cleaned(ctx, r, r.Hold(), false), ErrFenced)
	require.Equal(t, 1, b.reload(r).Cleanups, "exactly once")
}

func TestCleanedOnlyInCleanup(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.ErrorIs(t, b.Cleaned(ctx, r, r.Hold(), false), ErrFenced)
	require.Equal(t, r.ID, b.locked())
}

func TestCleanupCannotMakeARunGood(t *testing.T) {
	b := newBench(t)
	r := cleaning(b)
	_, err := b.Advance(ctx, r, Cleanup, r.Hold(), "", "x")
	require.ErrorIs(t, err, ErrFenced)
}

func TestStop(t *testing.T) {
	for name, c := range map[string]struct {
		at    stageAt
		force bool
		kind  string
		state State
	}{
		"nobody had begun":      {queued, false, "closed", Failed},
		"in an attempt":         {claimed, false, "cleanup", Running},
		"between two stages":    {between, false, "cleanup", Running},
		"in its cleanup":        {cleaning, false, "stale", Running},
		"over":                  {succeeded, false, "stale", Succeeded},
		"forced in an attempt":  {claimed, true, "closed", Failed},
		"forced in its cleanup": {cleaning, true, "closed", Failed},
		"forced when over":      {succeeded, true, "stale", Succeeded},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			r := c.at(b)
			n, err := b.Stop(ctx, r, 0, Failed, "node lost", c.force)
			require.NoError(t, err)
			require.Equal(t, c.kind, n.Kind)
			after := b.reload(r)
			require.Equal(t, c.state, after.State)
			if c.state.Over() {
				require.Empty(t, b.locked())
			}
			if c.kind == "closed" {
				require.NotEmpty(t, after.Error)
				require.Greater(t, after.Fence, r.Fence, "who still runs may touch nothing")
				require.Greater(t, after.Generation, r.Generation)
				for _, a := range after.Attempts {
					require.NotNil(t, a.Ended)
				}
			}
		})
	}
}

func TestStopKeepsWhatWasGood(t *testing.T) {
	b := newBench(t)
	r := between(b)
	_, err := b.Stop(ctx, r, 0, Failed, "no time left", false)
	require.NoError(t, err)
	require.Equal(t, Good, *b.reload(r).Attempts[0].Outcome)
	require.Nil(t, b.reload(r).Attempts[0].Error)
}

func TestForcedStopKeepsWhyTheRunWasEnding(t *testing.T) {
	b := newBench(t)
	r := cleaning(b)
	_, err := b.Stop(ctx, r, 0, Cancelled, "node lost", true)
	require.NoError(t, err)
	r = b.reload(r)
	require.Equal(t, Failed, r.State)
	require.Equal(t, "disk full; node lost", r.Error)
}

func TestCommitClosesTheDoor(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.NoError(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, false))
	require.False(t, b.reload(r).Committed)
	require.NoError(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, true))
	reply, err := b.Cancel(ctx, r)
	require.NoError(t, err)
	require.Equal(t, CancelLate, reply)
	require.NoError(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, nil, nil, nil))
	require.Equal(t, Succeeded, b.advance(r, "").State)
}

// Cancel and commit race: exactly one of them wins, whoever it is.
func TestCancelRacesCommit(t *testing.T) {
	b := newBench(t)
	for range 30 {
		r := claimed(b)
		committed := make(chan error, 1)
		go func() { committed <- b.Holds(ctx, r.ID, r.Hold(), r.Epoch, true) }()
		reply, err := b.Cancel(ctx, r)
		require.NoError(t, err)
		err = <-committed
		switch reply {
		case CancelLate:
			require.NoError(t, err)
		case CancelAsked:
			require.ErrorIs(t, err, ErrCancel)
		default:
			t.Fatalf("cancel said %q", reply)
		}
		b.finish(r)
	}
}

// Cancel and claim race: either nobody begins, or the attempt is told.
func TestCancelRacesClaim(t *testing.T) {
	b := newBench(t)
	for range 30 {
		r := b.begin()
		claims := make(chan Claim, 1)
		go func() {
			c, _ := b.Claim(ctx, r.ID, Prepare, 1, "host1", "token234", time.Hour)
			claims <- c
		}()
		reply, err := b.Cancel(ctx, r)
		require.NoError(t, err)
		if c := <-claims; c.Kind == "ok" {
			require.Equal(t, CancelAsked, reply)
			require.ErrorIs(t, b.Progress(ctx, r.ID, c.Hold, r.Epoch, nil, nil, nil), ErrCancel)
		} else {
			require.Equal(t, "stale", c.Kind)
			require.Equal(t, CancelClosed, reply)
		}
		require.Equal(t, Cancelled, b.finish(r).State)
	}
}
