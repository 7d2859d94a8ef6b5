package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"

	"github.com/stretchr/testify/require"
)

// Two daemons of one node with a temp directory each: the second ends with the reason,
// as soon as the first has given another sign, or at once where it is stopped.
func TestDaemonRefusesToWorkBesideOneThatItDoesNotSee(t *testing.T) {
	server := lab.Redis(t)
	first, second := configured(t, server, ""), configured(t, server, "")
	rdb, err := task.Connect(first)
	require.NoError(t, err)
	defer func() { _ = rdb.Close() }()
	store := run.NewStore(rdb, nil, time.Hour)
	live := func(n int) func() bool {
		return func() bool {
			l, err := store.Workers(context.Background(), "catalog")
			return err == nil && len(l) == n
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- daemon(ctx, first) }()
	require.Eventually(t, live(1), 20*time.Second, 20*time.Millisecond)
	err = daemon(context.Background(), second)
	require.ErrorContains(t, err, "start the worker: work beside worker node1-")
	require.ErrorContains(t, err, "Workers that do not see each other's locks take each other for dead")
	require.ErrorContains(t, err, second.Backup.TempDir+" is on ")
	require.True(t, live(1)(), "it signed out")
	for _, dir := range []string{second.Backup.TempDir, second.Backup.DumpDir} {
		left, err := filepath.Glob(filepath.Join(dir, ".catalog-backup-worker*"))
		require.NoError(t, err)
		require.Empty(t, left)
	}
	stopped, halt := context.WithCancel(context.Background())
	go func() {
		for !live(2)() {
			time.Sleep(10 * time.Millisecond)
		}
		halt()
	}()
	require.NoError(t, daemon(stopped, second), "stopped before it began")
	stop()
	require.NoError(t, <-ended)
	entries, err := os.ReadDir(first.Backup.TempDir)
	require.NoError(t, err)
	require.Empty(t, entries)
}
