package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
)

// One test for each bound of docs/architecture.md: the run is closed in time, its error
// says why and what is left, the lock is free for a run that succeeds beside what hangs,
// and in the end nothing is left.

// impatient is a ground whose bounds are short.
func impatient(t *testing.T) *ground {
	t.Parallel()
	g := newGround(t)
	g.opts.Limits.CloseAfter = time.Second
	g.opts.StopWithin = 2 * time.Second
	return g
}

func (g *ground) cancel(r run.Record) {
	g.t.Helper()
	_, err := g.store.Cancel(context.Background(), g.get(r.ID))
	require.NoError(g.t, err)
}

// failInPostgres begins a run that fails for good in its second stage, with what the
// word tells of the cleanup.
func (g *ground) failInPostgres(word string) run.Record {
	g.t.Helper()
	g.control("hold-postgres", "")
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	g.control("perm-postgres", "")
	g.control(word, "")
	g.free("hold-postgres")
	g.eventually(5*time.Second, "the stage fails", func() bool { return g.count(r.ID, "over", "postgres") > 0 })
	g.free("perm-postgres")
	return r
}

// gone asserts that nothing is left of a run that made no set. A later run of the same
// minute may have got the id of its set.
func (g *ground) gone(r run.Record) {
	g.t.Helper()
	require.NotEqual(g.t, run.Succeeded, r.State)
	r.Set = ""
	g.clean(r)
}

// another run succeeds, whatever the last one left.
func (g *ground) another() {
	g.t.Helper()
	g.waitOver(g.begin().ID, run.Succeeded, 15*time.Second)
}

// A frozen worker beside a live one holds the lock of its run. Cancelled, the run is
// closed; the worker that wakes finds that it may do nothing, and what it left is swept.
func TestCancelEndsTheRunOfAFrozenWorker(t *testing.T) {
	g := impatient(t)
	g.control("hold-postgres", "")
	a := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	a.signal(syscall.SIGSTOP)
	g.worker()
	g.cancel(r)
	r = g.waitOver(r.ID, run.Cancelled, 15*time.Second)
	require.Contains(t, r.Error, "cancelled; closed, since its cleanup had not ended after 1s")
	require.Contains(t, r.Error, "frozen or hangs holds the lock")
	require.Contains(t, r.Error, g.opts.Dump)
	g.free("hold-postgres")
	g.another()
	require.DirExists(t, filepath.Join(g.opts.Temp, r.ID), "its lock is held")
	a.signal(syscall.SIGCONT)
	g.eventually(5*time.Second, "the attempt ends", func() bool { return g.count(r.ID, "over", "postgres") == 1 })
	g.gone(r)
	require.Equal(t, run.Cancelled, g.get(r.ID).State)
}

func TestTimeLimitEndsTheRunOfAFrozenWorker(t *testing.T) {
	g := impatient(t)
	g.opts.Limits.Timeout = 2 * time.Second
	g.control("hold-eventbus", "")
	a := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "eventbus")
	a.signal(syscall.SIGSTOP)
	require.NoError(t, g.rdb.HDel(context.Background(), "catalog-backup:run:"+r.ID, "deadline").Err(), "an odd hand: there is a bound all the same")
	g.worker()
	r = g.waitOver(r.ID, run.Failed, 20*time.Second)
	require.Contains(t, r.Error, "chef_timeout")
	require.Contains(t, r.Error, "closed, since")
	g.free("hold-eventbus")
	g.another()
	a.signal(syscall.SIGCONT)
	g.gone(r)
}

// A worker that was frozen between the leave to commit and the manifest's rename: the
// run is closed, and the manifest does not come later.
func TestFrozenInTheCommit(t *testing.T) {
	g := impatient(t)
	g.control("hold-commit", "")
	a := g.worker()
	r := g.begin()
	g.eventually(10*time.Second, "the commit begins", func() bool { return g.opts.told("in-commit") })
	a.signal(syscall.SIGSTOP)
	g.free("hold-commit")
	g.worker()
	r = g.waitOver(r.ID, run.Failed, 20*time.Second)
	require.Contains(t, r.Error, "the attempt that makes the set final has given no sign")
	g.another()
	a.signal(syscall.SIGCONT)
	g.eventually(5*time.Second, "the attempt ends", func() bool { return g.count(r.ID, "over", "archive") == 1 })
	require.Zero(t, g.count(r.ID, "end", "archive"))
	g.gone(r)
}

// One that was frozen right after it: the run is told as what it is.
func TestFrozenBehindTheCommit(t *testing.T) {
	g := impatient(t)
	a := g.worker()
	g.control("hold-commit", "")
	r := g.begin()
	g.eventually(10*time.Second, "the commit begins", func() bool { return g.opts.told("in-commit") })
	a.signal(syscall.SIGSTOP)
	g.free("hold-commit")
	in, err := g.directory().ReadIntent(r.ID)
	require.NoError(t, err)
	for _, f := range in.Commit.Files { // as the worker would have done
		require.NoError(t, os.Rename(filepath.Join(g.opts.Dump, f.Part), filepath.Join(g.opts.Dump, f.Final)))
	}
	g.worker()
	r = g.waitOver(r.ID, run.Succeeded, 20*time.Second)
	require.Equal(t, filepath.Join(g.opts.Dump, set.ID(r.Set).ManifestName()), r.Manifest)
	a.kill9()
	g.clean(r)
}

// A stage that ignores its context: neither cancel nor SIGTERM ends it.
func TestStageThatIgnoresItsContext(t *testing.T) {
	g := impatient(t)
	g.control("hold-postgres", "")
	g.control("ignore-postgres", "")
	g.opts.Limits.CloseAfter = 300 * time.Millisecond
	w := g.worker()
	var stuck []run.Record
	for range 5 { // more than asynq has slots
		r := g.begin()
		g.waitStage(r.ID, "postgres")
		g.cancel(r)
		stuck = append(stuck, g.waitOver(r.ID, run.Cancelled, 15*time.Second))
	}
	require.Contains(t, stuck[0].Error, "closed, since")
	begin := time.Now()
	w.term(t)
	require.Less(t, time.Since(begin), 10*time.Second)
	require.Contains(t, w.log.String(), "attempts (stage postgres of run "+stuck[0].ID)
	g.free("hold-postgres")
	g.worker()
	g.another()
	for _, r := range stuck {
		g.gone(r)
	}
}

func TestCleanupThatFailsForEver(t *testing.T) {
	g := impatient(t)
	g.worker()
	r := g.waitOver(g.failInPostgres("fail-cleanup").ID, run.Failed, 15*time.Second)
	require.Contains(t, r.Error, "fails for good with s3cret; closed, since its cleanup had not ended after 1s (queue.close_after): ")
	require.Contains(t, r.Error, "an intent that cannot be read")
	require.Contains(t, r.Error, "is in no later run's way")
	next := g.begin() // the lock is free
	g.free("fail-cleanup")
	g.clean(g.waitOver(next.ID, run.Succeeded, 15*time.Second))
	g.gone(r)
}

func TestCleanupThatHangs(t *testing.T) {
	g := impatient(t)
	g.control("hold-postgres", "")
	g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	g.control("hang-cleanup", "")
	g.cancel(r)
	r = g.waitOver(r.ID, run.Cancelled, 15*time.Second)
	require.Contains(t, r.Error, "frozen or hangs holds the lock")
	g.free("hold-postgres")
	next := g.begin() // waits for no lock, but its stages ask for what hangs, too
	g.free("hang-cleanup")
	g.clean(g.waitOver(next.ID, run.Succeeded, 15*time.Second))
	g.gone(r)
}

// A disk that does not answer: the one that a link in the manifest's place leads to.
func TestDiskThatHangs(t *testing.T) {
	g := impatient(t)
	g.control("hold-postgres", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	link := filepath.Join(g.opts.Dump, set.ID(g.get(r.ID).Set).ManifestName())
	far, _ := deadDisk(t)
	require.NoError(t, os.Symlink(filepath.Join(far, "m"), link))
	g.cancel(r)
	r = g.waitOver(r.ID, run.Cancelled, 20*time.Second)
	require.Contains(t, r.Error, "the file system does not answer")
	w.term(t)
	require.NoError(t, os.Remove(link))
	g.free("hold-postgres")
	g.worker()
	g.another()
	g.gone(r)
}

// The dump directory moved away, or unmounted.
func TestDumpDirectoryMovedAway(t *testing.T) {
	g := impatient(t)
	g.control("hold-eventbus", "")
	g.worker()
	r := g.begin()
	g.waitStage(r.ID, "eventbus")
	require.NoError(t, os.Rename(g.opts.Dump, g.opts.Dump+".away"))
	g.cancel(r)
	r = g.waitOver(r.ID, run.Cancelled, 15*time.Second)
	require.Contains(t, r.Error, "no such file or directory")
	require.NoError(t, os.Rename(g.opts.Dump+".away", g.opts.Dump))
	g.free("hold-eventbus")
	g.another()
	g.gone(r)
}

// A run that nobody may begin, since somebody paused its queue.
func TestRunThatNobodyBegins(t *testing.T) {
	g := impatient(t)
	g.opts.Limits.Timeout = time.Second
	g.worker()
	in := asynq.NewInspectorFromRedisClient(g.rdb)
	require.NoError(t, in.PauseQueue("catalog"))
	r := g.waitOver(g.begin().ID, run.Failed, 15*time.Second)
	require.Contains(t, r.Error, "no worker began the run")
	require.NoError(t, in.UnpauseQueue("catalog"))
	g.another()
}

// The run's node is away in the middle of its end: the leader, on another node, closes it
// without a look, long before the node counts as lost.
func TestOtherNodeClosesTheRun(t *testing.T) {
	g := impatient(t)
	g.control("hold-postgres", "")
	w := g.worker()
	r := g.begin()
	g.waitStage(r.ID, "postgres")
	w.kill9()
	g.worker(func(o *workerOptions) { o.Node, o.Dump, o.Temp = "node2", t.TempDir(), t.TempDir() })
	g.cancel(r)
	r = g.waitOver(r.ID, run.Cancelled, 15*time.Second)
	require.Contains(t, r.Error, "no worker of node node1 closed it")
	g.free("hold-postgres")
	g.another()
	g.worker()
	g.gone(r)
}

// What does not end when the worker is stopped is named, and not waited for.
func TestShutdownWaitsOnlySoLong(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	never, ended := make(chan struct{}), false
	late := within(ctx, map[string]func(){"a verification": func() { <-never }, "the reconciler": func() { ended = true }})
	require.Equal(t, []string{"a verification"}, late)
	require.True(t, ended)
	close(never)
}
