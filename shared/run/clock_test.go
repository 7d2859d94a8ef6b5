package run

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// moments are of every kind of year, with microseconds.
func moments() []time.Time {
	random := rand.New(rand.NewPCG(3, 4))
	out := []time.Time{time.Unix(0, 0), time.Unix(86399, 999999e3), time.Date(2028, 2, 29, 23, 59, 59, 999999e3, time.UTC),
		time.Date(2100, 2, 28, 23, 59, 59, 1e3, time.UTC), time.Date(2000, 2, 29, 0, 0, 0, 0, time.UTC), time.Date(2399, 12, 31, 23, 59, 59, 999e6, time.UTC)}
	for year := 1970; year < 2110; year++ {
		out = append(out, time.Date(year, 3, 1, 0, 0, 0, 0, time.UTC).Add(-time.Microsecond), time.Date(year+1, 1, 1, 0, 0, 0, 0, time.UTC).Add(-time.Microsecond))
	}
	for range 200 {
		out = append(out, time.Unix(random.Int64N(400*365*86400), random.Int64N(1e6)*1e3))
	}
	return out
}

func TestScriptsWriteTimesAsGoReadsThem(t *testing.T) {
	rdb := server.Client()
	defer func() { _ = rdb.Close() }()
	sc := redis.NewScript(clock + `
local out = {}
for i = 1, #ARGV, 3 do
  local t = written(tonumber(ARGV[i]), tonumber(ARGV[i + 1]))
  out[#out + 1] = t
  out[#out + 1] = later(t, ARGV[i + 2])
end
return out`)
	const wait = 90061001 // a day, an hour, a minute, a second and a millisecond
	args := []any{}
	all := moments()
	for _, m := range all {
		args = append(args, m.Unix(), m.Nanosecond()/1e3, wait)
	}
	got, err := sc.Run(ctx, rdb, nil, args...).StringSlice()
	require.NoError(t, err)
	for i, m := range all {
		at, err := time.Parse(time.RFC3339Nano, got[2*i]) // as every earlier version reads it
		require.NoError(t, err)
		require.True(t, at.Equal(m), "%s is not %s", got[2*i], stamp(m))
		then, err := time.Parse(time.RFC3339Nano, got[2*i+1])
		require.NoError(t, err)
		require.WithinDuration(t, m.Add(wait*time.Millisecond), then, time.Millisecond, got[2*i+1])
	}
}

func TestTimesThatAreNone(t *testing.T) {
	rdb := server.Client()
	defer func() { _ = rdb.Close() }()
	sc := redis.NewScript(clock + `return seconds(ARGV[1]) and 'some' or 'none'`)
	for _, odd := range []string{"", "2026-13-01T00:00:00Z", "2026-01-01T00:00:1.2.3Z", "2026-01-01T00:00:00.1.2Z", "99999-01-01T00:00:00Z", "2026-00-10T00:00:00Z", "2026-01-01T24:00:00Z"} {
		got, err := sc.Run(ctx, rdb, nil, odd).Text()
		require.NoError(t, err, odd)
		require.Equal(t, "none", got, odd)
	}
}

// real is a store as the programs have it: the time is Redis's.
func (b *bench) real() *Store { return NewStore(b.rdb, nil, time.Hour) }

// inOrder are the times of a record that may never go back.
func inOrder(t *testing.T, r Record) {
	t.Helper()
	last := r.Created
	see := func(what string, at *time.Time) {
		if at != nil {
			require.False(t, at.Before(last), "%s %s is before %s", what, at, last)
			last = *at
		}
	}
	see("started", r.Started)
	for i := range r.Attempts {
		see("an attempt began", &r.Attempts[i].Started)
		see("an attempt ended", r.Attempts[i].Ended)
	}
	see("ended", r.Ended)
	see("updated", &r.Updated)
}

// Hosts whose clocks are an hour apart write one record: an earlier version by its own
// clock, and this one by that of Redis.
func TestClocksAnHourApart(t *testing.T) {
	for name, off := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			truth, err := b.real().Time(ctx)
			require.NoError(t, err)
			b.clock = truth.Add(off) // of the host that writes by its own
			r := b.claim(b.begin())
			_, err = b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Budget: 3})
			require.NoError(t, err)

			own := b.Store
			b.Store = b.real()
			r = b.claim(r)
			require.WithinDuration(t, truth.Add(min(0, off)+6*time.Hour), *r.Deadline, time.Minute, "no host's clock lengthens a run")
			_, err = b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Budget: 3, Wait: 10 * time.Second})
			require.NoError(t, err)
			r = b.reload(r)
			require.WithinDuration(t, truth.Add(10*time.Second), *r.NotBefore, 8*time.Second, "a wait is reckoned from the true time")
			b.Store = own
			r = b.claim(r)
			b.Store = b.real()
			r = b.advance(r, "")
			inOrder(t, r)
		})
	}
}

func TestProgramsTakeTheTimeOfRedis(t *testing.T) {
	b := newBench(t)
	b.Store = b.real()
	before, err := b.rdb.Time(ctx).Result()
	require.NoError(t, err)
	r := b.claim(b.begin())
	_, err = b.Cancel(ctx, r)
	require.NoError(t, err)
	_, err = b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false)
	require.NoError(t, err)
	b.cleanUp(r, false)
	after, err := b.rdb.Time(ctx).Result()
	require.NoError(t, err)
	r = b.reload(r)
	inOrder(t, r)
	for _, at := range []*time.Time{&r.Created, r.Started, r.CancelSince, r.EndingSince, r.Ended} {
		require.False(t, at.Before(before) || at.After(after), "%s is not within %s and %s", at, before, after)
	}
	require.Equal(t, 6*time.Hour, r.Deadline.Sub(*r.Started).Round(time.Second))
}

// A time in the far future in the record is none to follow: what came after it would last for ever.
func TestAbsurdTimesAreNotFollowed(t *testing.T) {
	b := newBench(t)
	r := b.claim(b.begin())
	require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), "updated", "9999-01-01T00:00:00Z", "deadline", "9999-01-01T00:00:00Z").Err())
	_, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Budget: 3})
	require.NoError(t, err)
	r = b.claim(r)
	require.Equal(t, b.clock.Add(6*time.Hour), *r.Deadline)
	require.Equal(t, b.clock, r.Updated)
}

func TestWhoAsksTwiceToCancelDoesNotWaitLonger(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	first := b.clock
	for range 2 {
		_, err := b.Cancel(ctx, r)
		require.NoError(t, err)
		b.clock = b.clock.Add(time.Minute)
	}
	require.Equal(t, first, *b.reload(r).CancelSince)
}
