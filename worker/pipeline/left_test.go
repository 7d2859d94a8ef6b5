package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

// finishUnreported lets the stage end while Redis is away and its worker die before it
// is back, and gives the staging of the attempt.
func (g *ground) finishUnreported(r run.Record, name string, w *process) string {
	g.t.Helper()
	g.waitStage(r.ID, name)
	require.NoError(g.t, g.redis.Kill9())
	g.free("hold-" + name)
	var found []string
	g.eventually(5*time.Second, "the stage's result is on disk", func() bool {
		found, _ = filepath.Glob(filepath.Join(g.opts.Temp, r.ID, name+".*", "result.json"))
		return len(found) == 1
	})
	w.kill9()
	require.NoError(g.t, g.redis.Start())
	return filepath.Dir(found[0])
}

// unreadable puts a directory in the file's place, which no reading gets over; the
// function that it gives puts the file back.
func (g *ground) unreadable(path string) func() {
	require.NoError(g.t, os.Rename(path, path+".aside"))
	require.NoError(g.t, os.Mkdir(path, 0o700))
	return func() {
		require.NoError(g.t, os.Remove(path))
		require.NoError(g.t, os.Rename(path+".aside", path))
	}
}

// A result that cannot be read for a while is not none: the work is not done again.
func TestResultThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{"result": "result.json", "end": endName} {
		g := newGround(t)
		g.opts.Limits.Backoff = 200 * time.Millisecond
		g.opts.Limits.Errors = 10
		g.control("hold-postgres", "")
		w := g.worker()
		r := g.begin()
		dir := g.finishUnreported(r, "postgres", w)
		if name == "end" {
			require.NoError(t, os.Rename(filepath.Join(dir, "result.json"), filepath.Join(dir, file)))
			require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(`{"kind":"interrupted","error":"the worker was stopped"}`), 0o600))
		}
		mend := g.unreadable(filepath.Join(dir, file))
		g.worker()
		g.eventually(10*time.Second, "an error is counted", func() bool { return outcomes(g.get(r.ID))[run.Erred] > 1 })
		require.Contains(t, g.get(r.ID).Error, "read how an earlier attempt ended")
		mend()
		r = g.waitOver(r.ID, run.Succeeded, 15*time.Second)
		g.clean(r)
		require.Zero(t, outcomes(r)[run.Crashed])
		want := 1
		if name == "end" {
			want = 2
		}
		require.Equal(t, want, g.count(r.ID, "begin", "postgres"))
	}
}

// The last stage is done, but the set is gone by the time that is told: the run has not
// succeeded. One that cannot be read for a while is told once it can.
func TestRunSucceedsOnlyIfItsSetStands(t *testing.T) {
	t.Parallel()
	for _, gone := range []bool{true, false} {
		g := newGround(t)
		g.opts.Limits.Backoff, g.opts.Limits.Errors = 200*time.Millisecond, 10
		g.control("hold-archive", "")
		w := g.worker()
		r := g.begin()
		g.waitStage(r.ID, "archive")
		// While the record is locked away the attempt commits … but Redis must answer its question.
		g.control("hold-commit", "")
		g.free("hold-archive")
		g.eventually(10*time.Second, "the commit begins", func() bool { return g.opts.told("in-commit") })
		w.kill9()
		in, err := g.directory().ReadIntent(r.ID)
		require.NoError(t, err)
		for _, f := range in.Commit.Files {
			require.NoError(t, os.Rename(filepath.Join(g.opts.Dump, f.Part), filepath.Join(g.opts.Dump, f.Final)))
		}
		staging, err := filepath.Glob(filepath.Join(g.opts.Temp, r.ID, "archive.*"))
		require.NoError(t, err)
		require.Len(t, staging, 1)
		require.NoError(t, os.WriteFile(filepath.Join(staging[0], "result.json"), []byte("null"), 0o600))
		manifest := filepath.Join(g.opts.Dump, set.ID(g.get(r.ID).Set).ManifestName())
		g.free("hold-commit")
		if gone {
			require.NoError(t, os.Remove(manifest))
			g.worker()
			r = g.waitOver(r.ID, run.Failed, 15*time.Second)
			require.Contains(t, r.Error, "is not in "+g.opts.Dump+", though it was made")
			require.NoError(t, os.Remove(filepath.Join(g.opts.Dump, in.Set.MainName())), "it may be of a set that somebody moves away just now")
			g.clean(r)
			continue
		}
		mend := g.unreadable(manifest)
		g.worker()
		g.eventually(10*time.Second, "an error is counted", func() bool { return outcomes(g.get(r.ID))[run.Erred] > 0 })
		require.Contains(t, g.get(r.ID).Error, "is a directory")
		mend()
		g.clean(g.waitOver(r.ID, run.Succeeded, 15*time.Second))
	}
}

// A lock that cannot be taken for another reason than a live attempt is an error of the
// stage, which may pass.
func TestLockThatCannotBeTaken(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	g.opts.Limits.Backoff, g.opts.Limits.Errors = 200*time.Millisecond, 10
	g.control("hold-postgres", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	w.term(t)
	mend := g.unreadable(filepath.Join(g.opts.Temp, r.ID, ".catalog-backup-owner"))
	g.worker()
	g.eventually(10*time.Second, "errors are counted", func() bool { return g.get(r.ID).Errors > 1 })
	require.Contains(t, g.get(r.ID).Error, "as the staging of run")
	mend()
	g.free("hold-postgres")
	g.clean(g.waitOver(r.ID, run.Succeeded, 15*time.Second))
}

// The answer to a claim is lost on the way, and it is asked again.
func TestClaimWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	r := g.begin()
	e := NewEngine(Params{Store: g.store, Dir: g.directory(), Node: "node1", Now: time.Now, Limits: g.opts.Limits})
	lock, err := g.directory().Lock(r.ID, true)
	require.NoError(t, err)
	defer lock.Release()
	ctx := context.Background()
	token := run.NewToken()
	_, err = g.store.Claim(ctx, r.ID, FirstStage, 1, "node1", token, time.Hour)
	require.NoError(t, err)
	r, ok, err := e.claimAs(ctx, g.get(r.ID), token)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, token, r.Token)
	require.Empty(t, outcomes(g.get(r.ID)), "nobody died")
}
