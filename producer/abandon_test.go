package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
)

var abandonFields = []string{"run", "state", "answer", "node", "left"}

// begun is an open run with an attempt at work.
func begun(s *site) run.Record {
	s.t.Helper()
	return s.claim(s.reload(strings.TrimSpace(s.do("backup-all").out)))
}

func TestAbandon(t *testing.T) {
	s := newSite(t)
	ctx := context.Background()
	require.NoError(t, s.store.Publish(ctx, "catalog", run.Published{Node: "host1", Dir: "/srv/dump"}))
	r := begun(s)
	got := s.do("abandon", r.ID)
	require.Equal(t, exit.Usage, got.code, "without a terminal nobody is asked")
	require.Contains(t, got.err, "--yes")
	require.Equal(t, run.Running, s.reload(r.ID).State)

	got = s.do("abandon", "--yes", r.ID)
	require.Zero(t, got.code, got.err)
	require.Empty(t, got.err, "no worker lives that could obey a cancel")
	for _, words := range []string{"is abandoned, and the lock of instance catalog is free", "/data2/tmp/" + r.ID + "\n", "/srv/dump/pgbackrest/" + r.ID + ".*\n",
		"/srv/dump/.*." + r.ID + ".*.part\n", "/srv/dump/." + r.ID + ".intent\n", "A worker of node host1 removes that"} {
		require.Contains(t, got.out, words)
	}
	require.ErrorIs(t, s.store.Holds(ctx, r.ID, r.Hold(), r.Epoch, true), run.ErrFenced, "the attempt that lives may touch nothing")
	over := s.reload(r.ID)
	require.Equal(t, run.Failed, over.State)
	require.Contains(t, over.Error, "abandoned by ")
	require.NotNil(t, over.Attempts[0].Ended)
	next := s.do("backup-all")
	require.Zero(t, next.code, "the lock is free")

	got = s.do("abandon", "--json", "--yes", r.ID)
	require.Equal(t, exit.Other, got.code)
	require.Equal(t, answerOver, shape(t, got.out, abandonFields...)["answer"])
	require.Equal(t, run.Queued, s.reload(strings.TrimSpace(next.out)).State, "the next run is not touched")
	require.Equal(t, exit.NotFound, s.do("abandon", "--yes", "20261123t184702z-abcdefgh").code)
	require.Equal(t, exit.NotFound, s.do("abandon", "--yes", "../x").code)
}

func TestAbandonAtEveryPoint(t *testing.T) {
	for name, at := range map[string]func(s *site) string{
		"nobody had begun it": func(s *site) string { return strings.TrimSpace(s.do("backup-all").out) },
		"cancel not obeyed":   func(s *site) string { id := begun(s).ID; require.Zero(s.t, s.do("cancel", id).code); return id },
		"in the commit": func(s *site) string {
			r := begun(s)
			require.NoError(s.t, s.store.Holds(context.Background(), r.ID, r.Hold(), r.Epoch, true))
			return r.ID
		},
		"in a cleanup": func(s *site) string {
			r := begun(s)
			_, err := s.store.Again(context.Background(), r, r.Stage, r.Generation, run.Retry{Kind: run.Erred, Error: "no space", Permanent: true})
			require.NoError(s.t, err)
			return s.claim(r).ID
		},
		"record of another type": func(s *site) string {
			id := begun(s).ID
			require.NoError(s.t, s.rdb.Del(context.Background(), "catalog-backup:run:"+id).Err())
			require.NoError(s.t, s.rdb.Set(context.Background(), "catalog-backup:run:"+id, "x", 0).Err())
			return id
		},
		"no record": func(s *site) string {
			id := begun(s).ID
			require.NoError(s.t, s.rdb.Del(context.Background(), "catalog-backup:run:"+id).Err())
			return id
		},
		"damaged everywhere": func(s *site) string {
			id := begun(s).ID
			require.NoError(s.t, s.rdb.HSet(context.Background(), "catalog-backup:run:"+id, "instance", "other", "state", "x", "fence", "x", "generation", "x", "attempt:1", "x", "updated", "x").Err())
			return id
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			id := at(s)
			got := s.do("abandon", "--json", "--yes", id)
			require.Zero(t, got.code, got.err)
			v := shape(t, got.out, abandonFields...)
			require.Equal(t, answerAbandoned, v["answer"])
			require.Equal(t, name == "nobody had begun it", len(v["left"].([]any)) == 0)
			if r, err := s.store.Get(context.Background(), id); err == nil {
				require.Equal(t, run.Failed, r.State)
				require.Equal(t, name == "in a cleanup", strings.HasPrefix(r.Error, "no space; abandoned by "))
			}
			require.Zero(t, s.do("backup-all").code, "the lock is free")
		})
	}
}

// asked starts `abandon` on a real terminal and types an answer after meanwhile.
func asked(s *site, id, typed string, meanwhile func()) (out string, code int) {
	s.t.Helper()
	master, tty := openTerminal(s.t, 200)
	cmd := s.command("abandon", id)
	var b lab.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, &b, &b
	require.NoError(s.t, cmd.Start())
	require.NoError(s.t, tty.Close())
	require.Eventually(s.t, func() bool { return strings.Contains(b.String(), "Type the run's id to abandon it: ") }, patience, 10*time.Millisecond)
	meanwhile()
	_, err := master.WriteString(typed)
	require.NoError(s.t, err)
	_ = cmd.Wait()
	return b.String(), cmd.ProcessState.ExitCode()
}

// The question, while a worker lives that could obey a cancel.
func TestAbandonAsksOnATerminal(t *testing.T) {
	s := newSite(t)
	require.NoError(t, s.store.SignIn(context.Background(), "catalog", run.Worker{ID: "w1", Node: "host1"}))
	r := begun(s)
	nothing := func() {}
	for _, typed := range []string{"y\n", "\n", r.ID[:8] + "\n", "\x04"} {
		out, code := asked(s, r.ID, typed, nothing)
		require.Equal(t, exit.Other, code, "%q: %s", typed, out)
		require.Contains(t, out, "`cancel "+r.ID+"` stops the run in good order")
		require.Equal(t, run.Running, s.reload(r.ID).State)
	}
	out, code := asked(s, r.ID, r.ID+"\n", nothing)
	require.Zero(t, code, out)
	require.Equal(t, run.Failed, s.reload(r.ID).State)
}

// A run that ends well while the person thinks has its set: the record decides.
func TestAbandonComesTooLate(t *testing.T) {
	s := newSite(t)
	r := begun(s)
	out, code := asked(s, r.ID, r.ID+"\n", func() { s.succeed(r, facts) })
	require.Equal(t, exit.Other, code, out)
	require.Contains(t, out, "has ended already: succeeded")
	require.Equal(t, run.Succeeded, s.reload(r.ID).State)
	require.Empty(t, s.reload(r.ID).Error)
}

func TestForget(t *testing.T) {
	s := newSite(t)
	ctx := context.Background()
	for _, node := range []string{"host1", "host2"} {
		require.NoError(t, s.store.Publish(ctx, "catalog", run.Published{At: time.Now(), Node: node, Dir: "/d"}))
	}
	require.NoError(t, s.store.SignIn(ctx, "catalog", run.Worker{ID: "w1", Node: "host2", Host: "h", PID: 7}))
	r := begun(s) // on host1
	got := s.do("forget", "host1")
	require.Equal(t, exit.Other, got.code)
	require.Contains(t, got.err, "run "+r.ID+" is open there")
	got = s.do("forget", "host2")
	require.Equal(t, exit.Other, got.code)
	require.Contains(t, got.err, "a worker of it lives")
	require.Equal(t, exit.NotFound, s.do("forget", "host9").code)
	require.Contains(t, s.do("list").out, "on node host1")

	require.NoError(t, s.store.SignOut(ctx, "catalog", "w1"))
	require.Contains(t, s.do("__complete", "forget", "").out, "host2")
	got = s.do("forget", "--json", "host2")
	require.Zero(t, got.code, got.err)
	require.Equal(t, "host2", shape(t, got.out, "node", "forgotten")["node"])
	out := s.do("list").out
	require.Contains(t, out, "on node host1")
	require.NotContains(t, out, "host2")
	require.Equal(t, exit.NotFound, s.do("forget", "host2").code)
}

// A host whose clock is wrong tells ages, and what it writes, by Redis's clock.
func TestAgesAreRedisOwn(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		s := newSite(t)
		c := &connection{store: run.NewStore(s.rdb, nil, time.Hour), host: func() time.Time { return time.Now().Add(off) }}
		require.WithinDuration(t, time.Now(), c.now(context.Background()), time.Minute)
		require.NoError(t, s.redis.Kill9())
		require.WithinDuration(t, time.Now(), c.now(context.Background()), time.Minute, "as it was told once")
	}
}
