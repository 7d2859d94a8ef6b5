package schedule

import (
	"fmt"
	"math/rand"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/stretchr/testify/require"
)

const twoPlans = `schedules:
  - {name: nightly, cron: "30 2 * * *", timezone: Europe/Berlin}
  - {name: hourly, cron: "0 * * * *", job: verify}
`

func TestATickIsEnqueuedWhenItIsDue(t *testing.T) {
	y := newYard(t, "2026-11-23T00:10:00Z", twoPlans)
	h := y.scheduler("a").run()
	defer h.end()
	require.Equal(t, lookInterval, h.pause())
	require.Empty(t, y.enqueued())
	y.at("2026-11-23T00:59:58Z", 1)
	require.Equal(t, 2*time.Second, h.pause(), "it wakes when the next tick is due")
	require.Empty(t, y.enqueued())
	y.at("2026-11-23T01:00:00Z", 1)
	require.Equal(t, []string{"hourly 2026-11-23T01:00:00Z"}, y.enqueued())
	y.at("2026-11-23T01:30:02Z", 1)
	require.Equal(t, []string{"hourly 2026-11-23T01:00:00Z", "nightly 2026-11-23T01:30:00Z"}, y.enqueued())
	x := y.tasks()[1]
	require.Equal(t, task.Tick{Install: x.Install, Instance: "catalog", Plan: "nightly", At: x.At, Job: "backup", Type: "full", Overlap: "skip",
		Latest: time.Date(2026, 11, 23, 2, 30, 0, 0, time.UTC), Until: time.Date(2026, 11, 24, 1, 30, 0, 0, time.UTC)}, x)
	require.NotEmpty(t, x.Install)
	require.Equal(t, []string{"2026-11-23T01:30:00Z enqueued"}, y.results("nightly"))
	live, err := y.store.Schedulers(ctx)
	require.NoError(t, err)
	require.Len(t, live, 1)
	require.Equal(t, y.clock.Now(), h.Turned())
}

// Two schedulers, killed between any two commands to Redis, also with the answer
// lost, and started again, over weeks with a change of the clocks.
func TestEachTickIsEnqueuedOnceWhoeverIsKilled(t *testing.T) {
	for _, seed := range []int64{1, 2, 3} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { killedOften(t, rand.New(rand.NewSource(seed))) })
	}
}

func killedOften(t *testing.T, r *rand.Rand) {
	y := newYard(t, "2026-10-15T12:00:30Z", `schedules:
  - {name: nightly, cron: "30 2 * * *", timezone: Europe/Berlin}
  - {name: often, cron: "0 */3 * * *", timezone: America/New_York, job: verify}
  - {name: weekly, cron: "45 1 * * sun", timezone: America/New_York, overlap: queue}
`)
	begin := y.clock.Now()
	end := begin.AddDate(0, 0, 21)
	plans := y.scheduler("none").plans
	started, kills := 0, 0
	start := func() *hand {
		started++
		h := y.scheduler(fmt.Sprint("s", started))
		if r.Intn(2) == 0 {
			h.fate.arm(1+r.Intn(25), r.Intn(2) == 0)
		}
		return h.run()
	}
	var live []*hand
	for _, p := range plans { // the plans are known from the beginning
		_, err := y.store.Seen(ctx, p)
		require.NoError(t, err)
	}
	live = append(live, start(), start())
	for now := begin; now.Before(end); {
		next := end
		for _, p := range plans {
			if n := p.Next(now); n.Before(next) {
				next = n
			}
		}
		now = next.Add(time.Duration(r.Intn(50_000)) * time.Millisecond)
		for _, h := range live {
			if r.Intn(2) == 0 {
				h.fate.arm(1+r.Intn(25), r.Intn(2) == 0)
			}
		}
		y.clock.set(now)
		y.asleep(len(live))
		for settled := false; !settled; {
			live = slices.DeleteFunc(live, func(h *hand) bool {
				if h.fate.dead() {
					kills++
					h.end()
				}
				return h.fate.dead()
			})
			for _, h := range live {
				settled = settled || h.Turned().Equal(now)
			}
			for len(live) < 2 {
				live = append(live, start())
			}
		}
	}
	for _, h := range live {
		h.end()
	}
	got := sorted(y.enqueued())
	require.Equal(t, calendar(plans, begin, y.clock.Now()), got)
	require.Greater(t, kills, 30)
	t.Logf("%d ticks, %d schedulers, %d killed", len(got), started, kills)
}

// calendar are all ticks of the plans, as enqueued shows them.
func calendar(plans []schedule.Plan, from, to time.Time) []string {
	out := []string{}
	for _, p := range plans {
		for _, at := range p.Ticks(from, to) {
			out = append(out, p.Name+" "+at.UTC().Format(time.RFC3339))
		}
	}
	return sorted(out)
}

func TestWhatWasMissed(t *testing.T) {
	y := newYard(t, "2026-11-23T00:10:00Z", twoPlans)
	y.scheduler("a").run().end()
	y.clock.set(y.clock.Now()) // forget who slept
	h := y.scheduler("b")
	y.clock.set(time.Date(2026, 11, 23, 3, 20, 0, 0, time.UTC))
	h.run()
	require.Equal(t, []string{"hourly 2026-11-23T03:00:00Z"}, y.enqueued(), "within the window, the latest only")
	require.Equal(t, []string{"2026-11-23T03:00:00Z enqueued", "2026-11-23T02:00:00Z missed", "2026-11-23T01:00:00Z missed"}, y.results("hourly"))
	require.Equal(t, []string{"2026-11-23T01:30:00Z missed"}, y.results("nightly"))
	last, err := y.store.Recent(ctx, "nightly", 1)
	require.NoError(t, err)
	require.Equal(t, "it was noticed 1h50m0s late, after the catch-up window of 1h0m0s: no scheduler ran, or Redis was away", *last[0].Reason)
	h.end()

	h = y.scheduler("c")
	y.clock.set(time.Date(2027, 11, 23, 3, 20, 0, 0, time.UTC))
	began := time.Now()
	h.run()
	require.Less(t, time.Since(began), patience/3, "a year away")
	require.Len(t, y.results("hourly"), 3+keepMissed)
	require.Contains(t, y.log.String(), "at least 19 earlier ticks of the plan were missed")
	h.end()
	require.Len(t, y.enqueued(), 2)
}

func TestSeveralMissedInTheWindowAreOne(t *testing.T) {
	y := newYard(t, "2026-11-23T00:01:00Z", `schedules: [{name: often, cron: "*/10 * * * *", catch_up: 2h}]`)
	y.scheduler("a").run().end()
	h := y.scheduler("b")
	y.clock.set(time.Date(2026, 11, 23, 0, 35, 0, 0, time.UTC))
	h.run()
	defer h.end()
	require.Equal(t, []string{"often 2026-11-23T00:30:00Z"}, y.enqueued())
	list, err := y.store.Recent(ctx, "often", 10)
	require.NoError(t, err)
	require.Len(t, list, 3)
	require.Equal(t, schedule.Missed, list[1].Result)
	require.Contains(t, *list[1].Reason, "only the latest is caught up")
}

func TestTheClockIsSet(t *testing.T) {
	y := newYard(t, "2026-11-23T00:10:00Z", twoPlans)
	h := y.scheduler("a").run()
	defer h.end()
	y.at("2026-11-23T01:00:01Z", 1)
	y.at("2026-11-23T00:20:00Z", 1) // back
	require.Contains(t, y.log.String(), "the plan was looked at in the future")
	y.at("2026-11-23T01:00:02Z", 1)
	require.Equal(t, []string{"hourly 2026-11-23T01:00:00Z"}, y.enqueued(), "the hour that comes again is done already")
	y.at("2026-11-23T02:00:01Z", 1)
	require.Len(t, y.enqueued(), 3)

	y.at("2030-01-01T00:00:10Z", 1) // far ahead
	require.Contains(t, y.enqueued(), "hourly 2030-01-01T00:00:00Z")
	n := len(y.enqueued())
	y.at("2026-11-23T02:10:00Z", 1) // and back
	y.at("2026-11-23T03:00:01Z", 1)
	require.Len(t, y.enqueued(), n+1, "plans go on at once, not in 2030")
	require.Contains(t, y.enqueued(), "hourly 2026-11-23T03:00:00Z")
	require.Contains(t, y.results("hourly"), "2026-11-23T03:00:00Z enqueued")
}

func TestTheOtherSchedulersClockIsALittleAhead(t *testing.T) {
	y := newYard(t, "2026-11-23T00:10:00Z", twoPlans)
	h := y.scheduler("a").run()
	defer h.end()
	y.at("2026-11-23T01:00:01Z", 1)
	y.at("2026-11-23T00:59:50Z", 1)
	require.NotContains(t, y.log.String(), "in the future")
	y.at("2026-11-23T02:00:00Z", 1)
	require.Len(t, y.enqueued(), 3)
}

func TestRedisIsAwayAndComesBack(t *testing.T) {
	y := newYard(t, "2026-11-23T00:50:00Z", twoPlans)
	h := y.scheduler("a").run()
	defer h.end()
	require.NoError(t, y.redis.Kill9())
	y.at("2026-11-23T01:00:00Z", 1)
	require.Contains(t, y.log.String(), "could not look at the plans; trying on")
	require.NotEqual(t, y.clock.Now(), h.Turned())
	require.NoError(t, y.redis.Start())
	for deadline := time.Now().Add(patience); !strings.Contains(y.log.String(), "Redis answers again"); { // a connection of before may fail once
		require.True(t, time.Now().Before(deadline), "the scheduler does not catch up")
		y.at("2026-11-23T01:20:00Z", 1)
	}
	require.Equal(t, []string{"hourly 2026-11-23T01:00:00Z"}, y.enqueued())
}

func TestRedisIsEmptied(t *testing.T) {
	y := newYard(t, "2026-11-23T00:50:00Z", twoPlans)
	h := y.scheduler("a").run()
	defer h.end()
	_, err := y.store.Pause(ctx, "hourly", "me")
	require.NoError(t, err)
	y.at("2026-11-23T01:00:00Z", 1)
	require.Equal(t, []string{"2026-11-23T01:00:00Z paused"}, y.results("hourly"))
	require.NoError(t, y.redis.FlushAll())
	y.at("2026-11-23T01:05:00Z", 1)
	require.Contains(t, y.log.String(), "Redis was emptied or replaced: which plans were paused and what became of their ticks is forgotten; all plans begin from now")
	require.Empty(t, y.enqueued(), "from now, not from the ticks before")
	y.at("2026-11-23T02:00:00Z", 1)
	require.Equal(t, []string{"nightly 2026-11-23T01:30:00Z", "hourly 2026-11-23T02:00:00Z"}, y.enqueued())
	live, err := y.store.Schedulers(ctx)
	require.NoError(t, err)
	require.Len(t, live, 1, "it signed in again")
}

func TestPausedTicks(t *testing.T) {
	y := newYard(t, "2026-11-23T00:50:00Z", twoPlans)
	h := y.scheduler("a").run()
	_, err := y.store.Pause(ctx, "hourly", "me")
	require.NoError(t, err)
	y.at("2026-11-23T01:00:00Z", 1)
	h.end()
	y.at("2026-11-23T02:20:00Z", 0) // nobody is there
	_, err = y.store.Resume(ctx, "hourly")
	require.NoError(t, err)
	h = y.scheduler("b").run()
	defer h.end()
	require.Equal(t, []string{"2026-11-23T02:00:00Z paused", "2026-11-23T01:00:00Z paused"}, y.results("hourly"))
	require.Equal(t, []string{"nightly 2026-11-23T01:30:00Z"}, y.enqueued())
	y.at("2026-11-23T03:00:00Z", 1)
	require.Contains(t, y.enqueued(), "hourly 2026-11-23T03:00:00Z")
}

func TestAChangedFile(t *testing.T) {
	y := newYard(t, "2026-11-23T00:50:00Z", twoPlans)
	h := y.scheduler("a").run()
	defer h.end()
	y.write("schedules: [{name: often, cron: '*/10 * * * *'}, {name: hourly, cron: '55 * * * *'}]\n")
	y.at("2026-11-23T00:51:00Z", 1)
	require.Contains(t, y.log.String(), "the configuration was read again")
	y.at("2026-11-23T01:00:00Z", 1)
	require.Equal(t, []string{"hourly 2026-11-23T00:55:00Z", "often 2026-11-23T01:00:00Z"}, sorted(y.enqueued()), "the new times of a plan count from now on")

	for text, why := range map[string]string{
		"schedules: [{name: often, cron: '61 * * * *'}]\n": "the changed configuration is refused; the old plans go on",
		"nonsense: [\n":                "the changed configuration is refused; the old plans go on",
		"schedules: []\nredis.db: 3\n": "which takes a restart of the scheduler",
	} {
		y.write(text)
		y.log.Reset()
		y.at(y.clock.Now().Add(10*time.Second).Format(time.RFC3339), 1)
		require.Contains(t, y.log.String(), why)
		y.log.Reset()
		y.at(y.clock.Now().Add(10*time.Second).Format(time.RFC3339), 1)
		require.NotContains(t, y.log.String(), "level=error", "said once")
	}
	y.mu.Lock()
	y.text = ""
	y.mu.Unlock()
	y.at(y.clock.Now().Add(10*time.Second).Format(time.RFC3339), 1)
	require.Contains(t, y.log.String(), "the configuration cannot be read; the old plans go on")
	y.at("2026-11-23T01:10:00Z", 1)
	require.Contains(t, y.enqueued(), "often 2026-11-23T01:10:00Z")

	y.write("schedules: [{name: other, cron: '12 * * * *'}]\n")
	h.Reload() // as SIGHUP does
	y.asleep(1)
	y.at("2026-11-23T01:12:00Z", 1)
	require.Contains(t, y.enqueued(), "other 2026-11-23T01:12:00Z")
}

func sorted(s []string) []string { sort.Strings(s); return s }
