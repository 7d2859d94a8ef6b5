package run

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stageAt says where the run stands when a transition is tried.
type stageAt func(b *bench) Record

var (
	queued  stageAt = func(b *bench) Record { return b.begin() }
	claimed stageAt = func(b *bench) Record { return b.claim(b.begin()) }
	between stageAt = func(b *bench) Record { return b.advance(b.claim(b.begin()), "postgres") }
	retried stageAt = func(b *bench) Record {
		r := claimed(b)
		_, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "no answer", Budget: 3, Wait: time.Minute})
		require.NoError(b.t, err)
		return b.reload(r)
	}
	committed stageAt = func(b *bench) Record {
		r := claimed(b)
		require.NoError(b.t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, true))
		return b.reload(r)
	}
	failing stageAt = func(b *bench) Record {
		r := claimed(b)
		n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "disk full", Budget: 9, Permanent: true})
		require.NoError(b.t, err)
		require.Equal(b.t, "cleanup", n.Kind)
		return b.reload(r)
	}
	cleaning  stageAt = func(b *bench) Record { return b.claim(failing(b)) }
	succeeded stageAt = func(b *bench) Record { return b.advance(claimed(b), "") }
	failed    stageAt = func(b *bench) Record {
		r := cleaning(b)
		require.NoError(b.t, b.Cleaned(ctx, r, r.Hold(), false))
		return b.reload(r)
	}
)

func TestCancelInEveryPhase(t *testing.T) {
	for name, c := range map[string]struct {
		at    stageAt
		reply string
		state State // right after
		end   State // after the worker did its part
	}{
		"queued":    {queued, CancelClosed, Cancelled, Cancelled},
		"claimed":   {claimed, CancelAsked, Running, Cancelled},
		"between":   {between, CancelAsked, Running, Cancelled},
		"retried":   {retried, CancelAsked, Running, Cancelled},
		"committed": {committed, CancelLate, Running, Succeeded},
		"failing":   {failing, CancelAsked, Running, Failed},
		"cleaning":  {cleaning, CancelAsked, Running, Failed},
		"succeeded": {succeeded, CancelOver, Succeeded, Succeeded},
		"failed":    {failed, CancelOver, Failed, Failed},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			r := c.at(b)
			reply, err := b.Cancel(ctx, r)
			require.NoError(t, err)
			require.Equal(t, c.reply, reply)
			before := r
			r = b.reload(r)
			require.Equal(t, c.state, r.State)
			if reply == CancelClosed {
				require.Greater(t, r.Fence, before.Fence)
				require.Greater(t, r.Generation, before.Generation, "the task in the queue does not count any more")
			}
			r = b.finish(r)
			require.Equal(t, c.end, r.State)
			require.Empty(t, b.locked())
			if c.end != Succeeded && c.reply != CancelClosed {
				require.Equal(t, 1, r.Cleanups)
			}
			reply, err = b.Cancel(ctx, r)
			require.NoError(t, err)
			require.Equal(t, CancelOver, reply)
		})
	}
}

// finish plays the worker until the run is over.
func (b *bench) finish(r Record) Record {
	b.t.Helper()
	for range 20 {
		r = b.reload(r)
		if r.State.Over() {
			return r
		}
		var err error
		switch {
		case r.Claimed != r.Generation:
			var c Claim
			if c, err = b.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", "token234", time.Hour); c.Kind == "cancel" {
				_, err = b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false)
			}
		case r.Stage == Cleanup:
			err = b.Cleaned(ctx, r, r.Hold(), false)
		default:
			if _, err = b.Advance(ctx, r, r.Stage, r.Hold(), "", "x"); errors.Is(err, ErrCancel) {
				_, err = b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false)
			}
		}
		require.NoError(b.t, err)
	}
	b.t.Fatalf("the run does not end: %+v", r)
	return r
}

func TestAttemptIsToldOfACancel(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	_, err := b.Cancel(ctx, r)
	require.NoError(t, err)
	require.ErrorIs(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, nil, nil, nil), ErrCancel)
	require.ErrorIs(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, true), ErrCancel)
	require.False(t, b.reload(r).Committed, "the commit is refused after a cancel")
	_, err = b.Advance(ctx, r, r.Stage, r.Hold(), "postgres", "x")
	require.ErrorIs(t, err, ErrCancel)
	n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Budget: 3})
	require.NoError(t, err)
	require.Equal(t, "cancel", n.Kind)
	require.Equal(t, 0, b.reload(r).Errors)
	n, err = b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false)
	require.NoError(t, err)
	require.Equal(t, "cleanup", n.Kind)
	r = b.reload(r)
	require.Equal(t, Running, r.State, "running until the cleanup is over")
	require.Equal(t, Cancelled, r.Ending)
	require.Equal(t, Stopped, *r.Attempts[0].Outcome)
}

func TestCleanupIsNotCancelled(t *testing.T) {
	b := newBench(t)
	r := cleaning(b)
	_, err := b.Cancel(ctx, r)
	require.NoError(t, err)
	require.NoError(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, nil, nil, nil))
	require.NoError(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, false))
	n, err := b.Stop(ctx, r, 0, Cancelled, "cancelled", false)
	require.NoError(t, err)
	require.Equal(t, "stale", n.Kind)
	require.NoError(t, b.Cleaned(ctx, r, r.Hold(), false))
	require.Equal(t, Failed, b.reload(r).State)
}

func TestOlderHolderMayTouchNothing(t *testing.T) {
	for name, c := range map[string]stageAt{
		"after a crash": func(b *bench) Record {
			old := claimed(b)
			_, err := b.Again(ctx, old, old.Stage, old.Generation, Retry{Kind: Crashed, Error: "died", Budget: 5})
			require.NoError(b.t, err)
			b.claim(old)
			return old
		},
		"after a failure": func(b *bench) Record { r := failing(b); r.Fence = r.Attempts[0].Fence; r.Stage = Prepare; return r },
		"after the end":   func(b *bench) Record { return succeeded(b) },
		"in cleanup":      func(b *bench) Record { r := cleaning(b); r.Fence--; return r },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			old := c(b)
			before := b.snapshot(old)
			one := int64(1)
			require.ErrorIs(t, b.Progress(ctx, old.ID, old.Hold(), old.Epoch, &one, &one, &one), ErrFenced)
			require.ErrorIs(t, b.Holds(ctx, old.ID, old.Hold(), old.Epoch, true), ErrFenced)
			require.ErrorIs(t, b.Note(ctx, old.ID, old.Hold(), Facts{Set: "x", Warnings: []string{"w"}}), ErrFenced)
			_, err := b.Advance(ctx, old, old.Stage, old.Hold(), "", "x")
			require.ErrorIs(t, err, ErrFenced)
			require.ErrorIs(t, b.Cleaned(ctx, old, old.Hold(), false), ErrFenced)
			require.Equal(t, before, b.snapshot(old))
		})
	}
}
