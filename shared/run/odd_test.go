package run

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// oddFields are fields of a record as no version writes them.
var oddFields = map[string][]string{
	"attempt:1": {"no JSON", "null", "[]", "7", `{"stage":5}`, `{"stage":"prepare","attempt":1e999}`, `{"stage":"prepare","started":{}}`, `{"stage":"prepare","attempt":"one"}`},
	"attempt:x": {"{}"}, "attempt:99999999999999999999": {"{}"},
	"generation": {"", "abc", "-1", "1.5", "nan", "1e400", "99999999999999999999"},
	"claimed":    {"", "abc", "-1"}, "fence": {"", "abc", "nan", "1.5"}, "holder": {"", "abc", "x-y", "1-", "01-token234", "+1-token234"},
	"attempt": {"", "inf"}, "errors": {"abc", ""}, "crashes": {"abc"}, "interruptions": {"1e400"}, "cleanups": {"often"},
	"created": {"", "yesterday"}, "updated": {"", "yesterday", "2026-01-01T00:00:1.2.3Z"}, "started": {"yesterday"}, "deadline": {"", "never"},
	"not_before": {"soon"}, "ending_since": {"x"}, "cancel_since": {"x"}, "bytes_done": {"many"}, "bytes_total": {"-5"}, "rate": {"fast"},
	"warnings": {"text", "{}", "[1]", "null"}, "notes": {"7"}, "archives": {`["a"`}, "result:prepare": {"../../etc", "a/b"},
	"state": {"banana"}, "ending": {"banana"}, "cancel": {"yes"}, "committed": {"yes"}, "id": {"", "other"}, "tick": {"x\n"},
}

// A field of another shape stops no run: whatever comes next, it ends, is counted and frees the lock.
func TestOddFieldsStopNoRun(t *testing.T) {
	ends := map[string]func(b *bench, r Record){
		"well":      func(b *bench, r Record) { b.advance(b.claim(r), "") },
		"badly":     func(b *bench, r Record) { fail(b, r); b.cleanUp(b.reload(r), false) },
		"by a stop": func(b *bench, r Record) { must(b.Stop(ctx, r, 0, Failed, "closed", true)) },
	}
	for field, values := range oddFields {
		for _, v := range values {
			for how, end := range ends {
				b := newBench(t)
				r := b.claim(b.begin())
				require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), field, v).Err())
				note := field + "=" + v + ", ends " + how
				r, err := b.Get(ctx, r.ID)
				require.NoError(t, err, note)
				if v != "" && field != "tick" && field != "id" && field != "cancel" && field != "committed" {
					require.NotEmpty(t, r.Odd, note)
				}
				require.False(t, r.State.Over(), note)
				n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Crashed, Error: "died", Budget: 3}) // its worker is found dead
				require.NoError(t, err, note)
				require.Equal(t, "again", n.Kind, note)
				b.clock = b.clock.Add(time.Second)
				end(b, b.reload(r))
				r = b.reload(r)
				require.True(t, r.State.Over(), note)
				require.NotNil(t, r.Ended, note)
				require.Empty(t, b.locked(), note)
				noneOpen(t, b, r)
				require.Len(t, b.totals().Runs, 1, note)
				require.NoError(t, b.rdb.FlushDB(ctx).Err())
			}
		}
	}
}

// fail ends the run's stage for good.
func fail(b *bench, r Record) {
	b.t.Helper()
	r = b.claim(r)
	n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Permanent: true})
	require.NoError(b.t, err)
	require.Equal(b.t, "cleanup", n.Kind)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// noneOpen tells that all attempts of the record that can be read have ended.
func noneOpen(t *testing.T, b *bench, r Record) {
	t.Helper()
	for _, a := range r.Attempts {
		require.NotNil(t, a.Outcome, "attempt %d of stage %s is open", a.Fence, a.Stage)
		require.NotNil(t, a.Ended)
	}
}

// An attempt at work goes on where the damage is not in what it is known by.
func TestAnAttemptGoesOnOverDamage(t *testing.T) {
	for field, v := range map[string]string{"fence": "abc", "generation": "abc", "attempt:1": "no JSON", "updated": "x", "started": "x", "state": "banana"} {
		b := newBench(t)
		r := b.claim(b.begin())
		require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), field, v).Err())
		require.NoError(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, nil, nil, nil), field)
		require.NoError(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, true), field)
		require.Equal(t, Succeeded, b.advance(r, "").State, field)
		require.NoError(t, b.rdb.FlushDB(ctx).Err())
	}
}

// A generation that is damaged while nobody works: its task is made and taken again.
func TestADamagedGenerationIsClaimed(t *testing.T) {
	b := newBench(t)
	r := b.begin()
	require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), "generation", "abc").Err())
	r = b.reload(r)
	require.NotEqual(t, r.Generation, r.Claimed, "not taken for one that an attempt has")
	r = b.claim(r)
	require.Empty(t, r.Odd, "the claim mends it")
	require.Equal(t, Succeeded, b.advance(r, "").State)
}

// Keys of another type refuse no run and stop none.
func TestKeysOfAnotherType(t *testing.T) {
	b := newBench(t)
	odd := func(key string) {
		require.NoError(t, b.rdb.Del(ctx, key).Err())
		require.NoError(t, b.rdb.RPush(ctx, key, "x").Err())
	}
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w", Node: "host1"}))
	for _, key := range []string{nodesKey(b.instance), workersKey(b.instance), setsKey(b.instance), epochKey} {
		odd(key)
	}
	seen, err := b.NodeSeen(ctx, b.instance, "host1")
	require.NoError(t, err, "or its runs are reconciled no more")
	require.True(t, seen.IsZero())
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w", Node: "host1"}))
	require.Len(t, must(b.Workers(ctx, b.instance)), 1)
	require.Equal(t, b.clock, must(b.NodeSeen(ctx, b.instance, "host1")))
	require.NoError(t, b.Publish(ctx, b.instance, Published{Node: "host1"}))
	require.Equal(t, "fresh", must(b.Epoch(ctx, "fresh")))
	require.NoError(t, b.rdb.FlushDB(ctx).Err())
	keys := map[string]string{"record": "", "lock": lockKey(b.instance), "open": openKey(b.instance), "runs": runsKey(b.instance), "instances": instancesKey, "epoch": epochKey}
	for name, key := range keys {
		old := claimed(b)
		if name == "record" {
			key = runKey(old.ID)
		}
		odd(key)
		one := int64(1)
		err := b.Progress(ctx, old.ID, old.Hold(), old.Epoch, &one, &one, &one)
		if name == "record" || name == "epoch" {
			require.ErrorIs(t, err, ErrEpoch, name)
		} else {
			require.NoError(t, err, name)
		}
		open, err := b.Open(ctx, b.instance)
		require.NoError(t, err, name)
		if name != "lock" {
			require.Contains(t, open, old.ID, "the reconciler finds the run")
		}
		require.NoError(t, b.ReleaseLock(ctx, b.instance), name)
		if name == "record" {
			_, err = b.Get(ctx, old.ID)
			require.ErrorIs(t, err, ErrNotFound)
			require.Empty(t, b.locked())
		} else {
			_, err = b.Start(ctx, b.request())
			var busy *BusyError
			require.ErrorAs(t, err, &busy, name)
			require.Equal(t, old.ID, busy.Run.ID, "the open run is still the only one")
			must(b.Stop(ctx, old, 0, Failed, "x", true))
		}
		next := b.begin()
		require.Equal(t, next.ID, b.locked())
		require.NoError(t, b.rdb.FlushDB(ctx).Err())
	}
}

// Lock and open runs are put right by the leader's look.
func TestLockAndOpenRunsFitEachOther(t *testing.T) {
	b := newBench(t)
	over := succeeded(b)
	require.NoError(t, b.rdb.SAdd(ctx, openKey(b.instance), over.ID, "20200101t000000z-aaaaaaaa", "x").Err())
	require.NoError(t, b.ReleaseLock(ctx, b.instance))
	require.Empty(t, b.locked())
	require.Empty(t, must(b.Open(ctx, b.instance)), "a run that is over, or never was, keeps nobody waiting")

	r := claimed(b)
	for _, key := range []string{lockKey(b.instance), openKey(b.instance)} {
		require.NoError(t, b.rdb.Del(ctx, key).Err())
		require.NoError(t, b.ReleaseLock(ctx, b.instance))
		require.Equal(t, r.ID, b.locked())
	}
}

// A lock that an odd hand deleted leaves the open run the only one.
func TestStartFindsTheRunOfALostLock(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.NoError(t, b.rdb.Del(ctx, lockKey(b.instance)).Err())
	_, err := b.Start(ctx, b.request())
	var busy *BusyError
	require.ErrorAs(t, err, &busy)
	require.Equal(t, r.ID, busy.Run.ID)
	require.Equal(t, r.ID, b.locked())
	b.advance(r, "")
	require.Empty(t, b.locked())
}

// Without fence and holder, the attempts tell how high the fence was: none is overwritten.
func TestTheFenceNeverFalls(t *testing.T) {
	b := newBench(t)
	r := b.claim(retried(b))
	require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), "fence", "x", "holder", "y").Err())
	require.Equal(t, r.Fence, b.reload(r).Fence)
	_, err := b.Again(ctx, b.reload(r), r.Stage, r.Generation, Retry{Kind: Crashed, Error: "died", Budget: 3})
	require.NoError(t, err)
	r = b.claim(r)
	require.Len(t, r.Attempts, 3)
}

// The end of a run closes what nobody else did, also where a damaged record lets it end at once.
func TestACancelAtOnceClosesAttempts(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	must(b.Anew(ctx, r, r.Generation))
	require.NoError(t, b.rdb.HSet(ctx, runKey(r.ID), "node", "").Err())
	require.Equal(t, CancelClosed, must(b.Cancel(ctx, b.reload(r))))
	noneOpen(t, b, b.reload(r))
}
