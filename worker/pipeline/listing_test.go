package pipeline

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// deadDisk is a mount that answers nothing, and keeps no process from being killed: a
// FUSE file system that nobody serves. end makes it fail instead.
func deadDisk(t *testing.T) (path string, end func()) {
	at := t.TempDir()
	return at, hang(t, at)
}

// hang makes a directory one of a disk that does not answer, until end makes it answer
// with errors.
func hang(t *testing.T, at string) (end func()) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Mount("dead", at, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)))
	end = sync.OnceFunc(func() { _ = unix.Close(fd) })
	t.Cleanup(func() {
		end()
		_ = unix.Unmount(at, unix.MNT_DETACH)
	})
	return end
}

// A sweep that takes all its time does not keep the sets from being shown.
func TestSetsAreShownAfterALongSweep(t *testing.T) {
	t.Parallel()
	g := newGround(t)
	w := New(Params{Store: g.store, Dir: g.directory(), Instance: "catalog", Node: "node1", Now: time.Now, Log: logrus.New()}, g.rdb, run.Worker{ID: "w1", Node: "node1"})
	over, stop := context.WithCancel(t.Context())
	stop()
	w.keepHouse(over)
	shown, err := g.store.Published(t.Context(), "catalog")
	require.NoError(t, err)
	require.Len(t, shown, 1)
}

// A worker takes work though the disk that a manifest was linked to hangs, says that it
// cannot show the sets, and ends; a FIFO of such a name is only told.
func TestWorkerBesideADiskThatHangs(t *testing.T) {
	t.Parallel()
	far, end := deadDisk(t)
	rdb := lab.Redis(t).Client()
	t.Cleanup(func() { _ = rdb.Close() })
	log, said := test.NewNullLogger()
	dir := &dump.Directory{Dump: t.TempDir(), Temp: t.TempDir(), Instance: "catalog", Node: "node1"}
	require.NoError(t, unix.Mkfifo(filepath.Join(dir.Dump, set.ID("202109230000_1-1").ManifestName()), 0o600))
	link := filepath.Join(dir.Dump, set.ID("202109240000_1-1").ManifestName())
	require.NoError(t, os.Symlink(filepath.Join(far, "m"), link))
	store := run.NewStore(rdb, nil, time.Hour)
	w := New(Params{Store: store, Dir: dir, Instance: "catalog", Node: "node1", Now: time.Now, Log: log}, rdb, run.Worker{ID: "w1", Node: "node1", PID: os.Getpid()})
	w.firstSweep, w.listing.limit = 20*time.Millisecond, 2*time.Second
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	require.NoError(t, w.Start(ctx))
	t.Cleanup(w.Shutdown)
	logged := func(text string) bool {
		return slices.ContainsFunc(said.AllEntries(), func(e *logrus.Entry) bool { return strings.Contains(fmt.Sprint(e.Message, e.Data), text) })
	}
	require.True(t, logged("taking work meanwhile"))
	eventually(t, func() bool { return logged("does not answer") })
	require.NoError(t, os.Remove(link))
	end()
	eventually(t, func() bool {
		w.publish(ctx)
		p, err := store.Published(ctx, "catalog")
		return err == nil && len(p) == 1 && len(p[0].Problems) == 1 && strings.Contains(p[0].Problems[0], "a FIFO")
	})
}
