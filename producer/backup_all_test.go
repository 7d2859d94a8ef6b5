package main

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
)

func TestBackupAllPrintsTheRunAndEnqueues(t *testing.T) {
	s := newSite(t)
	r := s.do("backup-all")
	require.Zero(t, r.code, r.err)
	id := strings.TrimSpace(r.out)
	require.True(t, run.ValidID(id), "only the run id: %q", r.out)
	require.Contains(t, r.err, "no live worker serves instance catalog")
	rec := s.reload(id)
	require.Equal(t, "full", rec.Requested)
	payload := task.Payload{Run: id, Instance: "catalog", Stage: run.Prepare, Generation: 1}
	info, err := asynq.NewInspectorFromRedisClient(s.rdb).GetTaskInfo("catalog", task.ID(rec.Epoch, payload))
	require.NoError(t, err)
	got, err := task.Read(asynq.NewTask(info.Type, info.Payload))
	require.NoError(t, err)
	require.Equal(t, payload, got)
	require.NotContains(t, string(info.Payload), secret)
}

func TestBackupAllWithALiveWorker(t *testing.T) {
	s := newSite(t)
	require.NoError(t, s.store.SignIn(context.Background(), "catalog", run.Worker{ID: "w", Node: "host1"}))
	require.Empty(t, s.do("backup_all", "--full").err)
}

func TestBackupAllJSON(t *testing.T) {
	s := newSite(t)
	r := s.do("backup-all", "--json", "--incremental")
	require.Zero(t, r.code)
	v := shape(t, r.out, resultFields...)
	require.Equal(t, "full", v["type"])
	require.Equal(t, "queued", v["state"])
	require.Equal(t, "catalog", v["instance"])
	require.Contains(t, r.err, "promoted to full")
	require.True(t, strings.HasPrefix(r.err, v["run"].(string)+"\n"))
	require.Equal(t, "incremental", s.reload(v["run"].(string)).Requested)
}

func TestSecondRunIsRefused(t *testing.T) {
	s := newSite(t)
	id := strings.TrimSpace(s.do("backup-all").out)
	s.claim(s.reload(id))
	for _, args := range [][]string{{"backup-all"}, {"backup-all", "--json", "--wait"}} {
		r := s.do(args...)
		require.Equal(t, exit.Busy, r.code)
		require.Empty(t, r.out)
		require.Contains(t, r.err, "run "+id+", stage prepare, asked for ")
		require.Contains(t, r.err, " ago")
	}
	s.fail(s.reload(id), "x")
	require.Zero(t, s.do("backup-all").code)
}

func TestEnqueueFailsAfterTheStart(t *testing.T) {
	s := newSite(t)
	// The keys of asynq are refused, so every enqueue fails.
	require.NoError(t, s.rdb.Do(context.Background(), "acl", "setuser", "default", "resetkeys", "~catalog-backup:*").Err())
	r := s.do("backup-all")
	require.Zero(t, r.code)
	require.True(t, run.ValidID(strings.TrimSpace(r.out)))
	require.Contains(t, r.err, "a worker will take it up by itself")
}

func TestWaitEndings(t *testing.T) {
	warned := facts
	warned.Warnings = []string{"topic x was deleted meanwhile\x1b[2J"}
	for name, c := range map[string]struct {
		play func(s *site, r run.Record)
		code int
		want map[string]any
	}{
		"good": {func(s *site, r run.Record) { s.succeed(r, facts) }, exit.Good, map[string]any{"state": "succeeded", "set": facts.Set,
			"archives": []any{facts.Archives[0]}, "manifest": facts.Manifest, "warnings": []any{}, "error": nil}},
		"warnings": {func(s *site, r run.Record) { s.succeed(r, warned) }, exit.Warnings, map[string]any{"state": "succeeded", "set": facts.Set,
			"warnings": []any{warned.Warnings[0]}, "error": nil}},
		"failed": {func(s *site, r run.Record) { s.note(s.claim(r), facts); s.fail(r, "no space\x1b[2J on /d") }, exit.RunFailed,
			map[string]any{"state": "failed", "set": nil, "archives": []any{}, "manifest": nil, "warnings": []any{}, "error": "no space\x1b[2J on /d"}},
		"cancelled": {func(s *site, r run.Record) { s.claim(r); require.Zero(s.t, s.do("cancel").code); s.obeyCancel(r.ID) }, exit.Cancelled,
			map[string]any{"state": "cancelled", "set": nil, "archives": []any{}}},
		"cancelled in the queue": {func(s *site, r run.Record) { require.Zero(s.t, s.do("cancel", r.ID).code) }, exit.Cancelled,
			map[string]any{"state": "cancelled", "error": nil}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			js := s.launch("backup-all", "--wait", "--json")
			r := s.run()
			js.until(&js.err, r.ID+"\n")
			require.Empty(t, js.out.String())
			text := s.launch("watch")
			text.until(&text.out, "prepare: waits for a worker")
			c.play(s, r)
			got := js.wait()
			require.Equal(t, c.code, got.code, got.err)
			v := shape(t, got.out, endingFields...)
			require.Equal(t, r.ID, v["run"])
			for k, want := range c.want {
				require.Equal(t, want, v[k], k)
			}
			plain := text.wait() // also checks that no escape comes through
			require.Equal(t, c.code, plain.code)
			require.Contains(t, plain.out, "run "+r.ID+" "+v["state"].(string))
			again := s.do("watch", "--json")
			require.Equal(t, c.code, again.code, "watch of a run that is over ends at once, in the same way")
			require.JSONEq(t, got.out, again.out)
			require.Zero(t, s.do("status", r.ID).code)
		})
	}
}

func TestWaitShowsTheRunIDFirst(t *testing.T) {
	s := newSite(t)
	p := s.launch("backup-all", "--wait")
	r := s.run()
	r = s.claim(r)
	s.progress(r, 1<<30, 4<<30, 1<<28)
	p.until(&p.out, "prepare: attempt 1 on host1, 1.0 GiB of 4.0 GiB (25%), 256 MiB/s, ETA 12s")
	s.succeed(r, facts)
	got := p.wait()
	require.Zero(t, got.code)
	require.True(t, strings.HasPrefix(got.out, r.ID+"\n"))
	require.Contains(t, got.out, facts.Manifest)
}

func TestInterruptedWaitingLeavesTheRun(t *testing.T) {
	s := newSite(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		p := s.launch("backup-all", "--wait", "--json")
		r := s.run()
		p.until(&p.err, r.ID)
		p.until(&p.err, "no live worker")
		require.NoError(t, p.cmd.Process.Signal(sig))
		got := p.wait()
		require.Equal(t, exit.Other, got.code, got.err)
		require.Contains(t, got.err, "the run goes on; see it with `watch "+r.ID+"`, stop it with `cancel "+r.ID+"`")
		require.Equal(t, "queued", shape(t, got.out, endingFields...)["state"])
		require.Equal(t, run.Queued, s.reload(r.ID).State)
		s.succeed(r, facts)
	}
}

func TestWaitOutlivesARedisThatComesBack(t *testing.T) {
	for name, end := range map[string]func(*site) error{
		"killed": func(s *site) error { return s.redis.Kill9() },
		"frozen": func(s *site) error { return s.redis.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			p := s.launch("backup-all", "--wait", "--json")
			r := s.run()
			p.until(&p.err, "no live worker")
			require.NoError(t, end(s))
			p.until(&p.err, "Redis is away")
			if name == "frozen" {
				require.NoError(t, s.redis.Cont())
			} else {
				require.NoError(t, s.redis.Start())
			}
			p.until(&p.err, "Redis is back")
			s.succeed(r, facts)
			got := p.wait()
			require.Zero(t, got.code, got.err)
			require.Equal(t, facts.Set, shape(t, got.out, endingFields...)["set"])
		})
	}
}

// A scheduler starts the command right after a reboot, before the worker has
// brought the embedded Redis up.
func TestWaitBeginsBeforeRedisIsThere(t *testing.T) {
	s := newSite(t)
	require.NoError(t, s.redis.Kill9())
	p := s.launch("backup-all", "--wait", "--json")
	w := s.launch("watch", "--json")
	p.until(&p.err, "trying for 1m00s")
	w.until(&w.err, "trying for 1m00s")
	require.NoError(t, w.cmd.Process.Kill())
	require.NoError(t, s.redis.Start())
	p.until(&p.err, "no live worker")
	r := s.run()
	s.succeed(r, facts)
	got := p.wait()
	require.Zero(t, got.code, got.err)
	require.Equal(t, facts.Set, shape(t, got.out, endingFields...)["set"])

	require.NoError(t, s.redis.Kill9())
	at := time.Now()
	require.Equal(t, exit.Unreachable, s.do("watch", "--reconnect", "1s").code)
	require.Equal(t, exit.Unreachable, s.do("backup-all", "--wait", "--reconnect", "1s").code)
	require.GreaterOrEqual(t, time.Since(at), 2*time.Second)
}

func TestWaitGivesUpOnARedisThatStaysAway(t *testing.T) {
	for name, end := range map[string]func(*site) error{
		"killed": func(s *site) error { return s.redis.Kill9() },
		"frozen": func(s *site) error { return s.redis.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			p := s.launch("backup-all", "--wait", "--json", "--reconnect", "1s")
			r := s.run()
			p.until(&p.err, "no live worker")
			require.NoError(t, end(s))
			at := time.Now()
			got := p.wait()
			require.Equal(t, exit.Unreachable, got.code, got.err)
			require.Less(t, time.Since(at), 8*time.Second)
			v := shape(t, got.out, endingFields...)
			require.Equal(t, r.ID, v["run"])
			require.Equal(t, "queued", v["state"], "the last that was known")
			require.Contains(t, v["error"], "tried for 1.0s")
			require.Contains(t, got.err, "status "+r.ID)
		})
	}
}

func TestRedisEmptiedWhileWaiting(t *testing.T) {
	s := newSite(t)
	p := s.launch("backup-all", "--wait", "--json")
	r := s.run()
	p.until(&p.err, "no live worker")
	s.claim(r)
	require.NoError(t, s.redis.FlushAll())
	got := p.wait()
	require.Equal(t, exit.RunFailed, got.code)
	v := shape(t, got.out, endingFields...)
	require.Equal(t, "failed", v["state"])
	require.Contains(t, v["error"], "record is gone")
	require.Equal(t, []any{}, v["archives"])
}

func TestWaitHasNoMoreToSayThanTheRecord(t *testing.T) {
	e := endingOf(run.Record{State: run.Failed})
	require.NotNil(t, e.Error)
	require.NotNil(t, e.Warnings)
	e = endingOf(run.Record{State: run.Succeeded, Error: "of an attempt before"})
	require.Nil(t, e.Error)
	require.Equal(t, exit.RunFailed, codeOf(run.Record{State: run.Running}))
}
