package run

import (
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/lab"

	"github.com/stretchr/testify/require"
)

func TestNoteKeepsWhatItIsNotTold(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	nasty := []string{"a \"quoted\" \\ thing", "line\nbreak", "\x00\x1b[31m", "ünïcode ☃", ""}
	require.NoError(t, b.Note(ctx, r.ID, r.Hold(), Facts{Set: "202109232027_10-0-0-147420", Type: "full", Warnings: nasty}))
	require.NoError(t, b.Note(ctx, r.ID, r.Hold(), Facts{Archives: []string{"/a", "/b"}, Manifest: "/m"}))
	r = b.reload(r)
	require.Equal(t, nasty, r.Warnings)
	require.Equal(t, []string{"/a", "/b"}, r.Archives)
	require.Equal(t, "/m", r.Manifest)
	require.Equal(t, "202109232027_10-0-0-147420", r.Set)
	require.NoError(t, b.Note(ctx, r.ID, r.Hold(), Facts{Warnings: []string{}}))
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
		require.ErrorIs(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, &one, nil, nil), ErrEpoch)
		require.ErrorIs(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, true), ErrEpoch)
		require.ErrorIs(t, b.Note(ctx, r.ID, r.Hold(), Facts{Set: "x"}), ErrFenced)
		_, err := b.Advance(ctx, r, r.Stage, r.Hold(), "", "x")
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
		require.ErrorIs(t, b.Cleaned(ctx, r, r.Hold(), false), ErrFenced)
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

func TestAnotherEpochStopsAnAttempt(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.ErrorIs(t, b.Progress(ctx, r.ID, r.Hold(), "another", nil, nil, nil), ErrEpoch)
	require.ErrorIs(t, b.Holds(ctx, r.ID, r.Hold(), "another", true), ErrEpoch)
	require.NoError(t, b.rdb.Del(ctx, runKey(r.ID)).Err()) // the record alone is gone
	require.ErrorIs(t, b.Progress(ctx, r.ID, r.Hold(), r.Epoch, nil, nil, nil), ErrEpoch)
	require.ErrorIs(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, true), ErrEpoch)
}

func TestReleaseSparesALockTakenMeanwhile(t *testing.T) {
	b := newBench(t)
	old := succeeded(b)
	r := b.begin()
	out, err := b.call(ctx, releaseScript, []string{runKey(old.ID), lockKey(b.instance), openKey(b.instance), runsKey(b.instance)}, old.ID)
	require.NoError(t, err)
	require.Equal(t, "held", out[0])
	require.Equal(t, r.ID, b.locked())
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

func TestOneTickOpensOneRun(t *testing.T) {
	b := newBench(t)
	q := b.request()
	q.Tick = "install:nightly:1795824000"
	r, err := b.Start(ctx, q)
	require.NoError(t, err)
	require.Equal(t, q.Tick, r.Tick)
	same := b.request()
	same.Tick = q.Tick
	for _, state := range []State{Queued, Succeeded} {
		again, err := b.Start(ctx, same)
		require.NoError(t, err)
		require.Equal(t, r.ID, again.ID)
		require.Equal(t, state, again.State)
		if state == Queued {
			b.advance(b.claim(r), "")
		}
	}
	other := b.request()
	other.Tick = "install:nightly:1795910400"
	next, err := b.Start(ctx, other)
	require.NoError(t, err)
	require.Equal(t, other.ID, next.ID)
	var busy *BusyError
	late := b.request()
	late.Tick = "install:nightly:1795996800"
	_, err = b.Start(ctx, late)
	require.ErrorAs(t, err, &busy)
	b.advance(b.claim(next), "")
	opened, err := b.Start(ctx, late)
	require.NoError(t, err, "a tick that was refused may ask again")
	require.Equal(t, late.ID, opened.ID)
}

func TestInstances(t *testing.T) {
	b := newBench(t)
	b.begin()
	require.NoError(t, b.SignIn(ctx, b.instance+"-two", Worker{ID: "w1", Node: "host1"}))
	all, err := b.Instances(ctx)
	require.NoError(t, err)
	require.Contains(t, all, b.instance)
	require.Contains(t, all, b.instance+"-two")
	require.IsIncreasing(t, all)
}
