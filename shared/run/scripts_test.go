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
	t.Cleanup(func() { _ = b.rdb.FlushDB(ctx).Err(); _ = b.rdb.Close() }) // a test that runs again finds nothing of itself
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
	c, err := b.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", "token234", 6*time.Hour)
	require.NoError(b.t, err)
	require.Equal(b.t, "ok", c.Kind)
	r = b.reload(r)
	require.Equal(b.t, c.Hold.Fence, r.Fence)
	return r
}

func (b *bench) advance(r Record, next string) Record {
	b.t.Helper()
	_, err := b.Advance(ctx, r, r.Stage, r.Hold(), next, r.Stage+".x")
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
	q := b.request()
	q.Epoch = "three"
	r, err := b.Start(ctx, q)
	require.NoError(t, err)
	require.Equal(t, first, r.Epoch)
	second, err = b.Epoch(ctx, "four")
	require.NoError(t, err)
	require.Equal(t, first, second)
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
		require.NoError(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, &done, &total, &rate))
		r = b.reload(r)
		require.EqualValues(t, 5, *r.BytesDone)
		require.EqualValues(t, 10, *r.BytesTotal)
		require.EqualValues(t, 2, *r.Rate)
		b.clock = b.clock.Add(time.Minute)
		next := ""
		if i+1 < len(Stages) {
			next = Stages[i+1]
		}
		generation, err := b.Advance(ctx, r, stage, r.Hold(), next, stage+".dir")
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
		c, err := b.Claim(ctx, r.ID, stage, generation, node, "token234", time.Hour)
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
	c, err = b.Claim(ctx, "20200101t000000z-aaaaaaaa", Prepare, 1, "host1", "token234", time.Hour)
	require.NoError(t, err)
	require.Equal(t, "stale", c.Kind)
	require.Zero(t, b.rdb.Exists(ctx, runKey("20200101t000000z-aaaaaaaa")).Val(), "no ghost record")
}

func TestEndedRunIsClaimedNoMore(t *testing.T) {
	b := newBench(t)
	for _, at := range []stageAt{succeeded, failed} {
		r := at(b)
		c, err := b.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", "token234", time.Hour)
		require.NoError(t, err)
		require.Equal(t, "stale", c.Kind)
	}
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

// The worker that claims the next stage may have another limit than the one that began the run.
func TestLimitIsThatOfTheFirstClaim(t *testing.T) {
	b := newBench(t)
	r := b.claim(b.begin())
	deadline, begun := *r.Deadline, b.clock
	for i, c := range []struct {
		field, text string // what an odd hand did
		own         time.Duration
		limit       time.Duration
		deadline    time.Time
	}{
		{"", "", time.Minute, 6 * time.Hour, deadline},
		{"", "", 24 * time.Hour, 6 * time.Hour, deadline},
		{"deadline", "soon", time.Minute, 6 * time.Hour, begun.Add(9 * time.Hour)},
		{"limit", "99999999999999", 7 * time.Hour, 7 * time.Hour, begun.Add(9 * time.Hour)},
		{"limit", "", 8 * time.Hour, 8 * time.Hour, begun.Add(9 * time.Hour)}, // or by an earlier version
		{"limit", "long", time.Hour, time.Hour, begun.Add(7 * time.Hour)},
	} {
		b.clock = begun.Add(time.Duration(i+1) * time.Hour)
		r = b.advance(r, r.Stage)
		if c.field != "" {
			require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), c.field, c.text).Err())
		}
		_, err := b.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", "token234", c.own)
		require.NoError(t, err)
		r = b.reload(r)
		require.Equal(t, c.limit, r.Limit, i)
		require.Equal(t, c.deadline, *r.Deadline, i)
	}
}
