package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"

	"github.com/stretchr/testify/require"
)

// A left-over that cannot be read is told each time, and keeps none of the others; one
// whose processes do not end is given up for this time.
func TestSweepGoesOnBesideWhatItCannotRead(t *testing.T) {
	rdb := lab.Redis(t).Client()
	defer rdb.Close()
	ctx := context.Background()
	d := &dump.Directory{Dump: t.TempDir(), Temp: t.TempDir(), Instance: "catalog", Node: "node1"}
	ids := []string{}
	for _, random := range []string{"aaaaa", "bbbbb", "ccccc"} {
		id := run.NewID(time.Now(), []byte(random))
		ids = append(ids, id)
		_, _, err := d.Reserve(ctx, id, "1.1", time.Now())
		require.NoError(t, err)
	}
	lock, err := d.Lock(ids[1], true)
	require.NoError(t, err)
	note := filepath.Join(d.RunDir(ids[1]), "postgres.1", "1.pid")
	require.NoError(t, os.Mkdir(filepath.Dir(note), 0o700))
	require.NoError(t, os.WriteFile(note, nil, 0o600))
	lock.Release()
	damaged := filepath.Join(d.Dump, "."+ids[0]+".intent")
	good, err := os.ReadFile(damaged)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(damaged, good[:len(good)/2], 0o600))
	d.EndLeftover = func(ctx context.Context, _ string) error {
		until, bounded := ctx.Deadline()
		require.True(t, bounded && time.Until(until) <= sweepRunLimit)
		return context.DeadlineExceeded
	}
	store := run.NewStore(rdb, nil, time.Hour)
	err = Sweep(ctx, store, d, "catalog")
	require.ErrorContains(t, err, damaged)
	require.ErrorContains(t, err, ids[1])
	require.NoFileExists(t, filepath.Join(d.Dump, "."+ids[2]+".intent"), "it was swept")
	require.FileExists(t, damaged)
	require.NoError(t, os.WriteFile(damaged, good, 0o600))
	d.EndLeftover = nil
	require.NoError(t, Sweep(ctx, store, d, "catalog"))
	entries, err := os.ReadDir(d.Dump)
	require.NoError(t, err)
	require.Len(t, entries, 1, "the lock file stays")
	require.NoDirExists(t, d.RunDir(ids[1]))
}

// A run that Redis has a record of, but lock and lists were lost, is known again to the
// worker that has its staging: it goes on, or ends where another run was begun meanwhile.
func TestSweepMakesALostRunKnownAgain(t *testing.T) {
	rdb := lab.Redis(t).Client()
	defer rdb.Close()
	ctx := context.Background()
	d := &dump.Directory{Dump: t.TempDir(), Temp: t.TempDir(), Instance: "catalog", Node: "node1"}
	store := run.NewStore(rdb, nil, time.Hour)
	begin := func(instance, random string) run.Record {
		id := run.NewID(time.Now(), []byte(random))
		r, err := store.Start(ctx, run.Request{ID: id, Instance: instance, Requested: "full", Type: "full", FirstStage: FirstStage, Epoch: "e"})
		require.NoError(t, err)
		_, err = store.Claim(ctx, id, FirstStage, 1, "node1", run.NewToken(), time.Hour)
		require.NoError(t, err)
		_, _, err = d.Reserve(ctx, id, "1.1", time.Now())
		require.NoError(t, err)
		return r
	}
	lose := func() {
		for _, key := range []string{"lock", "open", "runs"} {
			require.NoError(t, rdb.Del(ctx, "catalog-backup:catalog:"+key).Err())
		}
	}
	open := func() []string {
		ids, err := store.Open(ctx, "catalog")
		require.NoError(t, err)
		return ids
	}
	r, other := begin("catalog", "aaaaa"), begin("beside", "bbbbb")
	lose()
	require.NoError(t, Sweep(ctx, store, d, "catalog"))
	require.Equal(t, []string{r.ID}, open())
	lose()
	next := begin("catalog", "ccccc")
	require.NoError(t, Sweep(ctx, store, d, "catalog"))
	require.ElementsMatch(t, []string{r.ID, next.ID}, open())
	r, err := store.Get(ctx, r.ID)
	require.NoError(t, err)
	require.Equal(t, run.Failed, r.Ending)
	require.Contains(t, r.Error, "run "+next.ID+" was begun meanwhile")
	for _, id := range []string{next.ID, other.ID} {
		r, err = store.Get(ctx, id)
		require.NoError(t, err)
		require.Equal(t, FirstStage, r.Stage)
	}
	require.NoError(t, rdb.HSet(ctx, "catalog-backup:run:"+other.ID, "instance", "").Err())
	require.NoError(t, Sweep(ctx, store, d, "catalog"))
	require.Zero(t, rdb.Exists(ctx, "catalog-backup::open").Val(), "no instance without a name")
}
