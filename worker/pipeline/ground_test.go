package pipeline

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"
	"catalog-backup/worker/dump"
	"catalog-backup/worker/stage"

	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

// The tests run workers as processes of their own (this test binary again), so
// that they can be killed. Their stages only wait, told what to do by files:
// hold-<stage> (wait while it is there), fail-<stage> (a number: so many errors),
// perm-<stage> (a permanent error), ignore-<stage> (its context). The cleanup hangs while
// hang-cleanup is there and fails while fail-cleanup is, the archive stage waits in its
// commit while hold-commit is there (see odd_test.go). Each stage writes a line into a journal when
// it begins and ends.

const workerEnv = "PIPELINE_TEST_WORKER"

func TestMain(m *testing.M) {
	if s := os.Getenv(workerEnv); s != "" {
		var o workerOptions
		if err := json.Unmarshal([]byte(s), &o); err != nil {
			panic(err)
		}
		o.run()
		os.Exit(0)
	}
	flag.Parse()
	_ = flag.Set("test.parallel", "6") // those that may mostly wait
	code := m.Run()
	if skewedDir != "" {
		os.RemoveAll(skewedDir)
	}
	os.Exit(code)
}

type workerOptions struct {
	Socket, Instance, Node, Dump, Temp, Control string
	DB                                          int
	Limits                                      Limits
	Pulse                                       time.Duration
	Duration                                    time.Duration // of each stage
	ClockOff, Linger                            time.Duration // how wrong the host's clock is; from the commit to the end of its stage
	Size                                        int           // of an archive; 0 = a thousand bytes
	StopWithin                                  time.Duration
	Boot, Host, Label                           string // of a worker on another host: kernel, host name, id
}

func (o workerOptions) run() {
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: o.Socket, DB: o.DB, MaxRetries: 1, DialTimeout: time.Second})
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetLevel(logrus.DebugLevel)
	now := func() time.Time { return time.Now().Add(o.ClockOff) }
	p := Params{Store: run.NewStore(rdb, nil, time.Hour), Instance: o.Instance, Node: o.Node, Limits: o.Limits, Now: now, Log: log, Pulse: o.Pulse, StopWithin: o.StopWithin, Boot: o.Boot,
		Dir: &dump.Directory{Dump: o.Dump, Temp: o.Temp, Instance: o.Instance, Node: o.Node, EndLeftover: o.endLeftover}}
	for _, n := range []string{FirstStage, "postgres", "eventbus", "archive"} {
		p.Stages = append(p.Stages, waiting{o, n, p.Dir})
	}
	w := New(p, rdb, run.Worker{ID: fmt.Sprintf("%s%s-%d", o.Node, o.Label, os.Getpid()), Host: o.Host, Node: o.Node, PID: os.Getpid(), Started: time.Now()})
	if err := w.Start(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "it takes work")
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	select {
	case <-ch:
	case err := <-w.Refused():
		fmt.Fprintln(os.Stderr, "refused:", err)
		defer os.Exit(1)
	}
	w.Shutdown()
}

// waiting is a stage that only waits.
type waiting struct {
	o    workerOptions
	name string
	dir  *dump.Directory
}

func (s waiting) Name() string { return s.name }

func (s waiting) journal(word string, a *Attempt) {
	f, err := os.OpenFile(filepath.Join(s.o.Control, "journal"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "%s %s %s %d %d %d\n", a.Run.ID, word, s.name, a.Hold.Fence, os.Getpid(), time.Now().UnixNano())
}

func (s waiting) Run(ctx context.Context, a *Attempt) (any, error) {
	_ = os.WriteFile(filepath.Join(a.Dir, "tool.pid"), nil, 0o600) // so that endLeftover is asked
	s.journal("begin", a)
	defer s.journal("over", a)
	if err := s.wait(ctx, a); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(s.o.Control, "perm-"+s.name)); err == nil {
		return nil, stage.Permanentf("stage %s fails for good with s3cret", s.name)
	}
	if b, err := os.ReadFile(filepath.Join(s.o.Control, "fail-"+s.name)); err == nil {
		if n, _ := strconv.Atoi(string(b)); n > 0 {
			_ = os.WriteFile(filepath.Join(s.o.Control, "fail-"+s.name), []byte(strconv.Itoa(n-1)), 0o600)
			return nil, fmt.Errorf("stage %s fails for now", s.name)
		}
	}
	var err error
	switch s.name {
	case FirstStage:
		err = s.prepare(ctx, a)
	case "postgres":
		_, err = s.dir.PostgresStaging(a.Run.ID, a.Hold)
	case "archive":
		err = s.archive(ctx, a)
	}
	if err != nil {
		return nil, err
	}
	s.journal("end", a)
	return map[string]string{"stage": s.name}, nil
}

func (s waiting) wait(ctx context.Context, a *Attempt) error {
	a.Progress.Total(1000)
	deadline := time.Now().Add(s.o.Duration)
	for {
		a.Progress.Add(1)
		_, held := os.Stat(filepath.Join(s.o.Control, "hold-"+s.name))
		if held != nil && time.Now().After(deadline) {
			return nil
		}
		if s.o.told("ignore-" + s.name) {
			ctx = context.Background()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s waiting) prepare(ctx context.Context, a *Attempt) error {
	in, _, err := s.dir.Reserve(ctx, a.Run.ID, "1.2.3", time.Now())
	if err != nil {
		return err
	}
	return a.Note(ctx, run.Facts{Set: string(in.Set)})
}

func (s waiting) archive(ctx context.Context, a *Attempt) error {
	if m, err := s.dir.Standing(a.Run.ID, set.ID(a.Run.Set)); err != nil || m != nil {
		return err
	}
	in, err := s.dir.ReadIntent(a.Run.ID)
	if err != nil {
		return err
	}
	if in.Commit != nil {
		_, err := s.dir.Recover(a.Run.ID)
		return err
	}
	part := func(final string, content []byte) dump.CommitFile {
		name := set.PartName(final, a.Run.ID, a.Hold.String())
		if werr := os.WriteFile(filepath.Join(s.o.Dump, name), content, 0o600); werr != nil {
			err = werr
		}
		sum := sha256.Sum256(content)
		return dump.CommitFile{Part: name, Final: final, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	}
	id := in.Set
	main := part(id.MainName(), content(a.Run.ID, s.o.Size))
	m := set.Manifest{Format: set.FormatName, Version: set.FormatVersion, Set: string(id), Run: a.Run.ID, Instance: s.o.Instance, Node: s.o.Node, Type: set.Full,
		Finished: time.Now().UTC(), Archives: []set.Archive{{Kind: set.MainArchive, Name: main.Final, Size: main.Size, SHA256: main.SHA256}}}
	text, _ := json.Marshal(m)
	manifest := part(id.ManifestName(), text)
	if err != nil {
		return err
	}
	err = s.dir.Commit(a.Run.ID, []dump.CommitFile{main, manifest}, func() error { return s.o.holds(ctx, a) })
	select { // the set stands, and nobody knows yet
	case <-ctx.Done():
	case <-time.After(s.o.Linger):
	}
	return err
}

// ground is one Redis, one pair of directories and the workers on them.
type ground struct {
	t       *testing.T
	redis   *lab.RedisServer
	rdb     *redis.Client
	store   *run.Store
	opts    workerOptions
	workers []*process
	left    string // what clean last saw, for the message
}

func newGround(t *testing.T) *ground {
	return newGroundOn(t, lab.Redis(t), 0, "catalog")
}

func newGroundOn(t *testing.T, server *lab.RedisServer, db int, instance string) *ground {
	root := t.TempDir()
	g := &ground{t: t, redis: server}
	g.opts = workerOptions{Socket: server.Addr, DB: db, Instance: instance, Node: "node1", Dump: root + "/dump", Temp: root + "/temp", Control: root + "/control",
		Limits: Limits{Errors: 3, Interruptions: 50, Crashes: 5, Backoff: 50 * time.Millisecond, Timeout: time.Minute, NodeLostAfter: time.Hour, RedisGrace: time.Minute},
		Pulse:  50 * time.Millisecond, Duration: 20 * time.Millisecond}
	for _, d := range []string{g.opts.Dump, g.opts.Temp, g.opts.Control} {
		require.NoError(t, os.Mkdir(d, 0o755))
	}
	g.rdb = redis.NewClient(&redis.Options{Network: "unix", Addr: server.Addr, DB: db})
	t.Cleanup(func() { g.rdb.Close() })
	g.store = run.NewStore(g.rdb, time.Now, time.Hour)
	return g
}

type process struct {
	*exec.Cmd
	log    *lab.Buffer
	waited chan struct{}
}

func (g *ground) worker(change ...func(*workerOptions)) *process {
	o := g.opts
	for _, c := range change {
		c(&o)
	}
	b, err := json.Marshal(o)
	require.NoError(g.t, err)
	program, env := os.Args[0], append(os.Environ(), workerEnv+"="+string(b))
	if o.ClockOff != 0 {
		program, env = skewed(g.t, env, o.ClockOff)
	}
	p := &process{Cmd: exec.Command(program), log: &lab.Buffer{}, waited: make(chan struct{})}
	p.Env = env
	p.Stderr, p.Stdout = p.log, p.log
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(g.t, p.Start())
	go func() { _ = p.Wait(); close(p.waited) }()
	g.workers = append(g.workers, p)
	g.t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		<-p.waited
		if g.t.Failed() {
			g.t.Logf("worker %d:\n%s", p.Process.Pid, p.log)
		}
	})
	return p
}

func (p *process) signal(s syscall.Signal) { _ = p.Process.Signal(s) }
func (p *process) kill9()                  { p.signal(syscall.SIGKILL); <-p.waited }

func (p *process) term(t *testing.T) {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.waited:
	case <-time.After(20 * time.Second):
		t.Fatal("the worker did not end after SIGTERM")
	}
}

// begin starts a run the way the producer does.
func (g *ground) begin() run.Record {
	b := make([]byte, 5)
	_, _ = rand.Read(b)
	return g.beginAs(run.NewID(time.Now(), b))
}

func (g *ground) beginAs(id string) run.Record {
	g.t.Helper()
	ctx := context.Background()
	r, err := g.store.Start(ctx, run.Request{ID: id, Instance: g.opts.Instance, Requested: "full", Type: "full", FirstStage: FirstStage, Epoch: freshEpoch()})
	require.NoError(g.t, err)
	require.NoError(g.t, g.enqueuer().Enqueue(ctx, r.Epoch, "", task.Payload{Run: id, Instance: g.opts.Instance, Stage: FirstStage, Generation: 1}, nil))
	return r
}

func (g *ground) enqueuer() *task.Enqueuer {
	return task.NewEnqueuer(g.rdb, time.Now)
}

func (g *ground) get(id string) run.Record {
	g.t.Helper()
	var r run.Record
	g.eventually(5*time.Second, "read run", func() bool {
		var err error
		r, err = g.store.Get(context.Background(), id)
		return err == nil
	})
	return r
}

func (g *ground) eventually(limit time.Duration, what string, ok func() bool) {
	g.t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			g.t.Fatalf("not within %s: %s (%s)", limit, what, g.left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (g *ground) waitOver(id string, want run.State, limit time.Duration) run.Record {
	g.t.Helper()
	var r run.Record
	g.eventually(limit, "the run is over", func() bool {
		var err error
		r, err = g.store.Get(context.Background(), id)
		return err == nil && r.State.Over()
	})
	require.Equal(g.t, want, r.State, "error %q", r.Error)
	return r
}

func (g *ground) waitStage(id, name string) {
	g.t.Helper()
	g.eventually(10*time.Second, "stage "+name+" runs", func() bool {
		return g.count(id, "begin", name) > g.count(id, "over", name)
	})
}

func (g *ground) control(name, content string) {
	require.NoError(g.t, os.WriteFile(filepath.Join(g.opts.Control, name), []byte(content), 0o600))
}

func (g *ground) free(name string) {
	require.NoError(g.t, os.Remove(filepath.Join(g.opts.Control, name)))
}

// clean asserts that a run has left nothing but, if it succeeded, its set.
func (g *ground) clean(r run.Record) {
	g.t.Helper()
	var left []string
	g.eventually(5*time.Second, "nothing of the run is left", func() bool {
		left = nil
		for _, dir := range []string{g.opts.Dump, g.opts.Temp} {
			entries, err := os.ReadDir(dir)
			require.NoError(g.t, err)
			for _, e := range entries {
				if strings.Contains(e.Name(), r.ID) || e.Name() == "pgbackrest" {
					left = append(left, e.Name())
				}
			}
		}
		if len(left) > 0 {
			g.left = strings.Join(left, " ")
		}
		return len(left) == 0
	})
	l, err := set.List(g.opts.Dump)
	require.NoError(g.t, err)
	found := false
	for _, s := range l.Sets {
		require.Empty(g.t, s.Missing, "a manifest without its archive")
		found = found || s.Set == r.Set
	}
	require.Equal(g.t, r.State == run.Succeeded, found)
	open, err := g.store.Open(context.Background(), g.opts.Instance)
	require.NoError(g.t, err)
	require.NotContains(g.t, open, r.ID)
}
