package schedule

import (
	"context"
	"fmt"
	"testing"
	"time"

	"catalog-backup/shared/lab"

	"github.com/stretchr/testify/require"
)

var ctx = context.Background()

// table is a Redis and a time that the test sets.
type table struct {
	*Store
	t   *testing.T
	now time.Time
	srv *lab.RedisServer
}

func newTable(t *testing.T) *table {
	x := &table{t: t, now: at(t, "2026-11-23T12:00:00Z"), srv: lab.Redis(t)}
	rdb := x.srv.Client()
	t.Cleanup(func() { _ = rdb.Close() })
	x.Store = NewStore(rdb, "catalog", func() time.Time { return x.now })
	return x
}

func (x *table) note(tick time.Time, r Result) bool {
	x.t.Helper()
	noted, err := x.Note(ctx, "nightly", Tick{At: tick, Result: r})
	require.NoError(x.t, err)
	return noted
}

func TestAResultIsReplacedByALaterOneOnly(t *testing.T) {
	x := newTable(t)
	tick := x.now
	require.True(t, x.note(tick, Missed), "another scheduler was late")
	require.True(t, x.note(tick, Enqueued), "and this one was not")
	require.False(t, x.note(tick, Missed))
	require.False(t, x.note(tick, Paused))
	require.True(t, x.note(tick, Waiting))
	require.False(t, x.note(tick, Enqueued), "said late")
	run := "20261123t184702z-abcdefgh"
	noted, err := x.Note(ctx, "nightly", Tick{At: tick.In(time.FixedZone("x", 3600)), Result: Opened, Run: &run})
	require.NoError(t, err)
	require.True(t, noted)
	for _, r := range []Result{Missed, Enqueued, Waiting, Skipped, Failed, Opened} {
		require.False(t, x.note(tick, r), r)
	}
	got, _, err := x.Tick(ctx, "nightly", tick)
	require.NoError(t, err)
	require.Equal(t, Tick{At: tick, Result: Opened, Run: &run, Noted: x.now}, got)
	_, ok, err := x.Tick(ctx, "nightly", tick.Add(time.Minute))
	require.NoError(t, err)
	require.False(t, ok)
}

func TestOnlyTheLatestTicksAreKept(t *testing.T) {
	x := newTable(t)
	for i := range keepTicks + 20 {
		x.note(x.now.Add(time.Duration(i)*time.Minute), Opened)
	}
	all, err := x.Recent(ctx, "nightly", 1000)
	require.NoError(t, err)
	require.Len(t, all, keepTicks)
	require.Equal(t, x.now.Add((keepTicks+19)*time.Minute), all[0].At)
	two, err := x.Recent(ctx, "nightly", 2)
	require.NoError(t, err)
	require.Equal(t, all[:2], two)
}

func TestSeen(t *testing.T) {
	x := newTable(t)
	p := plans(t, `schedules: [{name: nightly, cron: "30 2 * * *"}]`)[0]
	seen, err := x.Seen(ctx, p)
	require.NoError(t, err)
	require.Equal(t, x.now, seen, "a new plan begins now")
	x.now = x.now.Add(24 * time.Hour)
	again, err := x.Seen(ctx, p)
	require.NoError(t, err)
	require.Equal(t, seen, again)
	require.NoError(t, x.Advance(ctx, p, seen, x.now))
	require.NoError(t, x.Advance(ctx, p, seen, x.now.Add(-time.Hour)), "another scheduler was faster")
	again, err = x.Seen(ctx, p)
	require.NoError(t, err)
	require.Equal(t, x.now, again)
	changed := plans(t, `schedules: [{name: nightly, cron: "30 11 * * *"}]`)[0]
	x.now = x.now.Add(time.Hour)
	begin, err := x.Seen(ctx, changed)
	require.NoError(t, err)
	require.Equal(t, x.now, begin, "a plan with other times begins anew: what it would have done before is not made up for")
	again, err = x.Seen(ctx, p)
	require.NoError(t, err)
	require.NotEqual(t, x.now, again, "and a scheduler with the old file is not disturbed")
}

// How far a plan is ends when no live scheduler has it, if all say what they have.
func TestSeenEndsWithThePlan(t *testing.T) {
	x := newTable(t)
	all := plans(t, `schedules: [{name: nightly, cron: "30 2 * * *"}, {name: check, cron: "@weekly"}]`)
	began := x.now
	for _, p := range all {
		_, err := x.Seen(ctx, p)
		require.NoError(t, err)
	}
	begins := func() (out []bool) {
		x.now = x.now.Add(time.Hour)
		for _, p := range all {
			seen, err := x.Seen(ctx, p)
			require.NoError(t, err)
			out = append(out, seen.After(began))
		}
		return out
	}
	require.NoError(t, x.rdb.SAdd(ctx, x.key("schedulers"), "old").Err())
	for _, unknown := range []string{`{"id":"old"}`, `{"id":"old","times":null}`, "damaged"} {
		require.NoError(t, x.rdb.Set(ctx, x.key("scheduler", "old"), unknown, 0).Err())
		require.NoError(t, x.SignIn(ctx, Scheduler{ID: "a"}, all[:1]))
		require.Equal(t, []bool{false, false}, begins(), "a scheduler that does not say what it has: %s", unknown)
	}
	require.NoError(t, x.SignIn(ctx, Scheduler{ID: "old"}, all[1:]))
	require.NoError(t, x.SignIn(ctx, Scheduler{ID: "a"}, all[:1]))
	require.Equal(t, []bool{false, false}, begins(), "another scheduler has it")
	require.NoError(t, x.SignOut(ctx, "old"))
	require.Equal(t, []bool{false, false}, begins(), "nobody looked")
	require.NoError(t, x.SignIn(ctx, Scheduler{ID: "a"}, all[:1]))
	require.Equal(t, []bool{false, true}, begins())
	require.NoError(t, x.SignIn(ctx, Scheduler{ID: "a"}, nil))
	require.Equal(t, []bool{true, true}, begins())
}

func TestPauseAndResume(t *testing.T) {
	x := newTable(t)
	was, err := x.Resume(ctx, "nightly")
	require.NoError(t, err)
	require.Nil(t, was)
	begin := x.now
	p, err := x.Pause(ctx, "nightly", "root@host")
	require.NoError(t, err)
	require.Equal(t, Pause{By: "root@host", At: begin}, p)
	x.now = x.now.Add(time.Hour)
	p, err = x.Pause(ctx, "nightly", "other@host")
	require.NoError(t, err)
	require.Equal(t, "root@host", p.By, "the first pause holds")
	is, err := x.PausedAt(ctx, "nightly")
	require.NoError(t, err)
	require.True(t, is(x.now))
	was, err = x.Resume(ctx, "nightly")
	require.NoError(t, err)
	require.Equal(t, &p, was)
	is, err = x.PausedAt(ctx, "nightly")
	require.NoError(t, err)
	require.False(t, is(begin), "a tick before the pause")
	require.True(t, is(begin.Add(time.Minute)), "a tick of the pause, seen late")
	require.False(t, is(x.now.Add(time.Minute)))
	is, err = x.PausedAt(ctx, "another")
	require.NoError(t, err)
	require.False(t, is(begin.Add(time.Minute)))
}

func TestPresenceEnds(t *testing.T) {
	x := newTable(t)
	for i := range 2 {
		require.NoError(t, x.SignIn(ctx, Scheduler{ID: fmt.Sprint("s", i), Host: "h", PID: 7, Version: "1", Started: x.now}, nil))
	}
	live, err := x.Schedulers(ctx)
	require.NoError(t, err)
	require.Len(t, live, 2)
	require.Equal(t, Scheduler{ID: "s0", Host: "h", PID: 7, Version: "1", Started: x.now}, live[0])
	left, err := x.rdb.PTTL(ctx, x.key("scheduler", "s0")).Result()
	require.NoError(t, err)
	require.LessOrEqual(t, left, PresenceTTL)
	require.Positive(t, left)
	require.NoError(t, x.rdb.Del(ctx, x.key("scheduler", "s0")).Err(), "as its end does")
	require.NoError(t, x.SignOut(ctx, "s1"))
	live, err = x.Schedulers(ctx)
	require.NoError(t, err)
	require.Empty(t, live)
}

func TestStandings(t *testing.T) {
	x := newTable(t)
	all := plans(t, `schedules: [{name: nightly, cron: "30 2 * * *"}, {name: check, cron: "@weekly", job: verify}]`)
	x.note(x.now.Add(-time.Hour), Opened)
	x.note(x.now.Add(-time.Minute), Skipped)
	_, err := x.Pause(ctx, "check", "me")
	require.NoError(t, err)
	got, err := x.Standings(ctx, all, 5)
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.Equal(t, Skipped, got[0].Last.Result)
	require.Nil(t, got[0].Paused)
	require.Len(t, got[0].Next, 5)
	require.Nil(t, got[1].Last)
	require.Equal(t, "me", got[1].Paused.By)
}

func TestDamagedRecordsAreErrors(t *testing.T) {
	x := newTable(t)
	require.NoError(t, x.rdb.HSet(ctx, x.key("ticks", "nightly"), stamp(x.now), "4{").Err())
	_, err := x.Recent(ctx, "nightly", 1)
	require.ErrorContains(t, err, "read the tick 2026-11-23T12:00:00Z of plan nightly")
	_, _, err = x.Tick(ctx, "nightly", x.now)
	require.ErrorContains(t, err, "read the tick")
	require.NoError(t, x.rdb.HSet(ctx, x.key("ticks", "nightly"), stamp(x.now), "").Err())
	_, _, err = x.Tick(ctx, "nightly", x.now)
	require.ErrorContains(t, err, "it is damaged")
}
