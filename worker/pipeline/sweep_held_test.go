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

// A frozen attempt holds the lock of its run. Once the run is over its tools are ended, and
// nothing of it is removed; those of an open run, or one that Redis does not know, work on.
func TestSweepEndsTheToolsOfAFrozenAttempt(t *testing.T) {
	rdb := lab.Redis(t).Client()
	defer rdb.Close()
	ctx := context.Background()
	store := run.NewStore(rdb, nil, time.Hour)
	d := &dump.Directory{Dump: t.TempDir(), Temp: t.TempDir(), Instance: "catalog", Node: "node1"}
	var ended []string
	d.EndLeftover = func(ctx context.Context, note string) error {
		_, bounded := ctx.Deadline()
		require.True(t, bounded)
		ended = append(ended, note)
		return nil
	}
	unknown := run.NewID(time.Now(), []byte("other"))
	open, err := store.Start(ctx, run.Request{ID: run.NewID(time.Now(), []byte("aaaaa")), Instance: "catalog", FirstStage: FirstStage, Epoch: freshEpoch()})
	require.NoError(t, err)
	notes := map[string]string{}
	for _, id := range []string{open.ID, unknown} {
		lock, err := d.Lock(id, true)
		require.NoError(t, err)
		defer lock.Release()
		notes[id] = filepath.Join(d.RunDir(id), "postgres.1", "1.pid")
		require.NoError(t, os.Mkdir(filepath.Dir(notes[id]), 0o700))
		require.NoError(t, os.WriteFile(notes[id], nil, 0o600))
	}
	require.NoError(t, Sweep(ctx, store, d, "catalog"))
	require.Empty(t, ended)
	n, err := store.Stop(ctx, open, 0, run.Failed, "abandoned", true)
	require.NoError(t, err)
	require.Equal(t, "closed", n.Kind)
	require.NoError(t, Sweep(ctx, store, d, "catalog"))
	require.Equal(t, []string{notes[open.ID]}, ended)
	require.FileExists(t, notes[open.ID])
}
