package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// onSmallDisk is a site with little data whose dump directory lies on a small file
// system of its own, which can be filled, and from which it can be moved away.
func onSmallDisk(t *testing.T) *site {
	s := newSite(t, 50_000, "  close_after: 2s\n")
	small := filepath.Join(s.root, "small")
	require.NoError(t, os.Mkdir(small, 0o755))
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=300m"))
	t.Cleanup(func() { s.killWorker(); _ = unix.Unmount(small, unix.MNT_DETACH) })
	require.NoError(t, os.Mkdir(filepath.Join(small, "backup"), 0o755))
	b, err := os.ReadFile(s.config.Path)
	require.NoError(t, err)
	text := strings.Replace(string(b), s.dump(), filepath.Join(small, "backup"), 1)
	require.NoError(t, os.WriteFile(s.config.Path, []byte(text), 0o600))
	s.config, err = config.Load(s.config.Path, func(string) string { return "" })
	require.NoError(t, err)
	for i := 10; i < 60; i++ {
		require.NoError(t, os.Remove(filepath.Join(s.root, "app", fmt.Sprintf("blob%02d", i))))
	}
	return s
}

// leave fills the disk of the dump directory but for n bytes.
func (s *site) leave(n int64) {
	f, err := os.Create(s.ballast())
	require.NoError(s.t, err)
	defer f.Close()
	var st unix.Statfs_t
	require.NoError(s.t, unix.Statfs(s.dump(), &st))
	require.NoError(s.t, unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-n))
}

func (s *site) ballast() string { return filepath.Join(filepath.Dir(s.dump()), "ballast") }

// moved takes the dump directory away for a while.
func (s *site) moved(how time.Duration) {
	require.NoError(s.t, os.Rename(s.dump(), s.dump()+".away"))
	time.Sleep(how)
	if err := os.Rename(s.dump()+".away", s.dump()); err != nil {
		entries, _ := os.ReadDir(s.dump())
		s.t.Fatalf("%v; it was made anew with %v", err, entries)
	}
}

// TestDiskAndFrozenWorker goes on from TestKills: what a kill cannot do. Each run comes
// to an end, no set is lost, and once all is well again the next run succeeds and
// nothing else is left.
func TestDiskAndFrozenWorker(t *testing.T) {
	s := onSmallDisk(t)
	s.startWorker()
	good := func(name string) run.Record {
		r := s.over(s.begin(), 40*time.Second)
		require.Equal(t, run.Succeeded, r.State, "%s: %s", name, r.Error)
		s.restored(r, nil)
		return r
	}
	sets := []run.Record{good("before all")}
	table := []string{}
	note := func(name string, begin time.Time, r run.Record) {
		next := r
		if r.State != run.Succeeded {
			next = good("after " + name)
		}
		sets = append(sets, next)
		table = append(table, fmt.Sprintf("%-52s %-10s %5.1f s  %s", name, r.State, time.Since(begin).Seconds(), r.Error))
	}
	for _, stage := range []string{"postgres", "archive"} {
		begin := time.Now()
		id := s.begin()
		s.inStage(id, stage)
		s.moved(1500 * time.Millisecond)
		r := s.over(id, 40*time.Second)
		s.restored(r, nil)
		note("dump directory moved away, in "+stage, begin, r)
	}

	begin := time.Now()
	fi, err := os.Stat(sets[0].Archives[0])
	require.NoError(t, err)
	id := s.begin()
	s.eventually(20*time.Second, "pgbackrest writes", func() bool { // and nobody looks at the space any more
		found, _ := filepath.Glob(filepath.Join(s.dump(), "pgbackrest", "*", "repo", "backup", "catalog", "*", "pg_data"))
		return len(found) > 0
	})
	s.leave(fi.Size() - 5<<20) // enough for the repository, which is without the ten blobs
	s.inStage(id, "archive")
	r := s.over(id, 40*time.Second)
	require.Equal(t, run.Failed, r.State, "the disk is full")
	s.restored(r, nil)
	require.NoError(t, os.Remove(s.ballast()))
	note("disk full, in archive", begin, r)

	begin = time.Now()
	r = s.besideFrozen(good)
	note("frozen worker beside a live one, in postgres", begin, r)
	for _, r := range sets {
		_, code := s.offline("verify", r.Set, "--dir", s.dump(), "--json")
		require.Zero(t, code, "set %s", r.Set)
	}
	s.termWorker()
	t.Logf("what was broken                                      the run    all in    its error\n%s", strings.Join(table, "\n"))
}

// besideFrozen closes the run of a frozen worker over its lock, makes a set beside it,
// and lets it wake up.
func (s *site) besideFrozen(good func(string) run.Record) run.Record {
	id := s.begin()
	s.inStage(id, "postgres")
	frozen, ended := s.worker, s.ended
	require.NoError(s.t, frozen.Process.Signal(syscall.SIGSTOP))
	defer func() { _ = frozen.Process.Kill(); <-ended }()
	s.startWorker()
	_, code := s.producer("cancel", id)
	require.Zero(s.t, code)
	r := s.over(id, 40*time.Second)
	require.Equal(s.t, run.Cancelled, r.State)
	require.Contains(s.t, r.Error, "queue.close_after")
	beside := s.over(s.begin(), 40*time.Second)
	require.Equal(s.t, run.Succeeded, beside.State, beside.Error)
	require.NoError(s.t, frozen.Process.Signal(syscall.SIGCONT))
	s.restored(beside, nil)
	require.NoError(s.t, frozen.Process.Signal(syscall.SIGTERM))
	select {
	case <-ended:
	case <-time.After(40 * time.Second):
		s.t.Fatal("the worker that was frozen does not end")
	}
	s.eventually(20*time.Second, "the other worker brings the embedded Redis", func() bool {
		_, err := s.store.Open(context.Background(), "catalog")
		return err == nil
	})
	return r
}
