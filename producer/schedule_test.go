package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/stretchr/testify/require"
)

const twoPlans = `schedules:
  - {name: nightly, cron: "30 2 * * *", timezone: Europe/Berlin, type: incremental}
  - {name: check, cron: "0 5 * * sun", job: verify, overlap: queue, catch_up: 6h}
`

// plan writes plans into the configuration and returns the store of what they did.
func (s *site) plan(text string) *schedule.Store {
	s.t.Helper()
	s.configure("redis:\n  address: unix:" + s.redis.Addr + "\n" + text)
	return schedule.NewStore(s.rdb, "catalog", time.Now)
}

func TestScheduleList(t *testing.T) {
	s := newSite(t)
	require.Equal(t, "no plans: write some below schedules in "+s.config+", e.g. {name: nightly, cron: \"30 2 * * *\"}\n", s.do("schedule", "list").out)
	r := s.do("schedule", "list", "--json")
	require.Equal(t, said{0, "[]\n", r.err}, r)
	require.Contains(t, r.err, "note: no live scheduler serves instance catalog: nothing happens by itself until one starts (`producer schedule run`)")
	store := s.plan(twoPlans)
	why, id := "run 20261123t184702z-abcdefgh was active", "20261123t184702z-abcdefgh"
	tick := time.Date(2026, 11, 22, 1, 30, 0, 0, time.UTC)
	_, err := store.Note(context.Background(), "nightly", schedule.Tick{At: tick, Result: schedule.Skipped, Run: &id, Reason: &why})
	require.NoError(t, err)
	_, err = store.Pause(context.Background(), "check", "ann\x1b[31m@host")
	require.NoError(t, err)
	require.NoError(t, store.SignIn(context.Background(), schedule.Scheduler{ID: "s1"}, nil))
	r = s.do("schedule", "list")
	require.Equal(t, 0, r.code)
	require.Empty(t, r.err)
	for _, want := range []string{"nightly\n  when     30 2 * * *, Europe/Berlin\n  job      backup, incremental; catch-up 1h00m, overlap skip\n",
		"last     2026-11-22T01:30:00Z", "ago): skipped: " + why + "\n", "PAUSED   by ann\\u001b[31m@host at ", "job      verify; catch-up 6h00m, overlap queue", "last     none yet"} {
		require.Contains(t, r.out, want)
	}
	require.Equal(t, 10, strings.Count(r.out, ", in "), "five times each")

	r = s.do("schedule", "list", "--json")
	var all []planLine
	require.NoError(t, json.Unmarshal([]byte(r.out), &all))
	require.Len(t, all, 2)
	require.Equal(t, 1, all[0].Schedulers)
	require.Equal(t, int64(6*3600), all[1].CatchUp)
	require.Nil(t, all[1].Type)
	require.Equal(t, schedule.Skipped, all[0].Last.Result)
	require.Nil(t, all[0].RunState, "it opened none")
	require.Len(t, all[0].Next, 5)
	require.Equal(t, time.UTC, all[0].Next[0].Location())
	require.True(t, all[0].Next[0].After(time.Now()))
}

func TestSchedulePauseAndResume(t *testing.T) {
	s := newSite(t)
	store := s.plan(twoPlans)
	s.env = append(s.env, "SUDO_USER=ann")
	r := s.do("schedule", "pause", "nightly")
	require.Equal(t, said{0, "plan nightly is paused; `schedule resume nightly` lets it go on\n", ""}, r)
	all, err := store.Paused(context.Background())
	require.NoError(t, err)
	host, _ := os.Hostname()
	require.Equal(t, "ann@"+host, all["nightly"].By)
	require.WithinDuration(t, time.Now(), all["nightly"].At, time.Minute)
	r = s.do("schedule", "pause", "nightly")
	require.Equal(t, 0, r.code)
	require.Contains(t, r.out, "plan nightly was paused already, by ann@"+host+" at ")
	v := shape(t, s.do("schedule", "pause", "nightly", "--json").out, "plan", "paused", "changed")
	require.Equal(t, false, v["changed"])
	r = s.do("schedule", "resume", "nightly")
	require.Equal(t, 0, r.code)
	require.Contains(t, r.out, "plan nightly goes on; next at ")
	require.Contains(t, r.err, "note: it was paused by ann@"+host)
	require.Equal(t, "plan nightly was not paused\n", s.do("schedule", "resume", "nightly").out)
	v = shape(t, s.do("schedule", "resume", "nightly", "--json").out, "plan", "paused", "changed")
	require.Nil(t, v["paused"])
	for _, verb := range []string{"pause", "resume"} {
		r = s.do("schedule", verb, "nigthly")
		require.Equal(t, said{exit.NotFound, "", "producer: \"nigthly\" is not a plan in " + s.config + "; see `schedule list` for those there are\n"}, r)
		require.Equal(t, exit.Usage, s.do("schedule", verb).code)
	}
	require.NoError(t, s.redis.Kill9())
	require.Equal(t, exit.Unreachable, s.do("schedule", "pause", "nightly").code)
	require.Equal(t, exit.Unreachable, s.do("schedule", "list").code)
}

func TestScheduleExplain(t *testing.T) {
	s := &site{t: t, config: "/nonexistent"}
	r := s.do("schedule", "explain", "30 2 * * 1-5", "--timezone", "America/New_York")
	require.Equal(t, 0, r.code, r.err)
	require.Contains(t, r.out, "day of week   1-5  on Monday to Friday")
	require.Equal(t, 10, strings.Count(r.out, "02:30 E"))
	r = s.do("schedule", "explain", "30", "2", "*", "*", "*", "--timezone", "America/New_York")
	require.Contains(t, r.out, "-14 02:30 is skipped by the clocks: it happens right after, at Sun ", "every spring, within two years")
	require.Contains(t, r.out, "03:00 EDT")
	require.Contains(t, s.do("schedule", "explain", "0 0 1 * mon").out, "a day that matches one of them is enough")
	v := shape(t, s.do("schedule", "explain", "@daily", "--json").out, "cron", "timezone", "fields", "either", "next", "shifts")
	require.Len(t, v["next"], 10)
	require.Empty(t, v["shifts"])
	for text, why := range map[string]string{"61 * * * *": "above maximum", "0 0 30 2 *": "never happens", "@every 1h": "no calendar", "": "it is empty"} {
		r := s.do("schedule", "explain", text)
		require.Equal(t, exit.Usage, r.code)
		require.Contains(t, r.err, why)
	}
	require.Contains(t, s.do("schedule", "explain", "@daily", "--timezone", "Mars/Base").err, "--timezone: \"Mars/Base\" is no time zone")
	require.Equal(t, exit.Usage, s.do("schedule").code)
	require.Contains(t, s.do("schedule", "lst").err, "did you mean list?")
}

func TestCompletionOffersPlans(t *testing.T) {
	s := newSite(t)
	s.plan(twoPlans)
	require.Contains(t, s.do("__complete", "schedule", "pause", "").out, "nightly\t30 2 * * * Europe/Berlin\n")
}

// minuteAgo is a plan whose last tick was due half a minute to a minute and a half
// ago, and which has been looked at before.
func minuteAgo(t *testing.T, s *site, name string) (string, time.Time) {
	t.Helper()
	tick := time.Now().UTC().Add(-30 * time.Second).Truncate(time.Minute)
	text := fmt.Sprintf("schedules: [{name: %s, cron: '%d %d * * *'}]\n", name, tick.Minute(), tick.Hour())
	s.plan(text)
	c, err := config.Load(s.config, func(string) string { return "" })
	require.NoError(t, err)
	past := schedule.NewStore(s.rdb, "catalog", func() time.Time { return tick.Add(-time.Minute) })
	_, err = past.Seen(context.Background(), schedule.Plans(c)[0])
	require.NoError(t, err)
	return text, tick
}

// Two real schedulers, one of which is killed, catch up a tick: one run, once.
func TestTwoSchedulersOneTick(t *testing.T) {
	s := newSite(t)
	text, tick := minuteAgo(t, s, "nightly")
	store := schedule.NewStore(s.rdb, "catalog", time.Now)
	one, two := s.launch("schedule", "run"), s.launch("schedule", "run")
	opened := func() (x schedule.Tick, ok bool) {
		x, ok, err := store.Tick(context.Background(), "nightly", tick)
		return x, ok && err == nil && x.Result == schedule.Opened
	}
	require.Eventually(t, func() bool { _, ok := opened(); return ok }, patience, 10*time.Millisecond, "%s%s", &one.err, &two.err)
	require.NoError(t, one.cmd.Process.Kill())
	two.until(&two.err, "the scheduler is ready")
	r := s.run()
	x, _ := opened()
	require.Equal(t, r.ID, *x.Run)
	runs, err := s.store.Recent(context.Background(), "catalog", 10)
	require.NoError(t, err)
	require.Len(t, runs, 1)
	require.Contains(t, s.do("schedule", "list").out, "opened, run "+r.ID+"\n  run      queued\n")
	require.True(t, strings.HasSuffix(r.Tick, fmt.Sprintf(":nightly:%d", tick.Unix())), r.Tick)
	require.Eventually(t, func() bool {
		n, err := s.rdb.Exists(context.Background(), "asynq:{catalog}:t:"+task.ID(r.Epoch, task.Payload{Run: r.ID, Instance: "catalog", Stage: run.Prepare, Generation: 1})).Result()
		return err == nil && n == 1
	},
		patience, 10*time.Millisecond, "its first stage is enqueued")

	// A changed file, one that cannot be used, and SIGHUP.
	s.plan(strings.ReplaceAll(text, "nightly", "moved"))
	s.replan(two, strings.ReplaceAll(text, "nightly", "moved"))
	require.NoError(t, two.cmd.Process.Signal(syscall.SIGHUP))
	two.until(&two.err, "plans=\"[moved next ")
	s.replan(two, "schedules: [{name: x, cron: '99 * * * *'}]\n")
	require.NoError(t, two.cmd.Process.Signal(syscall.SIGHUP))
	two.until(&two.err, "the changed configuration is refused; the old plans go on")

	live, err := store.Schedulers(context.Background())
	require.NoError(t, err)
	require.NotEmpty(t, live)
	require.NoError(t, two.cmd.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 0, two.wait().code)
	live, err = store.Schedulers(context.Background())
	require.NoError(t, err)
	for _, l := range live {
		require.NotEqual(t, two.cmd.Process.Pid, l.PID, "it signed out")
	}
}

// replan changes the file that a running scheduler reads.
func (s *site) replan(p *running, text string) {
	s.t.Helper()
	path := ""
	for _, e := range p.cmd.Env {
		if v, ok := strings.CutPrefix(e, "CATALOG_BACKUP_CONFIG="); ok {
			path = v
		}
	}
	require.NoError(s.t, os.WriteFile(path, []byte("instance: catalog\nredis:\n  address: unix:"+s.redis.Addr+"\n"+text), 0o600))
}

func TestScheduleRunWithoutRedis(t *testing.T) {
	s := newSite(t)
	s.plan(twoPlans)
	require.NoError(t, s.redis.Kill9())
	r := s.do("schedule", "run", "--reconnect", "200ms")
	require.Equal(t, exit.Unreachable, r.code)
	require.Contains(t, r.err, "producer: cannot use Redis at unix:"+s.redis.Addr)
	p := s.launch("schedule", "run", "--json")
	p.until(&p.err, "does not answer; waiting for it")
	require.NoError(t, s.redis.Start())
	p.until(&p.err, `"msg":"the scheduler is ready"`)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGINT))
	require.Equal(t, 0, p.wait().code)
	s.plan("schedules: [{name: x, cron: '* * *'}]\n")
	r = s.do("schedule", "run")
	require.Equal(t, exit.Usage, r.code)
	require.Contains(t, r.err, "schedules[0].cron: \"* * *\" has 3 fields, not five")
}
