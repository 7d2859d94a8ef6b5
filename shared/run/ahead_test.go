package run

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The clock of Redis was ahead, and is set back: what was written meanwhile lies in the future.

var aheads = []time.Duration{23 * time.Hour, 370 * 24 * time.Hour}

// No limit and no wait is reckoned from a time to come.
func TestTimesOfAClockThatWasAhead(t *testing.T) {
	for _, off := range aheads {
		b := newBench(t)
		truth := b.clock
		b.clock = truth.Add(off)
		r := b.claim(b.begin())
		_, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Budget: 3, Wait: 10 * time.Minute})
		require.NoError(t, err)
		require.Equal(t, b.clock.Add(10*time.Minute), *b.reload(r).NotBefore, "a wait is one while the clock is right")
		b.clock = truth
		r = b.reload(r)
		require.Nil(t, r.NotBefore, "or nobody began the stage until then")
		require.Contains(t, r.Odd[0], "not_before: ")
		r = b.claim(r)
		require.Equal(t, truth, r.Created)
		require.Equal(t, truth, *r.Started)
		require.Equal(t, truth.Add(6*time.Hour), *r.Deadline)

		require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), "cancel_since", stamp(truth.Add(off))).Err())
		for range 2 {
			require.Equal(t, CancelAsked, must(b.Cancel(ctx, r)))
			require.Equal(t, truth, *b.reload(r).CancelSince, "of who asks twice, too")
			b.clock = b.clock.Add(time.Second)
		}
		must(b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false))
		require.Equal(t, b.clock, *b.reload(r).EndingSince)
		b.cleanUp(r, false)
		r = b.reload(r)
		require.Equal(t, Cancelled, r.State)
		if off < 24*time.Hour {
			inOrder(t, r)
		}
		require.NoError(t, b.rdb.FlushDB(ctx).Err())
	}
}

// wrongly makes a key as odd hands, or a clock that was ahead, leave it.
func (b *bench) wrongly(key, how, text string) {
	b.t.Helper()
	require.NoError(b.t, b.rdb.Del(ctx, key).Err())
	switch how {
	case "another type":
		require.NoError(b.t, b.rdb.RPush(ctx, key, text).Err())
	case "for ever":
		require.NoError(b.t, b.rdb.Set(ctx, key, text, 0).Err())
	default: // Redis keeps the moment at which a key ends
		require.NoError(b.t, b.rdb.Set(ctx, key, text, time.Hour).Err())
	}
}

var wrongs = []string{"another type", "for ever", "by a clock that was ahead"}

func TestNobodyLeadsForLongerThanItKeepsTheLead(t *testing.T) {
	for _, how := range wrongs {
		b := newBench(t)
		b.wrongly(leaderKey(b.instance), how, "dead")
		const ttl = 200 * time.Millisecond
		require.Equal(t, how == "another type", must(b.Lead(ctx, b.instance, "w1", ttl)), how)
		require.Eventually(t, func() bool { return must(b.Lead(ctx, b.instance, "w1", ttl)) }, 5*time.Second, 20*time.Millisecond, how)
		require.True(t, must(b.Lead(ctx, b.instance, "w1", time.Hour)))
		require.False(t, must(b.Lead(ctx, b.instance, "w2", time.Hour)))
		require.True(t, must(b.Lead(ctx, b.instance, "w1", time.Hour)), "it keeps the lead")
		require.NoError(t, b.SignOut(ctx, b.instance, "w1"))
		require.True(t, must(b.Lead(ctx, b.instance, "w2", ttl)))
		require.NoError(t, b.rdb.FlushDB(ctx).Err())
	}
}

// A dead worker counts as live for no longer than any other, and keeps nobody from signing in.
func TestSignsOfDeadWorkersEnd(t *testing.T) {
	const dead = `{"id":"dead","node":"n","joined":5}`
	for _, how := range wrongs {
		b := newBench(t)
		b.Store = b.real()
		require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "dead", Node: "n"}))
		key := workerKey(b.instance, "dead")
		b.wrongly(key, how, dead)
		require.Zero(t, must(b.Surveys(ctx))[0].Workers, how)
		_, err := b.Join(ctx, b.instance, Worker{ID: "w1", Node: "n"})
		require.NoError(t, err, how)
		b.wrongly(key, how, dead)
		live := must(b.Workers(ctx, b.instance))
		left := must(b.Sign(ctx, b.instance, "dead"))
		if how == "another type" {
			require.Len(t, live, 1)
			require.Zero(t, left)
		} else {
			require.Len(t, live, 2)
			require.InDelta(t, presenceTTL, b.rdb.PTTL(ctx, key).Val(), float64(5*time.Second), how)
			require.Equal(t, 2, must(b.Surveys(ctx))[0].Workers)
			b.wrongly(key, how, dead)
			require.Equal(t, presenceTTL, must(b.Sign(ctx, b.instance, "dead")), how)
			require.InDelta(t, presenceTTL, b.rdb.PTTL(ctx, key).Val(), float64(5*time.Second), how)
		}
		require.NoError(t, b.rdb.FlushDB(ctx).Err())
	}
	b := newBench(t)
	b.wrongly(workersKey(b.instance), "another type", "x")
	require.Empty(t, must(b.Workers(ctx, b.instance)))
	b.wrongly(workersKey(b.instance), "another type", "x")
	_, err := b.Join(ctx, b.instance, Worker{ID: "w1", Node: "n"})
	require.NoError(t, err)
	require.Len(t, must(b.Workers(ctx, b.instance)), 1)
}

// A node that is gone is lost some time, also where its last sign is to come.
func TestTheLastSignOfANodeAges(t *testing.T) {
	b := newBench(t)
	truth := b.clock
	b.clock = truth.Add(370 * 24 * time.Hour)
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w1", Node: "n"}))
	require.Equal(t, b.clock, must(b.NodeSeen(ctx, b.instance, "n")))
	b.clock = truth
	for range 3 {
		require.Equal(t, truth, must(b.NodeSeen(ctx, b.instance, "n")), "a live one signs again; it is not lost at once")
		b.clock = b.clock.Add(time.Hour)
	}
	require.NoError(t, b.rdb.HSet(ctx, nodesKey(b.instance), "n", "yesterday").Err())
	require.Zero(t, must(b.NodeSeen(ctx, b.instance, "n")))
	require.Zero(t, must(b.NodeSeen(ctx, b.instance, "another")))
}
