package run

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/lab"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// server is one real Redis for all tests of the package; each test has its own
// instance, since scripts and miniredis's Lua are not the same thing.
var server *lab.RedisServer

func TestMain(m *testing.M) {
	var err error
	if server, err = lab.StartRedis(lab.RedisOptions{}); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Close(); err != nil && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// bench is a store with a clock that stands still until it is moved.
type bench struct {
	*Store
	t        *testing.T
	rdb      *redis.Client
	instance string
	clock    time.Time
	ids      byte
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, rdb: server.Client(), clock: time.Date(2026, 11, 23, 18, 47, 2, 0, time.UTC)}
	t.Cleanup(func() { _ = b.rdb.Close() })
	b.instance = strings.ToLower(strings.NewReplacer("/", "-", " ", "-", ",", "").Replace(t.Name()))
	b.Store = NewStore(b.rdb, func() time.Time { return b.clock }, time.Hour)
	return b
}

var ctx = context.Background()

func (b *bench) request() Request {
	b.ids++
	sum := byte(0)
	for _, c := range []byte(b.instance) {
		sum = sum*31 + c
	}
	return Request{ID: NewID(b.clock, []byte{sum, byte(len(b.instance)), 0, 0, b.ids}), Instance: b.instance, Requested: "incremental", Type: "full", FirstStage: Prepare, Epoch: "candidate"}
}

func (b *bench) begin() Record {
	b.t.Helper()
	r, err := b.Start(ctx, b.request())
	require.NoError(b.t, err)
	return r
}

func (b *bench) reload(r Record) Record {
	b.t.Helper()
	r, err := b.Get(ctx, r.ID)
	require.NoError(b.t, err)
	return r
}

// claim makes the run's current generation that of an attempt on host1.
func (b *bench) claim(r Record) Record {
	b.t.Helper()
	r = b.reload(r)
	c, err := b.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", b.clock.Add(6*time.Hour))
	require.NoError(b.t, err)
	require.Equal(b.t, "ok", c.Kind)
	r = b.reload(r)
	require.Equal(b.t, c.Fence, r.Fence)
	return r
}

func (b *bench) advance(r Record, next string) Record {
	b.t.Helper()
	_, err := b.Advance(ctx, r, r.Stage, r.Fence, next, r.Stage+".x")
	require.NoError(b.t, err)
	return b.reload(r)
}

// locked tells which run holds the instance, and whether it is among the open ones.
func (b *bench) locked() string {
	b.t.Helper()
	id, err := b.rdb.Get(ctx, lockKey(b.instance)).Result()
	if errors.Is(err, redis.Nil) {
		open, err := b.Open(ctx, b.instance)
		require.NoError(b.t, err)
		require.Empty(b.t, open, "a run is open without the lock")
		return ""
	}
	require.NoError(b.t, err)
	open, err := b.Open(ctx, b.instance)
	require.NoError(b.t, err)
	require.Equal(b.t, []string{id}, open)
	return id
}

// snapshot is everything the record holds, to show that a refusal changed nothing.
func (b *bench) snapshot(r Record) map[string]string {
	b.t.Helper()
	h, err := b.rdb.HGetAll(ctx, runKey(r.ID)).Result()
	require.NoError(b.t, err)
	return h
}

func TestStartTakesLockAndWritesRecord(t *testing.T) {
	b := newBench(t)
	r := b.begin()
	require.Equal(t, Queued, r.State)
	require.Equal(t, Prepare, r.Stage)
	require.EqualValues(t, 1, r.Generation)
	require.Equal(t, "incremental", r.Requested)
	require.Equal(t, "full", r.Type)
	require.Equal(t, b.clock, r.Created)
	require.NotEmpty(t, r.Epoch)
	require.Nil(t, r.BytesDone)
	require.Nil(t, r.Started)
	require.Equal(t, r.ID, b.locked())

	_, err := b.Start(ctx, b.request())
	var busy *BusyError
	require.ErrorAs(t, err, &busy)
	require.Equal(t, r.ID, busy.Run.ID)
	require.True(t, busy.Known)
	current, err := b.Current(ctx, b.instance)
	require.NoError(t, err)
	require.Equal(t, r.ID, current.ID)
}

func TestStartSentTwiceIsOneRun(t *testing.T) {
	b := newBench(t)
	q := b.request()
	first, err := b.Start(ctx, q)
	require.NoError(t, err)
	again, err := b.Start(ctx, q) // what go-redis does when the answer is lost
	require.NoError(t, err)
	require.Equal(t, first, again)
}

func TestStartRefusesATakenID(t *testing.T) {
	b := newBench(t)
	r := b.begin()
	reply, err := b.Cancel(ctx, r)
	require.NoError(t, err)
	require.Equal(t, CancelClosed, reply)
	q := b.request()
	q.ID = r.ID
	_, err = b.Start(ctx, q)
	require.ErrorContains(t, err, "is taken")
	require.Empty(t, b.locked())
}

func TestStartFreesALockWithoutAnOpenRun(t *testing.T) {
	b := newBench(t)
	for name, holder := range map[string]string{"no record": "20200101t000000z-aaaaaaaa", "no run id": "garbage", "hostile": "x:y\n*"} {
		require.NoError(t, b.rdb.Set(ctx, lockKey(b.instance), holder, 0).Err(), name)
		r := b.begin()
		require.Equal(t, r.ID, b.locked(), name)
		_, err := b.Cancel(ctx, r)
		require.NoError(t, err)
	}
	over := b.begin()
	_, err := b.Cancel(ctx, over)
	require.NoError(t, err)
	require.NoError(t, b.rdb.Set(ctx, lockKey(b.instance), over.ID, 0).Err())
	require.NotEqual(t, over.ID, b.begin().ID)
}

func TestStartKeepsTheEpoch(t *testing.T) {
	b := newBench(t)
	first, err := b.Epoch(ctx, "one")
	require.NoError(t, err)
	second, err := b.Epoch(ctx, "two")
	require.NoError(t, err)
	require.Equal(t, first, second)
	require.Equal(t, first, b.begin().Epoch)
}

func TestOnlyOneOfManyStartsWins(t *testing.T) {
	b := newBench(t)
	const n = 16
	requests := make([]Request, n)
	for i := range requests {
		requests[i] = b.request()
	}
	won := make(chan bool, n)
	for _, q := range requests {
		go func() {
			_, err := b.Start(ctx, q)
			won <- err == nil
		}()
	}
	winners := 0
	for range n {
		if <-won {
			winners++
		}
	}
	require.Equal(t, 1, winners)
}

func TestGoodRunFromStartToEnd(t *testing.T) {
	b := newBench(t)
	r := b.begin()
	fence := int64(0)
	for i, stage := range Stages {
		r = b.claim(r)
		require.Equal(t, Running, r.State)
		require.Equal(t, stage, r.Stage)
		require.Equal(t, 1, r.Attempt)
		require.Equal(t, "host1", r.Node)
		require.Greater(t, r.Fence, fence)
		fence = r.Fence
		done, total, rate := int64(5), int64(10), int64(2)
		require.NoError(t, b.Progress(ctx, r.ID, r.Fence, r.Epoch, &done, &total, &rate))
		r = b.reload(r)
		require.EqualValues(t, 5, *r.BytesDone)
		require.EqualValues(t, 10, *r.BytesTotal)
		require.EqualValues(t, 2, *r.Rate)
		b.clock = b.clock.Add(time.Minute)
		next := ""
		if i+1 < len(Stages) {
			next = Stages[i+1]
		}
		generation, err := b.Advance(ctx, r, stage, r.Fence, next, stage+".dir")
		require.NoError(t, err)
		r = b.reload(r)
		require.Equal(t, stage+".dir", r.Results[stage])
		last := r.Attempts[len(r.Attempts)-1]
		require.Equal(t, Good, *last.Outcome)
		require.Equal(t, time.Minute, last.Ended.Sub(last.Started))
		require.Nil(t, last.Error)
		if next != "" {
			require.Equal(t, r.Generation, generation)
			require.Zero(t, r.Claimed)
			require.Nil(t, r.BytesDone, "a new stage has done nothing yet")
			require.Equal(t, r.ID, b.locked())
		}
	}
	require.Equal(t, Succeeded, r.State)
	require.Equal(t, "archive", r.Stage)
	require.Equal(t, b.clock, *r.Ended)
	require.Len(t, r.Attempts, len(Stages))
	require.Empty(t, b.locked())
	ttl, err := b.rdb.TTL(ctx, runKey(r.ID)).Result()
	require.NoError(t, err)
	require.InDelta(t, time.Hour.Seconds(), ttl.Seconds(), 60, "the record of an ended run is kept for a while")
	current, err := b.Current(ctx, b.instance)
	require.NoError(t, err)
	require.Equal(t, r.ID, current.ID)
}

func TestClaimRefusals(t *testing.T) {
	b := newBench(t)
	r := b.begin()
	claim := func(stage string, generation int64, node string) Claim {
		t.Helper()
		before := b.snapshot(r)
		c, err := b.Claim(ctx, r.ID, stage, generation, node, b.clock)
		require.NoError(t, err)
		if c.Kind != "ok" {
			require.Equal(t, before, b.snapshot(r), "a refusal changes nothing")
		}
		return c
	}
	require.Equal(t, "stale", claim("postgres", 1, "host1").Kind)
	require.Equal(t, "stale", claim(Prepare, 2, "host1").Kind)
	require.Equal(t, "stale", claim(Prepare, 0, "host1").Kind)
	r = b.claim(r)
	require.Equal(t, "claimed", claim(Prepare, 1, "host1").Kind)
	c := claim(Prepare, 1, "host2")
	require.Equal(t, "elsewhere", c.Kind)
	require.Equal(t, "host1", c.Node)
	_, err := b.Cancel(ctx, r)
	require.NoError(t, err)
	n, err := b.Anew(ctx, r, 1)
	require.NoError(t, err)
	require.Equal(t, "cancel", claim(Prepare, n.Generation, "host1").Kind)
	_, err = b.Stop(ctx, r, 0, Cancelled, "cancelled", true)
	require.NoError(t, err)
	require.Equal(t, "stale", claim(Prepare, n.Generation, "host1").Kind)
	c, err = b.Claim(ctx, "20200101t000000z-aaaaaaaa", Prepare, 1, "host1", b.clock)
	require.NoError(t, err)
	require.Equal(t, "stale", c.Kind)
	require.Zero(t, b.rdb.Exists(ctx, runKey("20200101t000000z-aaaaaaaa")).Val(), "no ghost record")
}

func TestDeadlineIsThatOfTheFirstClaim(t *testing.T) {
	b := newBench(t)
	r := b.claim(b.begin())
	deadline := *r.Deadline
	require.Equal(t, b.clock.Add(6*time.Hour), deadline)
	b.clock = b.clock.Add(time.Hour)
	r = b.claim(b.advance(r, "postgres"))
	require.Equal(t, deadline, *r.Deadline)
	require.Equal(t, b.clock.Add(-time.Hour), *r.Started)
}

// stageAt says where the run stands when a transition is tried.
type stageAt func(b *bench) Record

var (
	queued  stageAt = func(b *bench) Record { return b.begin() }
	claimed stageAt = func(b *bench) Record { return b.claim(b.begin()) }
	between stageAt = func(b *bench) Record { return b.advance(b.claim(b.begin()), "postgres") }
	retried stageAt = func(b *bench) Record {
		r := claimed(b)
		_, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "no answer", Budget: 3, NotBefore: b.clock.Add(time.Minute)})
		require.NoError(b.t, err)
		return b.reload(r)
	}
	committed stageAt = func(b *bench) Record {
		r := claimed(b)
		require.NoError(b.t, b.Holds(ctx, r.ID, r.Fence, r.Epoch, true))
		return b.reload(r)
	}
	failing stageAt = func(b *bench) Record {
		r := claimed(b)
		n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "disk full", Budget: 9, Permanent: true})
		require.NoError(b.t, err)
		require.Equal(b.t, "cleanup", n.Kind)
		return b.reload(r)
	}
	cleaning  stageAt = func(b *bench) Record { return b.claim(failing(b)) }
	succeeded stageAt = func(b *bench) Record { return b.advance(claimed(b), "") }
	failed    stageAt = func(b *bench) Record {
		r := cleaning(b)
		require.NoError(b.t, b.Cleaned(ctx, r, r.Fence))
		return b.reload(r)
	}
)

func TestCancelInEveryPhase(t *testing.T) {
	for name, c := range map[string]struct {
		at    stageAt
		reply string
		state State // right after
		end   State // after the worker did its part
	}{
		"queued":    {queued, CancelClosed, Cancelled, Cancelled},
		"claimed":   {claimed, CancelAsked, Running, Cancelled},
		"between":   {between, CancelAsked, Running, Cancelled},
		"retried":   {retried, CancelAsked, Running, Cancelled},
		"committed": {committed, CancelLate, Running, Succeeded},
		"failing":   {failing, CancelAsked, Running, Failed},
		"cleaning":  {cleaning, CancelAsked, Running, Failed},
		"succeeded": {succeeded, CancelOver, Succeeded, Succeeded},
		"failed":    {failed, CancelOver, Failed, Failed},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			r := c.at(b)
			reply, err := b.Cancel(ctx, r)
			require.NoError(t, err)
			require.Equal(t, c.reply, reply)
			r = b.reload(r)
			require.Equal(t, c.state, r.State)
			r = b.finish(r)
			require.Equal(t, c.end, r.State)
			require.Empty(t, b.locked())
			if c.end != Succeeded && c.reply != CancelClosed {
				require.Equal(t, 1, r.Cleanups)
			}
			reply, err = b.Cancel(ctx, r)
			require.NoError(t, err)
			require.Equal(t, CancelOver, reply)
		})
	}
}

// finish plays the worker until the run is over.
func (b *bench) finish(r Record) Record {
	b.t.Helper()
	for range 20 {
		r = b.reload(r)
		if r.State.Over() {
			return r
		}
		var err error
		switch {
		case r.Claimed != r.Generation:
			var c Claim
			if c, err = b.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", b.clock); c.Kind == "cancel" {
				_, err = b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false)
			}
		case r.Stage == Cleanup:
			err = b.Cleaned(ctx, r, r.Fence)
		default:
			if _, err = b.Advance(ctx, r, r.Stage, r.Fence, "", "x"); errors.Is(err, ErrCancel) {
				_, err = b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false)
			}
		}
		require.NoError(b.t, err)
	}
	b.t.Fatalf("the run does not end: %+v", r)
	return r
}

func TestAttemptIsToldOfACancel(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	_, err := b.Cancel(ctx, r)
	require.NoError(t, err)
	require.ErrorIs(t, b.Progress(ctx, r.ID, r.Fence, r.Epoch, nil, nil, nil), ErrCancel)
	require.ErrorIs(t, b.Holds(ctx, r.ID, r.Fence, r.Epoch, true), ErrCancel)
	require.False(t, b.reload(r).Committed, "the commit is refused after a cancel")
	_, err = b.Advance(ctx, r, r.Stage, r.Fence, "postgres", "x")
	require.ErrorIs(t, err, ErrCancel)
	n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Budget: 3})
	require.NoError(t, err)
	require.Equal(t, "cancel", n.Kind)
	require.Equal(t, 0, b.reload(r).Errors)
	n, err = b.Stop(ctx, r, r.Generation, Cancelled, "cancelled", false)
	require.NoError(t, err)
	require.Equal(t, "cleanup", n.Kind)
	r = b.reload(r)
	require.Equal(t, Running, r.State, "running until the cleanup is over")
	require.Equal(t, Cancelled, r.Ending)
	require.Equal(t, Stopped, *r.Attempts[0].Outcome)
}

func TestCleanupIsNotCancelled(t *testing.T) {
	b := newBench(t)
	r := cleaning(b)
	_, err := b.Cancel(ctx, r)
	require.NoError(t, err)
	require.NoError(t, b.Progress(ctx, r.ID, r.Fence, r.Epoch, nil, nil, nil))
	require.NoError(t, b.Holds(ctx, r.ID, r.Fence, r.Epoch, false))
	n, err := b.Stop(ctx, r, 0, Cancelled, "cancelled", false)
	require.NoError(t, err)
	require.Equal(t, "stale", n.Kind)
	require.NoError(t, b.Cleaned(ctx, r, r.Fence))
	require.Equal(t, Failed, b.reload(r).State)
}

func TestOlderHolderMayTouchNothing(t *testing.T) {
	for name, c := range map[string]stageAt{
		"after a crash": func(b *bench) Record {
			old := claimed(b)
			_, err := b.Again(ctx, old, old.Stage, old.Generation, Retry{Kind: Crashed, Error: "died", Budget: 5})
			require.NoError(b.t, err)
			b.claim(old)
			return old
		},
		"after a failure": func(b *bench) Record { r := failing(b); r.Fence = r.Attempts[0].Fence; r.Stage = Prepare; return r },
		"after the end":   func(b *bench) Record { return succeeded(b) },
		"in cleanup":      func(b *bench) Record { r := cleaning(b); r.Fence--; return r },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			old := c(b)
			before := b.snapshot(old)
			one := int64(1)
			require.ErrorIs(t, b.Progress(ctx, old.ID, old.Fence, old.Epoch, &one, &one, &one), ErrFenced)
			require.ErrorIs(t, b.Holds(ctx, old.ID, old.Fence, old.Epoch, true), ErrFenced)
			require.ErrorIs(t, b.Note(ctx, old.ID, old.Fence, Facts{Set: "x", Warnings: []string{"w"}}), ErrFenced)
			_, err := b.Advance(ctx, old, old.Stage, old.Fence, "", "x")
			require.ErrorIs(t, err, ErrFenced)
			require.ErrorIs(t, b.Cleaned(ctx, old, old.Fence), ErrFenced)
			require.Equal(t, before, b.snapshot(old))
		})
	}
}

func TestOlderGenerationMayDecideNothing(t *testing.T) {
	b := newBench(t)
	old := claimed(b)
	_, err := b.Again(ctx, old, old.Stage, old.Generation, Retry{Kind: Crashed, Error: "died", Budget: 5})
	require.NoError(t, err)
	before := b.snapshot(old)
	n, err := b.Again(ctx, old, old.Stage, old.Generation, Retry{Kind: Crashed, Error: "died", Budget: 5})
	require.NoError(t, err)
	require.Equal(t, "stale", n.Kind, "a death is counted once")
	n, err = b.Stop(ctx, old, old.Generation, Failed, "late", false)
	require.NoError(t, err)
	require.Equal(t, "stale", n.Kind)
	n, err = b.Anew(ctx, old, old.Generation)
	require.NoError(t, err)
	require.Equal(t, "stale", n.Kind)
	require.Equal(t, before, b.snapshot(old))
}

func TestBudgetsAreByKind(t *testing.T) {
	for kind, count := range map[Outcome]func(Record) int{
		Erred:       func(r Record) int { return r.Errors },
		Crashed:     func(r Record) int { return r.Crashes },
		Interrupted: func(r Record) int { return r.Interruptions },
	} {
		t.Run(string(kind), func(t *testing.T) {
			b := newBench(t)
			r := b.begin()
			const budget = 2
			for i := 1; i <= budget; i++ {
				r = b.claim(r)
				require.Equal(t, i, r.Attempt)
				n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: kind, Error: "why", Budget: budget})
				require.NoError(t, err)
				require.Equal(t, "again", n.Kind)
				require.Equal(t, r.Generation+1, n.Generation)
				r = b.reload(r)
				require.Equal(t, i, count(r))
				require.Equal(t, i, r.Errors+r.Crashes+r.Interruptions, "only its own kind")
				require.Equal(t, "why", r.Error)
			}
			r = b.claim(r)
			n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: kind, Error: "the last one", Budget: budget})
			require.NoError(t, err)
			require.Equal(t, "cleanup", n.Kind)
			r = b.reload(r)
			require.Equal(t, Cleanup, r.Stage)
			require.Equal(t, Failed, r.Ending)
			require.Equal(t, Running, r.State)
			require.Equal(t, "the last one", r.Error)
			require.Equal(t, 0, r.Errors+r.Crashes+r.Interruptions, "the cleanup begins with a new count")
			require.Equal(t, r.ID, b.locked(), "the lock is held until the cleanup is over")
			for _, a := range r.Attempts {
				require.Equal(t, kind, *a.Outcome)
			}
		})
	}
}

func TestStagesDoNotShareABudget(t *testing.T) {
	b := newBench(t)
	r := b.claim(retried(b))
	require.Equal(t, 1, r.Errors)
	require.Equal(t, 2, r.Attempt)
	r = b.advance(r, "postgres")
	require.Zero(t, r.Errors)
	require.Zero(t, r.Attempt)
	require.Empty(t, r.Error, "a stage that went well has no error")
}

func TestRetryWaits(t *testing.T) {
	b := newBench(t)
	r := retried(b)
	require.Equal(t, b.clock.Add(time.Minute), *r.NotBefore)
	n, err := b.Anew(ctx, r, r.Generation)
	require.NoError(t, err)
	require.Equal(t, "again", n.Kind)
	r = b.reload(r)
	require.Equal(t, n.Generation, r.Generation)
	require.NotNil(t, r.NotBefore, "a new task waits as the old one did")
	require.Equal(t, 1, r.Errors, "and no failure is counted")
	require.Nil(t, b.claim(r).NotBefore)
}

func TestCleanupIsTriedForEver(t *testing.T) {
	b := newBench(t)
	r := cleaning(b)
	for range 10 {
		n, err := b.Again(ctx, r, Cleanup, r.Generation, Retry{Kind: Erred, Error: "cannot remove", Budget: 1, Permanent: true})
		require.NoError(t, err)
		require.Equal(t, "again", n.Kind)
		r = b.claim(r)
	}
	require.Equal(t, "disk full", r.Error, "why the run failed stays")
	require.NoError(t, b.Cleaned(ctx, r, r.Fence))
	r = b.reload(r)
	require.Equal(t, Failed, r.State)
	require.Equal(t, 1, r.Cleanups)
	require.ErrorIs(t, b.Cleaned(ctx, r, r.Fence), ErrFenced)
	require.Equal(t, 1, b.reload(r).Cleanups, "exactly once")
}

func TestCleanedOnlyInCleanup(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.ErrorIs(t, b.Cleaned(ctx, r, r.Fence), ErrFenced)
	require.Equal(t, r.ID, b.locked())
}

func TestCleanupCannotMakeARunGood(t *testing.T) {
	b := newBench(t)
	r := cleaning(b)
	_, err := b.Advance(ctx, r, Cleanup, r.Fence, "", "x")
	require.ErrorIs(t, err, ErrFenced)
}

func TestStop(t *testing.T) {
	for name, c := range map[string]struct {
		at    stageAt
		force bool
		kind  string
		state State
	}{
		"nobody had begun":      {queued, false, "closed", Failed},
		"in an attempt":         {claimed, false, "cleanup", Running},
		"between two stages":    {between, false, "cleanup", Running},
		"in its cleanup":        {cleaning, false, "stale", Running},
		"over":                  {succeeded, false, "stale", Succeeded},
		"forced in an attempt":  {claimed, true, "closed", Failed},
		"forced in its cleanup": {cleaning, true, "closed", Failed},
		"forced when over":      {succeeded, true, "stale", Succeeded},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			r := c.at(b)
			n, err := b.Stop(ctx, r, 0, Failed, "node lost", c.force)
			require.NoError(t, err)
			require.Equal(t, c.kind, n.Kind)
			after := b.reload(r)
			require.Equal(t, c.state, after.State)
			if c.state.Over() {
				require.Empty(t, b.locked())
			}
			if c.kind == "closed" {
				require.NotEmpty(t, after.Error)
				require.Greater(t, after.Fence, r.Fence, "who still runs may touch nothing")
				require.Greater(t, after.Generation, r.Generation)
				for _, a := range after.Attempts {
					require.NotNil(t, a.Ended)
				}
			}
		})
	}
}

func TestCommitClosesTheDoor(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.NoError(t, b.Holds(ctx, r.ID, r.Fence, r.Epoch, false))
	require.False(t, b.reload(r).Committed)
	require.NoError(t, b.Holds(ctx, r.ID, r.Fence, r.Epoch, true))
	reply, err := b.Cancel(ctx, r)
	require.NoError(t, err)
	require.Equal(t, CancelLate, reply)
	require.NoError(t, b.Progress(ctx, r.ID, r.Fence, r.Epoch, nil, nil, nil))
	require.Equal(t, Succeeded, b.advance(r, "").State)
}

// Cancel and commit race: exactly one of them wins, whoever it is.
func TestCancelRacesCommit(t *testing.T) {
	b := newBench(t)
	for range 30 {
		r := claimed(b)
		committed := make(chan error, 1)
		go func() { committed <- b.Holds(ctx, r.ID, r.Fence, r.Epoch, true) }()
		reply, err := b.Cancel(ctx, r)
		require.NoError(t, err)
		err = <-committed
		switch reply {
		case CancelLate:
			require.NoError(t, err)
		case CancelAsked:
			require.ErrorIs(t, err, ErrCancel)
		default:
			t.Fatalf("cancel said %q", reply)
		}
		b.finish(r)
	}
}

// Cancel and claim race: either nobody begins, or the attempt is told.
func TestCancelRacesClaim(t *testing.T) {
	b := newBench(t)
	for range 30 {
		r := b.begin()
		claims := make(chan Claim, 1)
		go func() {
			c, _ := b.Claim(ctx, r.ID, Prepare, 1, "host1", b.clock)
			claims <- c
		}()
		reply, err := b.Cancel(ctx, r)
		require.NoError(t, err)
		if c := <-claims; c.Kind == "ok" {
			require.Equal(t, CancelAsked, reply)
			require.ErrorIs(t, b.Progress(ctx, r.ID, c.Fence, r.Epoch, nil, nil, nil), ErrCancel)
		} else {
			require.Equal(t, "stale", c.Kind)
			require.Equal(t, CancelClosed, reply)
		}
		require.Equal(t, Cancelled, b.finish(r).State)
	}
}

func TestNoteKeepsWhatItIsNotTold(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	nasty := []string{"a \"quoted\" \\ thing", "line\nbreak", "\x00\x1b[31m", "ünïcode ☃", ""}
	require.NoError(t, b.Note(ctx, r.ID, r.Fence, Facts{Set: "202109232027_10-0-0-147420", Type: "full", Warnings: nasty}))
	require.NoError(t, b.Note(ctx, r.ID, r.Fence, Facts{Archives: []string{"/a", "/b"}, Manifest: "/m"}))
	r = b.reload(r)
	require.Equal(t, nasty, r.Warnings)
	require.Equal(t, []string{"/a", "/b"}, r.Archives)
	require.Equal(t, "/m", r.Manifest)
	require.Equal(t, "202109232027_10-0-0-147420", r.Set)
	require.NoError(t, b.Note(ctx, r.ID, r.Fence, Facts{Warnings: []string{}}))
	require.Empty(t, b.reload(r).Warnings)
}

func TestNastyErrorTexts(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	text := "could not read \"/x/\\y\"\n\tü \x1b[2J ' ]] .. redis.call('FLUSHALL') --"
	_, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: text, Budget: 3})
	require.NoError(t, err)
	r = b.reload(r)
	require.Equal(t, text, r.Error)
	require.Equal(t, text, *r.Attempts[0].Error)
	require.Equal(t, 1, r.Attempts[0].Attempt)
	require.Equal(t, "host1", r.Attempts[0].Node)
}

func TestEmptiedRedisStopsAnAttemptAndLeavesNoGhost(t *testing.T) {
	alone := lab.Redis(t) // emptied here, so it is not the one of the other tests
	b := newBench(t)
	b.rdb = alone.Client()
	defer b.rdb.Close()
	b.Store = NewStore(b.rdb, func() time.Time { return b.clock }, time.Hour)
	r := claimed(b)
	require.NoError(t, alone.FlushAll())
	one := int64(1)
	empty := func() {
		t.Helper()
		require.ErrorIs(t, b.Progress(ctx, r.ID, r.Fence, r.Epoch, &one, nil, nil), ErrEpoch)
		require.ErrorIs(t, b.Holds(ctx, r.ID, r.Fence, r.Epoch, true), ErrEpoch)
		require.ErrorIs(t, b.Note(ctx, r.ID, r.Fence, Facts{Set: "x"}), ErrFenced)
		_, err := b.Advance(ctx, r, r.Stage, r.Fence, "", "x")
		require.ErrorIs(t, err, ErrFenced)
		n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Budget: 1})
		require.NoError(t, err)
		require.Equal(t, "stale", n.Kind)
		n, err = b.Stop(ctx, r, 0, Failed, "e", true)
		require.NoError(t, err)
		require.Equal(t, "stale", n.Kind)
		n, err = b.Anew(ctx, r, r.Generation)
		require.NoError(t, err)
		require.Equal(t, "stale", n.Kind)
		reply, err := b.Cancel(ctx, r)
		require.NoError(t, err)
		require.Equal(t, CancelOver, reply)
		require.ErrorIs(t, b.Cleaned(ctx, r, r.Fence), ErrFenced)
		_, err = b.Get(ctx, r.ID)
		require.ErrorIs(t, err, ErrNotFound)
	}
	empty()
	require.Zero(t, b.rdb.DBSize(ctx).Val(), "nothing was written into the emptied Redis")
	epoch, err := b.Epoch(ctx, "another")
	require.NoError(t, err)
	require.Equal(t, "another", epoch)
	empty()
	_, err = b.Current(ctx, b.instance)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestReleaseLock(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.ReleaseLock(ctx, b.instance), "there is none")
	r := b.begin()
	require.NoError(t, b.ReleaseLock(ctx, b.instance))
	require.Equal(t, r.ID, b.locked(), "an open run keeps it")
	require.NoError(t, b.rdb.Del(ctx, runKey(r.ID)).Err())
	require.NoError(t, b.ReleaseLock(ctx, b.instance))
	require.Empty(t, b.locked())
}

func TestEndOfAnOldRunLeavesAnotherLock(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.NoError(t, b.rdb.Set(ctx, lockKey(b.instance), "20200101t000000z-aaaaaaaa", 0).Err())
	b.advance(r, "")
	require.Equal(t, "20200101t000000z-aaaaaaaa", b.rdb.Get(ctx, lockKey(b.instance)).Val())
}

func TestPresence(t *testing.T) {
	b := newBench(t)
	live, err := b.Workers(ctx, b.instance)
	require.NoError(t, err)
	require.Empty(t, live)
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w1", Node: "host1", PID: 7}))
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w2", Node: "host2"}))
	require.NoError(t, b.rdb.Del(ctx, workerKey(b.instance, "w2")).Err()) // as if it had expired
	live, err = b.Workers(ctx, b.instance)
	require.NoError(t, err)
	require.Len(t, live, 1)
	require.Equal(t, 7, live[0].PID)
	seen, err := b.NodeSeen(ctx, b.instance, "host2")
	require.NoError(t, err)
	require.Equal(t, b.clock, seen)
	require.NoError(t, b.SignOut(ctx, b.instance, "w1"))
	live, err = b.Workers(ctx, b.instance)
	require.NoError(t, err)
	require.Empty(t, live)
}

func TestOneLeader(t *testing.T) {
	b := newBench(t)
	lead := func(w string) bool {
		ok, err := b.Lead(ctx, b.instance, w, time.Minute)
		require.NoError(t, err)
		return ok
	}
	require.True(t, lead("w1"))
	require.True(t, lead("w1"))
	require.False(t, lead("w2"))
	require.NoError(t, b.rdb.Del(ctx, leaderKey(b.instance)).Err())
	require.True(t, lead("w2"))
}

func TestPublished(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.Publish(ctx, b.instance, Published{Node: "host1", Dir: "/old"}))
	require.NoError(t, b.Publish(ctx, b.instance, Published{Node: "host1", Dir: "/d1", Foreign: []string{"f"}}))
	require.NoError(t, b.Publish(ctx, b.instance, Published{Node: "host2", Dir: "/d2"}))
	all, err := b.Published(ctx, b.instance)
	require.NoError(t, err)
	dirs := []string{}
	for _, p := range all {
		dirs = append(dirs, p.Dir)
	}
	require.ElementsMatch(t, []string{"/d1", "/d2"}, dirs)
}

func TestIDs(t *testing.T) {
	id := NewID(time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("x", 3600)), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 9})
	require.Equal(t, "20260102t020405z-77777777", id)
	require.True(t, ValidID(id))
	for _, bad := range []string{"", "../x", id + "\n", " " + id, strings.ToUpper(id), id + "/..", "20260102t020405z-7777777"} {
		require.False(t, ValidID(bad), "%q", bad)
		_, err := NewStore(nil, nil, 0).Get(ctx, bad)
		require.ErrorIs(t, err, ErrNotFound)
	}
}

func TestRecentAndCurrentWithRecordsThatExpired(t *testing.T) {
	b := newBench(t)
	first := succeeded(b)
	b.clock = b.clock.Add(time.Minute)
	second := succeeded(b)
	ids, err := b.Recent(ctx, b.instance, 5)
	require.NoError(t, err)
	require.Equal(t, []string{second.ID, first.ID}, ids)
	require.NoError(t, b.rdb.Del(ctx, runKey(second.ID)).Err())
	r, err := b.Current(ctx, b.instance)
	require.NoError(t, err)
	require.Equal(t, first.ID, r.ID)
}
