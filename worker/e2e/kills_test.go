package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
)

// kill is one way to break a run.
type kill struct {
	name  string
	stage string
	hang  bool          // the bus hangs meanwhile, so that a stage that is over in no time lasts
	after time.Duration // into the stage
	do    func(s *site, id string)
	mend  func(s *site) // what a supervisor or an administrator would do
	want  run.State     // empty: either is fine
}

func restart(s *site) { s.startWorker() }

func workerKilled(s *site, _ string) { s.killWorker() }

// keepersToo kills the worker, all keepers and all tools in one go: nobody is left to clean up.
func keepersToo(s *site, _ string) {
	pids := []int{s.worker.Process.Pid}
	dirs, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, d := range dirs {
		if exe, err := os.Readlink(d); err == nil && exe == filepath.Join(programs, "worker") {
			var pid int
			if _, err := fmt.Sscanf(d, "/proc/%d/exe", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-s.ended
}

// powerLoss kills worker, keepers, tools and the embedded Redis.
func powerLoss(s *site, id string) {
	keepersToo(s, id)
	s.kill9("pgbackrest")
	s.killRedis()
}

func (s *site) killRedis() int { return s.signalRedis(syscall.SIGKILL) }

func (s *site) signalRedis(sig syscall.Signal) int {
	n := 0
	for pid := range s.redisProcesses() {
		_ = syscall.Kill(pid, sig)
		n++
	}
	return n
}

// redisProcesses are the redis-servers whose working directory is ours.
func (s *site) redisProcesses() map[int]bool {
	found := map[int]bool{}
	dirs, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, d := range dirs {
		cwd, err := os.Readlink(d)
		if err != nil || !strings.HasPrefix(cwd, s.root) {
			continue
		}
		exe, _ := os.Readlink(filepath.Dir(d) + "/exe")
		var pid int
		if _, err := fmt.Sscanf(d, "/proc/%d/cwd", &pid); err == nil && strings.Contains(exe, "redis") {
			found[pid] = true
		}
	}
	return found
}

func kills() []kill {
	redisKilled := func(s *site, _ string) { require.Positive(s.t, s.killRedis(), "no redis-server was there to kill") }
	thaw := func(s *site) { require.NoError(s.t, s.bus.Cont()); restart(s) }
	return []kill{
		{name: "worker, in prepare, the bus hanging", stage: "prepare", hang: true, after: 100 * time.Millisecond, do: workerKilled, mend: thaw, want: run.Succeeded},
		{name: "worker, as postgres begins", stage: "postgres", do: workerKilled, mend: restart, want: run.Succeeded},
		{name: "worker, while pgbackrest copies", stage: "postgres", after: 1700 * time.Millisecond, do: workerKilled, mend: restart, want: run.Succeeded},
		{name: "worker and keepers at once, while pgbackrest copies", stage: "postgres", after: 1700 * time.Millisecond, do: keepersToo, mend: restart, want: run.Succeeded},
		{name: "worker, in eventbus, the bus hanging", stage: "eventbus", hang: true, after: 200 * time.Millisecond, do: workerKilled, mend: thaw, want: run.Succeeded},
		{name: "worker, as archive begins", stage: "archive", do: workerKilled, mend: restart, want: run.Succeeded},
		{name: "worker, in archive", stage: "archive", after: 150 * time.Millisecond, do: workerKilled, mend: restart, want: run.Succeeded},
		{name: "SIGTERM to the worker, in postgres", stage: "postgres", after: time.Second, do: func(s *site, _ string) { s.termWorker() }, mend: restart, want: run.Succeeded},
		{name: "SIGTERM to the worker, in archive", stage: "archive", after: 50 * time.Millisecond, do: func(s *site, _ string) { s.termWorker() }, mend: restart, want: run.Succeeded},
		{name: "pgbackrest", stage: "postgres", after: 1700 * time.Millisecond, do: func(s *site, _ string) { require.Positive(s.t, s.kill9("pgbackrest", "backup")) }, want: run.Succeeded},
		{name: "PostgreSQL, while pgbackrest copies", stage: "postgres", after: 1500 * time.Millisecond, do: func(s *site, _ string) { require.NoError(s.t, s.pg.Kill9()) },
			mend: func(s *site) { require.NoError(s.t, s.pg.Start()) }, want: run.Succeeded},
		{name: "embedded Redis, in postgres", stage: "postgres", after: time.Second, do: redisKilled, want: run.Succeeded},
		{name: "embedded Redis, in archive", stage: "archive", after: 50 * time.Millisecond, do: redisKilled, want: run.Succeeded},
		{name: "embedded Redis frozen for two seconds, in archive", stage: "archive", after: 50 * time.Millisecond, do: func(s *site, _ string) { s.signalRedis(syscall.SIGSTOP) },
			mend: func(s *site) { time.Sleep(2 * time.Second); s.signalRedis(syscall.SIGCONT) }, want: run.Succeeded},
		{name: "broker, in eventbus, back after a second", stage: "eventbus", hang: true, do: func(s *site, _ string) { require.NoError(s.t, s.bus.Kill9()) },
			mend: func(s *site) { time.Sleep(time.Second); require.NoError(s.t, s.bus.Start()) }, want: run.Succeeded},
		{name: "broker, in postgres, away for good", stage: "postgres", do: func(s *site, _ string) { require.NoError(s.t, s.bus.Kill9()) }, want: run.Failed},
		{name: "everything at once (power), in postgres", stage: "postgres", after: 1700 * time.Millisecond, do: powerLoss, mend: restart, want: run.Succeeded},
		{name: "everything at once (power), in archive", stage: "archive", after: 100 * time.Millisecond, do: powerLoss, mend: restart, want: run.Succeeded},
		{name: "cancel, while pgbackrest copies", stage: "postgres", after: 1500 * time.Millisecond, do: func(s *site, id string) {
			begin := time.Now()
			_, code := s.producer("cancel", id)
			require.Zero(s.t, code)
			s.over(id, 5*time.Second)
			s.t.Logf("cancelled and clean after %s", time.Since(begin))
		}, want: run.Cancelled},
	}
}

// TestKills breaks a run in every way above. After each: never a manifest
// without its complete archives, nothing left, and the next run succeeds with no
// hand work.
func TestKills(t *testing.T) {
	s := newSite(t, 1_500_000, "")
	foreign := map[string]string{filepath.Join(s.dump(), "202001010101_9-9-9_alation_backup.tar.gz"): "the catalog's own"}
	for path, content := range foreign {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	s.startWorker()
	table := []string{}
	for _, k := range kills() {
		begin := time.Now()
		if k.hang && k.stage == "prepare" {
			require.NoError(t, s.bus.Stop())
		}
		id := s.begin()
		if k.hang && k.stage != "prepare" {
			s.inStage(id, "postgres")
			require.NoError(t, s.bus.Stop())
		}
		s.inStage(id, k.stage)
		time.Sleep(k.after)
		t.Logf("kill: %s", k.name)
		k.do(s, id)
		if k.mend != nil {
			k.mend(s)
		}
		mended := time.Now()
		r := s.over(id, 60*time.Second)
		if k.want != "" {
			require.Equal(t, k.want, r.State, "%s: %s", k.name, r.Error)
		}
		s.restored(r, foreign)
		var how []string
		for _, a := range r.Attempts {
			if a.Outcome != nil && *a.Outcome != run.Good {
				how = append(how, fmt.Sprintf("%s %d %s", a.Stage, a.Attempt, *a.Outcome))
			}
		}
		if k.want == run.Failed { // what was away is back; the next run needs no hand work
			require.NoError(t, s.bus.Start())
			_, code := s.producer("backup-all", "--full", "--wait", "--json")
			require.Zero(t, code)
		}
		table = append(table, fmt.Sprintf("%-55s %-10s %5.1f s %5.1f s  %s", k.name, r.State, time.Since(begin).Seconds(), time.Since(mended).Seconds(), strings.Join(how, ", ")))
	}
	out, code := s.producer("backup-all", "--full", "--wait", "--json")
	require.Zero(t, code, out)
	s.termWorker()
	require.Empty(t, s.redisProcesses(), "the embedded Redis ends with its worker")
	t.Logf("what was killed                                          the run    all in   after    attempts that ended badly\n%s", strings.Join(table, "\n"))
}

// A producer is only a messenger: killed at any moment it changes nothing.
func TestProducerKilled(t *testing.T) {
	s := newSite(t, 50_000, "")
	s.startWorker()
	for i := range 8 {
		cmd := exec.Command(filepath.Join(programs, "producer"), "backup-all", "--full", "--wait", "--config", s.config.Path)
		require.NoError(t, cmd.Start())
		time.Sleep(time.Duration(i*4) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		open, err := s.store.Open(context.Background(), "catalog")
		require.NoError(t, err)
		for _, id := range open {
			r := s.over(id, 30*time.Second)
			require.Equal(t, run.Succeeded, r.State, r.Error)
			s.restored(r, nil)
		}
	}
	_, code := s.producer("backup-all", "--full", "--wait")
	require.Zero(t, code)
}
