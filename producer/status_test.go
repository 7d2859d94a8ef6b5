package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

func TestStatusFromQueuedToDone(t *testing.T) {
	s := newSite(t)
	id := strings.TrimSpace(s.do("backup-all", "--incremental").out)
	v := shape(t, s.do("status", "--json").out, standingFields...)
	require.Equal(t, map[string]any{"run": id, "state": "queued", "stage": "prepare", "attempt": 0.0, "bytes_done": nil, "bytes_total": nil,
		"node": nil, "error": nil, "attempts": []any{}}, v)
	require.Contains(t, s.do("status").out, "prepare, not begun")

	r := s.claim(s.reload(id))
	_, err := s.store.Again(context.Background(), r, r.Stage, r.Generation, run.Retry{Kind: run.Erred, Error: "server \x1b]0;x\x07 down\nsecond line", Budget: 3, Wait: 10 * time.Minute})
	require.NoError(t, err)
	text := s.do("status").out
	require.Contains(t, text, "promoted: incremental was asked for")
	require.Contains(t, text, "retry      in 9m")
	require.Contains(t, text, `error      server \u001b]0;x\u0007 down second line`)

	r = s.claim(r)
	s.progress(r, 3<<20, 12<<20, 1<<20)
	v = shape(t, s.do("status", id, "--json").out, standingFields...)
	require.Equal(t, 2.0, v["attempt"])
	require.Equal(t, float64(3<<20), v["bytes_done"])
	require.Equal(t, float64(12<<20), v["bytes_total"])
	require.Equal(t, "host1", v["node"])
	attempts := v["attempts"].([]any)
	require.Len(t, attempts, 2)
	for _, a := range attempts {
		b, _ := json.Marshal(a)
		x := shape(t, string(b), attemptFields...)
		at, err := time.Parse(time.RFC3339Nano, x["started"].(string))
		require.NoError(t, err)
		require.Equal(t, time.UTC, at.Location(), "times are in UTC")
	}
	require.Equal(t, "error", attempts[0].(map[string]any)["outcome"])
	require.Nil(t, attempts[1].(map[string]any)["outcome"])
	require.Nil(t, attempts[1].(map[string]any)["ended"])
	text = s.do("status").out
	require.Contains(t, text, "3.0 MiB of 12.0 MiB (25%), 1.0 MiB/s, ETA 9.0s")
	require.Contains(t, text, "stage      prepare, attempt 2")

	s.succeed(r, facts)
	got := s.do("status")
	require.Zero(t, got.code)
	require.Contains(t, got.out, facts.Set)
}

func TestStatusOfAFailedRunExitsGood(t *testing.T) {
	s := newSite(t)
	id := strings.TrimSpace(s.do("backup-all").out)
	s.fail(s.reload(id), "no space")
	r := s.do("status", "--json")
	require.Zero(t, r.code)
	v := shape(t, r.out, standingFields...)
	require.Equal(t, "failed", v["state"])
	require.Equal(t, "no space", v["error"])
	require.Equal(t, exit.RunFailed, s.do("watch", id).code)
}

func TestStatusShowsTheCleanup(t *testing.T) {
	s := newSite(t)
	id := strings.TrimSpace(s.do("backup-all").out)
	r := s.claim(s.reload(id))
	_, err := s.store.Again(context.Background(), r, r.Stage, r.Generation, run.Retry{Kind: run.Erred, Error: "no space", Permanent: true})
	require.NoError(t, err)
	require.Equal(t, "running", shape(t, s.do("status", "--json").out, standingFields...)["state"])
	require.Contains(t, s.do("status").out, "running, cleaning up; it will end as failed")
}

func TestCancelVerb(t *testing.T) {
	for name, c := range map[string]struct {
		at     func(s *site, id string)
		code   int
		answer string
		words  string
	}{
		"queued":  {func(*site, string) {}, exit.Good, answerCancelled, "is cancelled"},
		"claimed": {func(s *site, id string) { s.claim(s.reload(id)) }, exit.Good, answerAsked, "cancel asked for"},
		"committed": {func(s *site, id string) {
			r := s.claim(s.reload(id))
			require.NoError(s.t, s.store.Holds(context.Background(), id, r.Hold(), r.Epoch, true))
		}, exit.Other, answerTooLate, "too late"},
		"succeeded": {func(s *site, id string) { s.succeed(s.reload(id), facts) }, exit.Other, answerTooLate, "too late"},
		"failed":    {func(s *site, id string) { s.fail(s.reload(id), "x") }, exit.Other, answerOver, "has ended already: failed"},
		"cancelled": {func(s *site, id string) { require.Zero(s.t, s.do("cancel", id).code) }, exit.Good, answerCancelled, "is cancelled"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			id := strings.TrimSpace(s.do("backup-all").out)
			c.at(s, id)
			before := s.reload(id).State
			r := s.do("cancel", id)
			require.Equal(t, c.code, r.code, r.err)
			require.Contains(t, r.out+r.err, c.words)
			id2 := id
			if name == "queued" { // it is gone now
				id2 = strings.TrimSpace(s.do("backup-all").out)
			}
			r = s.do("cancel", "--json", id2)
			require.Equal(t, c.code, r.code)
			v := shape(t, r.out, cancelFields...)
			require.Equal(t, c.answer, v["answer"])
			if before == run.Succeeded {
				require.Equal(t, run.Succeeded, s.reload(id).State, "it stays succeeded")
			}
		})
	}
}

func TestCancelWithoutRun(t *testing.T) {
	s := newSite(t)
	require.Equal(t, exit.NotFound, s.do("cancel").code)
	id := strings.TrimSpace(s.do("backup-all").out)
	s.succeed(s.reload(id), facts)
	r := s.do("cancel")
	require.Equal(t, exit.Other, r.code)
	require.Contains(t, r.err, "too late")
	s.do("backup-all")
	require.Zero(t, s.do("cancel").code)
}

func TestCancelWaits(t *testing.T) {
	s := newSite(t)
	id := strings.TrimSpace(s.do("backup-all").out)
	s.claim(s.reload(id))
	p := s.launch("cancel", "--wait", "--json")
	s.obeyCancel(id)
	r := p.wait()
	require.Zero(t, r.code, r.err)
	v := shape(t, r.out, cancelFields...)
	require.Equal(t, "cancelled", v["state"])
	require.Equal(t, answerCancelled, v["answer"])
}

func TestCancelWaitsForACleanupThatEndsOtherwise(t *testing.T) {
	s := newSite(t)
	id := strings.TrimSpace(s.do("backup-all").out)
	r := s.claim(s.reload(id))
	_, err := s.store.Again(context.Background(), r, r.Stage, r.Generation, run.Retry{Kind: run.Erred, Error: "no space", Permanent: true})
	require.NoError(t, err)
	p := s.launch("cancel", "--wait", id)
	require.Eventually(t, func() bool { return s.reload(id).Cancel }, patience, 10*time.Millisecond)
	s.clean(id)
	got := p.wait()
	require.Equal(t, exit.Other, got.code)
	require.Contains(t, got.err, "has ended already: failed")
}

// publish plays two workers that say what their dump directories hold.
func publish(s *site) {
	s.t.Helper()
	size := int64(5 << 30)
	at := time.Date(2021, 9, 23, 22, 30, 0, 0, time.FixedZone("CEST", 7200))
	parent := "202109222027_10-0-0-147420"
	one := set.Summary{Set: "202109232027_10-0-0-147420", Type: set.Full, Created: at, Size: &size, Archives: []string{"/d/a.tar.gz"}, Instance: "catalog",
		Parts: []string{"postgres", "files"}, Warnings: []string{"one\x1b[31m"}, Dir: "/d",
		Proof: &set.Proof{Kind: "verify", At: at, Good: false, Damage: []set.Damage{{Entry: "files/x", Problem: "wrong hash"}}}}
	two := set.Summary{Set: "202109242027_10-0-0-147420", Type: set.Incremental, Created: at.Add(24 * time.Hour), Parent: &parent, Missing: []string{"b.tar.gz"}, Dir: "/e"}
	require.NoError(s.t, s.store.Publish(context.Background(), "catalog", run.Published{At: at, Node: "host2", Dir: "/e", Sets: []set.Summary{two}}))
	require.NoError(s.t, s.store.Publish(context.Background(), "catalog", run.Published{At: at, Node: "host1", Dir: "/d", Sets: []set.Summary{one},
		Foreign: []string{"202001010000_9-0_alation_backup.tar.gz\x1b[2J"}, Problems: []string{"read manifest /d/x: damaged"}}))
}

func TestList(t *testing.T) {
	s := newSite(t)
	publish(s)
	r := s.do("list", "--json")
	require.Zero(t, r.code)
	require.Contains(t, r.err, "node host1: read manifest /d/x: damaged")
	var all []json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(r.out), &all))
	require.Len(t, all, 2)
	one, two := shape(t, string(all[0]), listFields...), shape(t, string(all[1]), listFields...)
	require.Equal(t, "202109232027_10-0-0-147420", one["set"])
	require.Equal(t, "2021-09-23T20:30:00Z", one["created"], "UTC")
	require.Equal(t, float64(5<<30), one["size"])
	b, _ := json.Marshal(one["proof"])
	require.Equal(t, map[string]any{"kind": "verify", "at": "2021-09-23T20:30:00Z", "good": false}, shape(t, string(b), proofFields...))
	require.Nil(t, two["size"])
	require.Nil(t, two["proof"])
	require.Equal(t, []any{}, two["archives"])
	require.Equal(t, "202109222027_10-0-0-147420", two["parent"])

	text := s.do("list").out
	for _, words := range []string{"/d on node host1, as of 2021-09-23T20:30:00Z", "5.0 GiB", "postgres,files", "verify DAMAGED", "damage: 202109232027_10-0-0-147420: files/x: wrong hash", "FILES MISSING",
		`foreign: 202001010000_9-0_alation_backup.tar.gz\u001b[2J (not ours, never touched)`, "problem: read manifest"} {
		require.Contains(t, text, words)
	}
}

func TestShow(t *testing.T) {
	s := newSite(t)
	publish(s)
	v := shape(t, s.do("show", "202109232027_10-0-0-147420", "--json").out, showFields...)
	require.Equal(t, "host1", v["node"])
	require.Equal(t, []any{"postgres", "files"}, v["parts"])
	require.Equal(t, []any{map[string]any{"entry": "files/x", "problem": "wrong hash"}}, v["damage"])
	require.Equal(t, float64(1), v["damage_total"])
	v = shape(t, s.do("show", "202109242027_10-0-0-147420", "--json").out, showFields...)
	require.Equal(t, []any{"b.tar.gz"}, v["missing"])
	require.Equal(t, []any{}, v["parts"])
	text := s.do("show", "202109232027_10-0-0-147420").out
	require.Contains(t, text, "FOUND DAMAGE")
	require.Contains(t, text, `one\u001b[31m`)
	r := s.do("show", "202109250000_1")
	require.Equal(t, exit.NotFound, r.code)
	require.NoError(t, s.store.Publish(context.Background(), "catalog", run.Published{Node: "host3", Problems: []string{"read manifest /d/202109250000_1_alation_backup.json: it is damaged"}}))
	r = s.do("show", "202109250000_1")
	require.Equal(t, exit.Damage, r.code, "it is there, and its manifest cannot be read")
	require.Contains(t, r.err, "it is damaged")
}
