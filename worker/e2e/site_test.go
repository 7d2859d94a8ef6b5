// Package e2e drives the real programs, as their users do, on real servers, and
// kills every part at every stage.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var programs string // directory of the built producer and worker

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cb-e2e-bin-")
	if err != nil {
		panic(err)
	}
	_ = os.Chmod(dir, 0o755)
	build := exec.Command("go", "build", "-o", dir+"/", "catalog-backup/producer", "catalog-backup/worker")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		os.Exit(1)
	}
	programs = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// site is a catalog server with everything that is backed up, and our programs on it.
type site struct {
	t      *testing.T
	root   string
	pg     *lab.PG
	bus    *lab.Broker
	config *config.Config
	rdb    *redis.Client
	store  *run.Store
	log    *lab.Buffer
	worker *exec.Cmd
	ended  chan struct{}
	// credential is whom the worker runs as; nil is the tests' own user.
	credential *syscall.Credential
}

// newSite fills the servers. rows decides how long the Postgres stage takes.
func newSite(t *testing.T, rows int, extra string) *site {
	root, err := os.MkdirTemp("", "cb-e2e-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(root, 0o755))
	t.Cleanup(func() { os.RemoveAll(root) })
	return siteIn(t, root, "node: host1\nredis: embedded", rows, extra)
}

// siteIn is newSite in a given directory; head says which node it is and where Redis is.
func siteIn(t *testing.T, root, head string, rows int, extra string) *site {
	s := &site{t: t, root: root, log: &lab.Buffer{}}
	for _, d := range []string{"app", "backup", "tmp", "state"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, d), 0o755))
		require.NoError(t, os.Chmod(filepath.Join(root, d), 0o755)) // whatever the umask
	}
	s.pg = lab.Postgres(t)
	s.pg.Psql(fmt.Sprintf("create table events as select g as id, md5(g::text) || md5((g*7)::text) as body from generate_series(1, %d) g", rows))
	s.bus = lab.Kfake(t, lab.KfakeOptions{})
	s.fillBus()
	s.fillFiles()
	path := filepath.Join(root, "config.yaml")
	text := fmt.Sprintf(`instance: catalog
%[5]s
version: 10.0.0.147420
state_dir: %[1]s/state
postgres:
  dsn: %[2]q
eventbus:
  brokers: [%[3]s]
  patience: 4s
files:
  paths: [%[1]s/app]
  exclude: ["*.tmp"]
alation.backup.data_dump_dir: %[1]s/backup
alation.backup.data_temp_dir: %[1]s/tmp
queue:
  backoff: 500ms
%[4]s`, root, s.pg.DSN(), strings.Join(s.bus.Brokers, ", "), extra, head)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	var err error
	s.config, err = config.Load(path, func(string) string { return "" })
	require.NoError(t, err)
	s.reconnect()
	t.Cleanup(func() {
		s.rdb.Close()
		s.killWorker()
		if t.Failed() {
			t.Logf("the worker's log:\n%s", s.log)
		}
	})
	return s
}

// reconnect looks at the Redis of the configuration as it is now.
func (s *site) reconnect() {
	rdb, err := task.Connect(s.config)
	require.NoError(s.t, err)
	s.rdb, s.store = rdb, run.NewStore(rdb, time.Now, time.Hour)
}

func (s *site) fillBus() {
	c, err := s.bus.Client()
	require.NoError(s.t, err)
	defer c.Close()
	ctx := context.Background()
	adm := kadm.NewClient(c)
	_, err = adm.CreateTopics(ctx, 2, 1, nil, "lineage", "queries")
	require.NoError(s.t, err)
	for i := range 5000 {
		c.Produce(ctx, &kgo.Record{Topic: []string{"lineage", "queries"}[i%2], Value: fmt.Appendf(nil, "event %d", i)}, nil)
	}
	require.NoError(s.t, c.Flush(ctx))
	offsets := kadm.Offsets{}
	offsets.AddOffset("lineage", 0, 17, -1)
	_, err = adm.CommitOffsets(ctx, "readers", offsets)
	require.NoError(s.t, err)
}

func (s *site) fillFiles() {
	chunk := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{1})
	for i := range 60 {
		_, _ = r.Read(chunk)
		require.NoError(s.t, os.WriteFile(filepath.Join(s.root, "app", fmt.Sprintf("blob%02d", i)), chunk, 0o640))
	}
	require.NoError(s.t, os.WriteFile(filepath.Join(s.root, "app", "left.tmp"), []byte("x"), 0o600))
}

func (s *site) dump() string { return s.config.Backup.DumpDir }

// startWorker starts a worker and waits until it serves.
func (s *site) startWorker() {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "worker"), "run", "--config", s.config.Path)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: s.credential}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "PGHOST=/nowhere", "PGBACKREST_STANZA=wrong", "PGBACKREST_REPO1_PATH=/nowhere")
	require.NoError(s.t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	s.worker, s.ended = cmd, ended
	s.eventually(20*time.Second, "the worker serves", func() bool {
		w, err := s.store.Workers(context.Background(), "catalog")
		if err != nil {
			return false
		}
		for _, x := range w {
			if x.PID == cmd.Process.Pid {
				return true
			}
		}
		select {
		case <-ended:
			s.t.Fatal("the worker ended")
		default:
		}
		return false
	})
}

func (s *site) killWorker() {
	if s.worker != nil {
		_ = s.worker.Process.Kill()
		<-s.ended
	}
}

func (s *site) termWorker() {
	require.NoError(s.t, s.worker.Process.Signal(syscall.SIGTERM))
	select {
	case <-s.ended:
	case <-time.After(30 * time.Second):
		s.t.Fatal("the worker did not end after SIGTERM")
	}
}

func (s *site) eventually(limit time.Duration, what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// answer is backup-all's JSON.
type answer struct {
	Run, Instance, Type, State string
	Set, Manifest, Error       *string
	Archives, Warnings         []string
}

// producer runs a verb and gives stdout and the exit code.
func (s *site) producer(args ...string) (string, int) {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "producer"), append(args, "--config", s.config.Path)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	s.t.Logf("producer %s: %d %s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), strings.TrimSpace(errs.String()))
	return out.String(), cmd.ProcessState.ExitCode()
}

// begin starts a run and returns its id.
func (s *site) begin() string {
	s.t.Helper()
	out, code := s.producer("backup-all", "--full", "--json")
	require.Zero(s.t, code)
	var a answer
	require.NoError(s.t, json.Unmarshal([]byte(out), &a))
	return a.Run
}

func (s *site) record(id string) (run.Record, error) {
	return s.store.Get(context.Background(), id)
}

// inStage waits until an attempt of the stage runs.
func (s *site) inStage(id, stage string) {
	s.t.Helper()
	s.eventually(30*time.Second, "stage "+stage+" runs", func() bool {
		r, err := s.record(id)
		require.False(s.t, err == nil && r.State.Over(), "the run is over: %s", r.Error)
		return err == nil && r.Stage == stage && r.Claimed == r.Generation
	})
}

// over waits for the end of the run.
func (s *site) over(id string, limit time.Duration) run.Record {
	s.t.Helper()
	var r run.Record
	s.eventually(limit, "run "+id+" is over", func() bool {
		var err error
		r, err = s.record(id)
		return err == nil && r.State.Over()
	})
	return r
}

// restored asserts that everything is as it was before the run, but for its set if it succeeded.
func (s *site) restored(r run.Record, foreign map[string]string) {
	s.t.Helper()
	var left []string
	s.eventually(10*time.Second, "nothing is left", func() bool {
		left = s.leftovers(foreign)
		return len(left) == 0
	})
	l, err := set.List(s.dump())
	require.NoError(s.t, err)
	require.Empty(s.t, l.Problems)
	found := false
	for _, x := range l.Sets {
		require.Empty(s.t, x.Missing, "a manifest without its complete archives")
		found = found || x.Set == r.Set
	}
	require.Equal(s.t, r.State == run.Succeeded, found, "set %s of run %s, %s", r.Set, r.ID, r.State)
	for path, content := range foreign {
		b, err := os.ReadFile(path)
		require.NoError(s.t, err)
		require.Equal(s.t, content, string(b))
	}
}

// leftovers names staging, processes, slots and locks that are still there.
func (s *site) leftovers(foreign map[string]string) []string {
	var left []string
	manifests := map[string]bool{}
	entries, err := os.ReadDir(s.dump())
	require.NoError(s.t, err)
	for _, e := range entries {
		if id, ok := set.IDOfName(e.Name()); ok && e.Name() == id.ManifestName() {
			manifests[string(id)] = true
		}
	}
	for _, e := range entries {
		id, ok := set.IDOfName(e.Name())
		_, theirs := foreign[filepath.Join(s.dump(), e.Name())]
		if !theirs && e.Name() != ".catalog-backup.lock" && !isWorkerLock(e.Name()) && !(ok && manifests[string(id)]) {
			left = append(left, e.Name())
		}
	}
	temps, err := os.ReadDir(s.config.Backup.TempDir)
	require.NoError(s.t, err)
	for _, e := range temps {
		if !isWorkerLock(e.Name()) {
			left = append(left, "tmp/"+e.Name())
		}
	}
	if n := strings.TrimSpace(s.pg.Psql("select count(*) from pg_replication_slots")); n != "0" {
		left = append(left, n+" slots")
	}
	for pid, cmd := range s.processes() {
		if strings.Contains(cmd, "pgbackrest") {
			left = append(left, fmt.Sprintf("process %d: %s", pid, cmd))
		}
	}
	if n, err := s.rdb.Exists(context.Background(), "catalog-backup:catalog:lock").Result(); err != nil || n != 0 {
		left = append(left, "the lock")
	}
	return left
}

// isWorkerLock tells what a worker holds for its life; killed, it leaves that to the next.
func isWorkerLock(name string) bool {
	return strings.HasPrefix(name, ".catalog-backup-worker.") && strings.HasSuffix(name, ".lock")
}

// processes are all live ones whose command line names our folder, by number.
func (s *site) processes() map[int]string {
	found := map[int]string{}
	dirs, err := os.ReadDir("/proc")
	require.NoError(s.t, err)
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err == nil && bytes.Contains(line, []byte(s.root)) {
			found[pid] = string(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '}))
		}
	}
	return found
}

// with are the processes whose command line has all the words.
func (s *site) with(words ...string) []int {
	var pids []int
	for pid, cmd := range s.processes() {
		hit := pid != os.Getpid()
		for _, w := range words {
			hit = hit && strings.Contains(cmd, w)
		}
		if hit {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill9 kills them, and tells how many they were.
func (s *site) kill9(words ...string) int {
	pids := s.with(words...)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return len(pids)
}
