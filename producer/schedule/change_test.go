package schedule

import (
	"fmt"
	"math/rand"
	"testing"
	"time"

	"catalog-backup/shared/schedule"

	"github.com/stretchr/testify/require"
)

// one is a file with one plan that is due each day at a time.
func one(cron, more string) string {
	return fmt.Sprintf("schedules: [{name: nightly, cron: %q, catch_up: 720h%s}]\n", cron, more)
}

const (
	half = "30 1 * * *"
	late = "0 4 * * *"
)

// A plan that was changed and changed back, or taken out and written again, begins
// when it comes back: what it would have done meanwhile is not made up for.
func TestAPlanThatComesBackBeginsThen(t *testing.T) {
	for name, meanwhile := range map[string]string{
		"another time": one(late, ""),
		"another zone": one(half, ", timezone: America/New_York"),
		"no plan":      "",
		"another name": "schedules: [{name: other, cron: '30 4 * * *'}]\n",
	} {
		t.Run(name+", reloaded", func(t *testing.T) {
			y := newYard(t, "2026-11-23T00:50:00Z", one(half, ""))
			h := y.scheduler("a").run()
			defer h.end()
			y.write(meanwhile)
			y.at("2026-11-23T01:00:00Z", 1)
			y.write(one(half, ""))
			y.at("2026-11-23T02:00:00Z", 1)
			y.at("2026-11-23T02:10:00Z", 1)
			require.Empty(t, y.enqueued())
			y.at("2026-11-24T01:30:00Z", 1)
			require.Equal(t, []string{"nightly 2026-11-24T01:30:00Z"}, y.enqueued())
		})
		t.Run(name+", restarted", func(t *testing.T) {
			y := newYard(t, "2026-11-23T00:50:00Z", one(half, ""))
			for i, text := range []string{one(half, ""), meanwhile, one(half, "")} {
				y.write(text)
				y.clock.set(y.clock.Now().Add(30 * time.Minute))
				h := y.scheduler("a").run()
				h.end()
				require.NoError(t, y.store.SignOut(ctx, "a"))
				require.Empty(t, y.enqueued(), i)
			}
		})
	}
}

// The same within the time between two signs of life.
func TestAPlanThatComesBackAtOnce(t *testing.T) {
	y := newYard(t, "2026-11-23T01:29:58Z", one(half, ""))
	h := y.scheduler("a").run()
	defer h.end()
	for _, step := range [][2]string{{"2026-11-23T01:29:59Z", one(late, "")}, {"2026-11-23T01:30:01Z", one(half, "")}} {
		y.at(step[0], 1)
		y.write(step[1])
		h.Reload()
		y.asleep(1)
	}
	y.at("2026-11-23T01:30:02Z", 1)
	require.Empty(t, y.enqueued())
}

// What was in force all along is caught up, whatever changed beside its times.
func TestWhatStaysInForceIsCaughtUp(t *testing.T) {
	y := newYard(t, "2026-11-23T00:50:00Z", one(half, ""))
	h := y.scheduler("a").run()
	y.write(one(half, ", overlap: queue") + "schedule.catch_up: 30m\n")
	y.at("2026-11-23T01:00:00Z", 1)
	h.end()
	require.NoError(t, y.store.SignOut(ctx, "a"))
	y.at("2026-11-23T03:00:00Z", 0)
	defer y.scheduler("b").run().end()
	require.Equal(t, []string{"nightly 2026-11-23T01:30:00Z"}, y.enqueued())
	y.write(one(half, ", overlap: skip"))
	y.at("2026-11-23T03:10:00Z", 1)
	require.Len(t, y.enqueued(), 1, "a tick that was dealt with is not dealt with again")
}

// Two schedulers with different files each keep their plan; what only one has ends
// when that one leaves it.
func TestTwoSchedulersWithDifferentFiles(t *testing.T) {
	y := newYard(t, "2026-11-23T00:50:00Z", one(late, ""))
	b := y.scheduler("b")
	fixed, err := y.read()
	require.NoError(t, err)
	b.p.Read = func() ([]byte, error) { return fixed, nil }
	y.write(one(half, ""))
	defer b.run().end()
	defer y.scheduler("a").run().end()
	y.at("2026-11-23T01:20:00Z", 2)
	y.at("2026-11-23T01:30:00Z", 2)
	y.at("2026-11-23T04:00:00Z", 2)
	require.Equal(t, []string{"nightly 2026-11-23T01:30:00Z", "nightly 2026-11-23T04:00:00Z"}, y.enqueued())
	y.write("")
	y.at("2026-11-24T00:00:00Z", 2)
	y.write(one(half, ""))
	y.at("2026-11-24T02:00:00Z", 2)
	y.at("2026-11-24T04:00:00Z", 2)
	require.Equal(t, []string{"nightly 2026-11-23T01:30:00Z", "nightly 2026-11-23T04:00:00Z", "nightly 2026-11-24T04:00:00Z"}, y.enqueued())
}

// Files change at random, are reloaded or wait for a restart: a tick is enqueued if its
// plan was in force, by the last file that a scheduler took, since before the tick and
// without a break, and never otherwise.
func TestOnlyTicksOfPlansInForceWhateverChanges(t *testing.T) {
	for seed := range int64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { t.Parallel(); changedOften(t, rand.New(rand.NewSource(seed))) })
	}
}

func changedOften(t *testing.T, r *rand.Rand) {
	crons := []string{"", "*/7 * * * *", "*/10 * * * *", "30 * * * *"}
	text := func(cron string) string {
		if cron == "" {
			return ""
		}
		return one(cron, "")
	}
	y := newYard(t, "2026-11-23T00:00:00Z", text(crons[1]))
	h := y.scheduler("a").run()
	cron, since := crons[1], y.clock.Now() // what is in force, and since when
	want := map[string]bool{}
	for range 60 {
		next := cron
		if r.Intn(2) == 0 {
			next = crons[r.Intn(len(crons))]
		}
		y.write(text(next))
		to := y.clock.Now().Add(time.Duration(1+r.Intn(25)) * time.Minute)
		if r.Intn(3) == 0 {
			h.end()
			require.NoError(t, y.store.SignOut(ctx, "a"))
			y.clock.set(to)
			h = y.scheduler("a").run()
		} else {
			y.clock.set(to)
			y.asleep(1)
		}
		if next != cron {
			cron, since = next, to
		}
		if c, err := parse([]byte("instance: catalog\nredis: {address: 'unix:/r.sock'}\n" + text(cron))); cron != "" {
			require.NoError(t, err)
			ticks := schedule.Plans(c)[0].Ticks(since, to)
			if len(ticks) > 0 { // of several only the latest is caught up
				want[ticks[len(ticks)-1].Format(time.RFC3339)] = true
			}
			since = to
		}
	}
	h.end()
	got := map[string]bool{}
	for _, x := range y.tasks() {
		got[x.At.Format(time.RFC3339)] = true
	}
	require.Equal(t, want, got)
}
