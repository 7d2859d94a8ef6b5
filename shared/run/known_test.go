package run

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// What has no run's id is none, also where it looks like an open one: it keeps no run waiting.
func TestAnIDThatIsNoneKeepsNobodyWaiting(t *testing.T) {
	for _, id := range []string{"weird", "", "20200101t000000z-aaaaaaaa:x", "20200101T000000z-aaaaaaaa", "20200101t000000z-aaaaaaa1"} {
		for _, key := range []string{"open", "lock", "runs"} {
			b := newBench(t)
			require.NoError(t, b.rdb.HSet(ctx, runKey(id), "state", "running", "stage", "postgres").Err())
			switch key {
			case "open":
				require.NoError(t, b.rdb.SAdd(ctx, openKey(b.instance), id).Err())
			case "lock":
				require.NoError(t, b.rdb.Set(ctx, lockKey(b.instance), id, 0).Err())
			case "runs":
				require.NoError(t, b.rdb.ZAdd(ctx, runsKey(b.instance), redis.Z{Score: 9e15, Member: id}).Err())
			}
			r := b.begin()
			require.Equal(t, r.ID, b.locked(), "%q in %s", id, key)
			require.Equal(t, Succeeded, b.advance(b.claim(r), "").State)
			require.NoError(t, b.ReleaseLock(ctx, b.instance))
			require.Empty(t, b.locked())
			require.NoError(t, b.rdb.FlushDB(ctx).Err())
		}
	}
}

// lose deletes the keys that tell which runs are open.
func lose(b *bench, runs bool) {
	b.t.Helper()
	require.NoError(b.t, b.rdb.Del(ctx, lockKey(b.instance), openKey(b.instance)).Err())
	if runs {
		require.NoError(b.t, b.rdb.Del(ctx, runsKey(b.instance)).Err())
	}
}

// A run whose instance lost lock and set of open runs is found again, by the leader and by who
// starts a run.
func TestAnOpenRunIsFoundAmongTheLastOnes(t *testing.T) {
	b := newBench(t)
	succeeded(b)
	r := b.begin() // queued: no worker's disk tells of it
	lose(b, false)
	require.Empty(t, must(b.Open(ctx, b.instance)))
	require.NoError(t, b.ReleaseLock(ctx, b.instance))
	require.Equal(t, r.ID, b.locked())
	lose(b, false)
	_, err := b.Start(ctx, b.request())
	var busy *BusyError
	require.ErrorAs(t, err, &busy)
	require.Equal(t, r.ID, busy.Run.ID)
	b.advance(b.claim(r), "")
	require.Empty(t, b.locked())
}

// Where the list of runs went too, the worker that has its staging tells of the run.
func TestReopen(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.Empty(t, must(b.Reopen(ctx, r)))
	lose(b, true)
	require.Empty(t, must(b.Reopen(ctx, r)))
	require.Equal(t, r.ID, b.locked())
	lose(b, true)
	next := b.begin()
	require.Equal(t, next.ID, must(b.Reopen(ctx, r)))
	require.ElementsMatch(t, []string{r.ID, next.ID}, must(b.Open(ctx, b.instance)))
	require.Empty(t, must(b.Reopen(ctx, r)), "it is known")
	must(b.Stop(ctx, r, 0, Failed, "lost", false))
	b.cleanUp(b.reload(r), false)
	require.Equal(t, next.ID, b.locked())
	require.Empty(t, must(b.Reopen(ctx, b.reload(r))))
	require.Equal(t, next.ID, b.locked(), "a run that is over stays so")
}
