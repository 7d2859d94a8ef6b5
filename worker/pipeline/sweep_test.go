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
