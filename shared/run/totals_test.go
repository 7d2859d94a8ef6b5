package run

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// surveyed is the survey of the test's own instance.
func (b *bench) surveyed() Survey {
	b.t.Helper()
	all, err := b.Surveys(ctx)
	require.NoError(b.t, err)
	for _, s := range all {
		if s.Instance == b.instance {
			return s
		}
	}
	b.t.Fatalf("no survey of %s", b.instance)
	return Survey{}
}

func (b *bench) totals() Totals {
	b.t.Helper()
	return b.surveyed().Totals
}

// counts are the classes of durations that are not the same as the one before.
func counts(d *Durations) map[float64]int64 {
	out, before := map[float64]int64{}, int64(0)
	for _, bound := range TookBounds {
		if d.Classes[bound] != before {
			out[bound] = d.Classes[bound]
		}
		before = d.Classes[bound]
	}
	return out
}

func TestTotalsOfARunWithEveryKindOfRetry(t *testing.T) {
	b := newBench(t)
	r := b.begin()
	for i, kind := range []Outcome{Erred, Erred, Interrupted, Crashed} {
		r = b.claim(r)
		b.clock = b.clock.Add(time.Duration(i+1) * 10 * time.Second)
		_, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: kind, Error: "why", Budget: 9})
		require.NoError(t, err)
		// The same report again, as a client sends it that got no answer, and an older one.
		n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: kind, Error: "why", Budget: 9})
		require.NoError(t, err)
		require.Equal(t, "stale", n.Kind)
	}
	for _, next := range []string{"postgres", "eventbus", "archive", ""} {
		r = b.claim(r)
		b.clock = b.clock.Add(1500 * time.Millisecond)
		before := r
		r = b.advance(r, next)
		_, err := b.Advance(ctx, before, before.Stage, before.Hold(), next, "")
		require.ErrorIs(t, err, ErrFenced)
	}
	got := b.totals()
	require.Equal(t, map[State]int64{Succeeded: 1}, got.Runs)
	require.Equal(t, map[Retried]int64{{Prepare, Erred}: 2, {Prepare, Interrupted}: 1, {Prepare, Crashed}: 1}, got.Retries)
	require.Len(t, got.Took, 7)
	require.Equal(t, Durations{2, 30 * time.Second, got.Took[Ended{Prepare, Erred}].Classes}, *got.Took[Ended{Prepare, Erred}])
	require.Equal(t, map[float64]int64{15: 1, 60: 2}, counts(got.Took[Ended{Prepare, Erred}]))
	require.Equal(t, map[float64]int64{60: 1}, counts(got.Took[Ended{Prepare, Crashed}]))
	for _, stage := range Stages {
		d := got.Took[Ended{stage, Good}]
		require.Equal(t, int64(1), d.Count, stage)
		require.Equal(t, 1500*time.Millisecond, d.Sum, stage)
		require.Equal(t, map[float64]int64{5: 1}, counts(d), stage)
	}
	require.Equal(t, Succeeded, got.Last)
	require.Equal(t, b.clock, got.LastEnd)
}

// Each way in which a run may end counts once, and so does its last attempt.
func TestTotalsOfEveryEnd(t *testing.T) {
	for name, c := range map[string]struct {
		play func(b *bench)
		runs map[State]int64
		took map[Ended]int64
	}{
		"no budget left": {func(b *bench) {
			r := claimed(b)
			n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Crashed, Error: "died", Budget: 0})
			require.NoError(b.t, err)
			require.Equal(b.t, "cleanup", n.Kind)
			require.Empty(b.t, b.totals().Runs, "not before the cleanup is over")
			b.cleanUp(r, false)
		}, map[State]int64{Failed: 1}, map[Ended]int64{{Prepare, Crashed}: 1, {Cleanup, Good}: 1}},
		"a cleanup that is tried again": {func(b *bench) {
			r := cleaning(b)
			_, err := b.Again(ctx, r, Cleanup, r.Generation, Retry{Kind: Erred, Error: "cannot remove", Budget: 0})
			require.NoError(b.t, err)
			b.cleanUp(r, false)
		}, map[State]int64{Failed: 1}, map[Ended]int64{{Prepare, Erred}: 1, {Cleanup, Erred}: 1, {Cleanup, Good}: 1}},
		"the cleanup found the set": {func(b *bench) { b.cleanUp(cleaning(b), true) },
			map[State]int64{Succeeded: 1}, map[Ended]int64{{Prepare, Erred}: 1, {Cleanup, Good}: 1}},
		"cancelled before anybody began": {func(b *bench) {
			r := b.begin()
			_, err := b.Cancel(ctx, r)
			require.NoError(b.t, err)
			_, err = b.Cancel(ctx, r)
			require.NoError(b.t, err)
		}, map[State]int64{Cancelled: 1}, map[Ended]int64{}},
		"cancelled in an attempt": {func(b *bench) {
			r := claimed(b)
			_, err := b.Cancel(ctx, r)
			require.NoError(b.t, err)
			_, err = b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false)
			require.NoError(b.t, err)
			b.cleanUp(r, false)
		}, map[State]int64{Cancelled: 1}, map[Ended]int64{{Prepare, Stopped}: 1, {Cleanup, Good}: 1}},
		"node lost in an attempt": {func(b *bench) {
			r := claimed(b)
			for range 2 {
				_, err := b.Stop(ctx, r, 0, Failed, "node lost", true)
				require.NoError(b.t, err)
			}
		}, map[State]int64{Failed: 1}, map[Ended]int64{{Prepare, Erred}: 1}},
		"node lost between two stages": {func(b *bench) {
			_, err := b.Stop(ctx, between(b), 0, Failed, "node lost", true)
			require.NoError(b.t, err)
		}, map[State]int64{Failed: 1}, map[Ended]int64{{Prepare, Good}: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c.play(b)
			got := b.totals()
			require.Equal(t, c.runs, got.Runs)
			took := map[Ended]int64{}
			for k, d := range got.Took {
				took[k] = d.Count
			}
			require.Equal(t, c.took, took)
		})
	}
}

// cleanUp brings a run that is in its cleanup to its end, reported twice.
func (b *bench) cleanUp(r Record, stands bool) {
	b.t.Helper()
	r = b.reload(r)
	if r.Claimed != r.Generation {
		r = b.claim(r)
	}
	require.NoError(b.t, b.Cleaned(ctx, r, r.Hold(), stands))
	require.ErrorIs(b.t, b.Cleaned(ctx, r, r.Hold(), stands), ErrFenced)
}

// The scripts compute with times as Go writes them, over every kind of year.
func TestScriptsReadTimesAsGoWritesThem(t *testing.T) {
	rdb := server.Client()
	defer func() { _ = rdb.Close() }()
	sc := redis.NewScript(clock + `local t = seconds(ARGV[1]); return t and string.format('%.3f', t - tonumber(ARGV[2])) or 'none'`)
	random := rand.New(rand.NewPCG(1, 2))
	moments := []time.Time{time.Unix(0, 0), time.Date(2028, 2, 29, 23, 59, 59, 999e6, time.UTC), time.Date(2100, 3, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2000, 2, 29, 0, 0, 0, 0, time.UTC), time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC)}
	for range 300 {
		moments = append(moments, time.Unix(random.Int64N(130*365*86400), random.Int64N(1e9)))
	}
	for _, m := range moments {
		got, err := sc.Run(ctx, rdb, nil, stamp(m), m.Unix()).Text()
		require.NoError(t, err)
		require.InDelta(t, float64(m.Nanosecond())/1e9, parseFloat(t, got), 0.002, stamp(m))
	}
	for _, odd := range []string{"", "yesterday", "2026-11-23T18:47:02+01:00"} {
		got, err := sc.Run(ctx, rdb, nil, odd, 0).Text()
		require.NoError(t, err)
		require.Equal(t, "none", got)
	}
}

func TestTotalsOfOtherVersions(t *testing.T) {
	got := parseTotals(map[string]string{"took:archive:good:120": "3", "took:archive:good:inf": "1", "took:archive:good:ms": "90000", "took:archive:good:60": "2",
		"runs:succeeded": "x", "runs:failed": "2", "strange": "7", "retries:postgres": "3", "last_ended": "never"})
	d := got.Took[Ended{"archive", Good}]
	require.Equal(t, int64(6), d.Count)
	require.Equal(t, map[float64]int64{60: 2, 300: 5}, counts(d), "a class that we do not have goes into the next wider one")
	require.Equal(t, map[State]int64{Failed: 2}, got.Runs)
	require.Empty(t, got.Retries)
	require.True(t, got.LastEnd.IsZero())
}

func TestSurvey(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	done, total := int64(3), int64(9)
	require.NoError(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, &done, &total, nil))
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w1", Node: "host1"}))
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w2", Node: "host1"}))
	in, err := b.SignedIn(ctx, b.instance, "w2")
	require.NoError(t, err)
	require.True(t, in)
	require.NoError(t, b.rdb.Del(ctx, workerKey(b.instance, "w2")).Err()) // its time is over
	in, err = b.SignedIn(ctx, b.instance, "w2")
	require.NoError(t, err)
	require.False(t, in)
	require.NoError(t, b.Publish(ctx, b.instance, Published{Node: "host1"}))
	s := b.surveyed()
	require.Equal(t, 1, s.Workers)
	require.Equal(t, r.ID, s.Open.ID)
	require.Equal(t, int64(3), *s.Open.BytesDone)
	require.Len(t, s.Published, 1)
	require.Empty(t, s.Unreadable)

	b.finish(r)
	require.Nil(t, b.surveyed().Open)
}

// What cannot be read is told, and hides nothing else.
func TestSurveyOfDamage(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w1", Node: "host1"}))
	require.NoError(t, b.rdb.HSet(ctx, setsKey(b.instance), "host1", "{", "host2", `{"node":"host2"}`).Err())
	require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), "attempt:1", "no JSON").Err())
	require.NoError(t, b.rdb.Set(ctx, totalsKey(b.instance), "a string", 0).Err())
	s := b.surveyed()
	require.Len(t, s.Unreadable, 3)
	require.Len(t, s.Published, 1)
	require.Equal(t, 1, s.Workers)
	require.NoError(t, b.rdb.Set(ctx, lockKey(b.instance), "../etc", 0).Err())
	require.Nil(t, b.surveyed().Open)
	require.NoError(t, b.rdb.Del(ctx, lockKey(b.instance), totalsKey(b.instance)).Err())
}

func TestTotalsThatCannotBeCountedHoldNothingUp(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.rdb.Set(ctx, totalsKey(b.instance), "a string", 0).Err())
	r := b.claim(retried(b))
	r = b.claim(b.advance(r, "postgres"))
	require.Equal(t, Succeeded, b.advance(r, "").State)
	require.Empty(t, b.locked())
	require.NoError(t, b.rdb.Del(ctx, totalsKey(b.instance)).Err())
}

func parseFloat(t *testing.T, s string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(s, 64)
	require.NoError(t, err)
	return f
}
