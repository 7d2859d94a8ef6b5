package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// program is the built binary, which the tests drive as a user would.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cb-producer-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "producer")
	out, err := exec.Command("go", "build", "-ldflags", "-X catalog-backup/shared/exit.Version=1.2.3-test", "-o", program, ".").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build the producer: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// secret must be in no output whatever happens.
const secret = "geheim-7f3a"

// patience bounds every wait of these tests.
const patience = 15 * time.Second

// site is one catalog server: a Redis, a configuration, and this test as the worker.
type site struct {
	t      *testing.T
	redis  *lab.RedisServer
	rdb    *redis.Client
	store  *run.Store
	config string
	env    []string
}

func newSite(t *testing.T, conf ...string) *site {
	s := &site{t: t, redis: lab.Redis(t, conf...)}
	s.rdb = s.redis.Client()
	t.Cleanup(func() { _ = s.rdb.Close() })
	s.store = run.NewStore(s.rdb, time.Now, time.Hour)
	s.configure("redis:\n  address: unix:" + s.redis.Addr + "\n")
	return s
}

func (s *site) configure(redisPart string) {
	s.config = filepath.Join(s.t.TempDir(), "config.yaml")
	text := "instance: catalog\n" + redisPart + "postgres:\n  dsn: \"host=/x password=" + secret + "\"\n"
	require.NoError(s.t, os.WriteFile(s.config, []byte(text), 0o600))
}

// result of a command.
type said struct {
	code     int
	out, err string
}

func (s *site) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "CATALOG_BACKUP_CONFIG=" + s.config}, s.env...)
	return cmd
}

func (s *site) do(args ...string) said {
	s.t.Helper()
	p := s.launch(args...)
	return p.wait()
}

// running is a command that has not ended yet.
type running struct {
	s        *site
	cmd      *exec.Cmd
	out, err lab.Buffer
	done     chan struct{}
}

func (s *site) launch(args ...string) *running {
	s.t.Helper()
	p := &running{s: s, cmd: s.command(args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	require.NoError(s.t, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	s.t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.done })
	return p
}

func (p *running) wait() said {
	p.s.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		p.s.t.Fatalf("%v does not end\nout: %s\nerr: %s", p.cmd.Args, p.out.String(), p.err.String())
	}
	r := said{p.cmd.ProcessState.ExitCode(), p.out.String(), p.err.String()}
	require.NotContains(p.s.t, r.out+r.err, secret)
	require.NotContains(p.s.t, r.out, "\x1b", "no escapes where there is no terminal")
	return r
}

// until waits for a text in what a command says.
func (p *running) until(b *lab.Buffer, text string) {
	p.s.t.Helper()
	require.Eventually(p.s.t, func() bool { return strings.Contains(b.String(), text) }, patience, 10*time.Millisecond,
		"waiting for %q in\n%s\nerr:\n%s", text, &p.out, &p.err)
}

// run waits for the open run that a command has made.
func (s *site) run() run.Record {
	s.t.Helper()
	var r run.Record
	require.Eventually(s.t, func() bool {
		var err error
		r, err = s.store.Current(context.Background(), "catalog")
		return err == nil && !r.State.Over()
	}, patience, 10*time.Millisecond)
	return r
}

func (s *site) reload(id string) run.Record {
	s.t.Helper()
	r, err := s.store.Get(context.Background(), id)
	require.NoError(s.t, err)
	return r
}

func (s *site) claim(r run.Record) run.Record {
	s.t.Helper()
	r = s.reload(r.ID)
	c, err := s.store.Claim(context.Background(), r.ID, r.Stage, r.Generation, "host1", "token234", time.Hour)
	require.NoError(s.t, err)
	require.Equal(s.t, "ok", c.Kind)
	return s.reload(r.ID)
}

func (s *site) progress(r run.Record, done, total, rate int64) {
	s.t.Helper()
	require.NoError(s.t, s.store.Progress(context.Background(), r.ID, r.Hold(), r.Epoch, &done, &total, &rate))
}

func (s *site) advance(r run.Record, next string) run.Record {
	s.t.Helper()
	_, err := s.store.Advance(context.Background(), r, r.Stage, r.Hold(), next, r.Stage+".1")
	require.NoError(s.t, err)
	return s.reload(r.ID)
}

func (s *site) note(r run.Record, f run.Facts) {
	s.t.Helper()
	require.NoError(s.t, s.store.Note(context.Background(), r.ID, r.Hold(), f))
}

var facts = run.Facts{Set: "202611231847_10-0-0-147420", Archives: []string{"/d/202611231847_10-0-0-147420_alation_backup.tar.gz"},
	Manifest: "/d/202611231847_10-0-0-147420_alation_backup.json"}

// succeed plays the rest of a good run.
func (s *site) succeed(r run.Record, f run.Facts) {
	s.t.Helper()
	r = s.reload(r.ID)
	if r.Claimed != r.Generation {
		r = s.claim(r)
	}
	s.note(r, f)
	s.advance(r, "")
}

// fail plays a permanent error and the cleanup.
func (s *site) fail(r run.Record, why string) {
	s.t.Helper()
	r = s.reload(r.ID)
	if r.Claimed != r.Generation {
		r = s.claim(r)
	}
	_, err := s.store.Again(context.Background(), r, r.Stage, r.Generation, run.Retry{Kind: run.Erred, Error: why, Permanent: true})
	require.NoError(s.t, err)
	s.clean(r.ID)
}

func (s *site) clean(id string) {
	s.t.Helper()
	r := s.claim(s.reload(id))
	require.NoError(s.t, s.store.Cleaned(context.Background(), r, r.Hold(), false))
}

// obeyCancel plays the worker that finds the cancel flag.
func (s *site) obeyCancel(id string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool { return s.reload(id).Cancel }, patience, 10*time.Millisecond)
	r := s.reload(id)
	_, err := s.store.Stop(context.Background(), r, r.Generation, run.Cancelled, "cancelled", false)
	require.NoError(s.t, err)
	s.clean(id)
}

// shape decodes a command's whole stdout as one JSON value with just these fields.
func shape(t *testing.T, text string, fields ...string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	var v map[string]any
	require.NoError(t, d.Decode(&v), text)
	require.False(t, d.More(), "one JSON value and nothing else: %s", text)
	got := []string{}
	for k := range v {
		got = append(got, k)
	}
	require.ElementsMatch(t, fields, got)
	return v
}

var (
	resultFields   = []string{"run", "instance", "type", "state"}
	endingFields   = append(slices.Clone(resultFields), "set", "archives", "manifest", "warnings", "error")
	standingFields = []string{"run", "state", "stage", "attempt", "bytes_done", "bytes_total", "node", "error", "attempts"}
	attemptFields  = []string{"stage", "attempt", "node", "started", "ended", "outcome", "error"}
	listFields     = []string{"set", "type", "created", "size", "archives", "parent", "proof"}
	proofFields    = []string{"kind", "at", "good"}
	showFields     = append(slices.Clone(listFields), "instance", "node", "dir", "published", "parts", "warnings", "missing", "damage", "damage_total")
	cancelFields   = []string{"run", "state", "answer"}
)

func TestUsage(t *testing.T) {
	s := newSite(t)
	for _, args := range [][]string{{}, {"bakup-all"}, {"backup-all", "x"}, {"backup-all", "--nope"}, {"backup-all", "--full", "--incremental"},
		{"status", "a", "b"}, {"watch", "--reconnect", "soon"}, {"show"}, {"show", "a", "b"}, {"list", "x"}, {"cancel", "a", "b"}, {"abandon"}, {"abandon", "a", "b"}, {"forget"}, {"forget", "../x"}, {"schedule"}, {"schedule", "now"},
		{"schedule", "list", "x"}, {"schedule", "pause"}, {"schedule", "explain"}, {"schedule", "run", "x"}} {
		r := s.do(args...)
		require.Equal(t, exit.Usage, r.code, "%v: %s", args, r.err)
		require.Empty(t, r.out, "%v", args)
		require.Contains(t, r.err, "producer: ")
		require.Equal(t, 1, strings.Count(r.err, "\n"), "one line: %s", r.err)
	}
	require.Contains(t, s.do("bakup-all").err, "did you mean backup-all")
	require.Equal(t, int64(0), s.rdb.DBSize(context.Background()).Val(), "a usage error asks for nothing")
}

func TestHelpHasAnExampleForEveryVerb(t *testing.T) {
	s := newSite(t)
	for _, verb := range []string{"backup-all", "status", "watch", "list", "show", "cancel", "abandon", "forget", "schedule run", "schedule list", "schedule explain", "schedule pause", "schedule resume", "dashboard"} {
		r := s.do(append(strings.Fields(verb), "--help")...)
		require.Zero(t, r.code)
		require.Contains(t, r.out, "Examples:\n  producer "+verb)
		require.Contains(t, r.out, "--json")
	}
	require.Contains(t, s.do("--version").out, "1.2.3-test")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		require.Contains(t, s.do("completion", shell).out, "producer")
	}
}

func TestConfigurationErrors(t *testing.T) {
	s := newSite(t)
	require.NoError(t, os.WriteFile(s.config, []byte("instance: catalog\nredis: embedded\npostgres:\n  pasword: "+secret+"\n"), 0o600))
	for _, verb := range [][]string{{"backup-all"}, {"status"}, {"watch"}, {"list"}, {"show", "x"}, {"cancel"}} {
		r := s.do(verb...)
		require.Equal(t, exit.Usage, r.code)
		require.Contains(t, r.err, s.config+":4: postgres.pasword: is not a key; did you mean postgres.password?")
	}
	require.Equal(t, exit.Usage, s.do("status", "--config", "/nonexistent/c.yaml").code)
}

func TestCalledAsAlationAction(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	link, hard := filepath.Join(dir, "alation_action"), filepath.Join(filepath.Dir(program), "alation_action")
	require.NoError(t, os.Symlink(program, link))
	require.NoError(t, os.Link(program, hard))
	for _, path := range []string{link, hard} {
		cmd := exec.Command(path, "backup_all")
		cmd.Env = s.command().Env
		out, err := cmd.Output()
		require.NoError(t, err)
		id := strings.TrimSpace(string(out))
		require.True(t, run.ValidID(id), id)
		s.succeed(s.reload(id), facts)
	}
	out, err := exec.Command(link, "backup_all", "--help").Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "alation_action backup-all")
}

func TestRedisUnreachable(t *testing.T) {
	s := newSite(t)
	verbs := [][]string{{"backup-all"}, {"backup-all", "--json"}, {"backup-all", "--wait", "--json", "--reconnect", "0s"}, {"status"}, {"watch", "--reconnect", "0s"}, {"list"}, {"show", "x"}, {"cancel"}, {"abandon", "20261123t184702z-abcdefgh"}, {"forget", "x"}, {"status", "20261123t184702z-abcdefgh"}}
	try := func(words ...string) {
		t.Helper()
		for _, verb := range verbs {
			r := s.do(verb...)
			require.Equal(t, exit.Unreachable, r.code, "%v: %s", verb, r.err)
			require.Empty(t, r.out)
			for _, w := range words {
				require.Contains(t, r.err, w)
			}
			require.Equal(t, 1, strings.Count(r.err, "\n"), "one line: %s", r.err)
		}
	}
	s.configure("redis: {address: \"127.0.0.1:1\"}\n")
	try("Redis at 127.0.0.1:1", "check redis in "+s.config)
	state := t.TempDir()
	s.configure("redis: embedded\nstate_dir: " + state + "\n")
	try("the embedded Redis at "+state, "worker run")
}

func TestRedisRefusesTheLogin(t *testing.T) {
	s := newSite(t, "requirepass right-"+secret)
	for _, password := range []string{"", "  password: wrong-" + secret + "\n"} {
		s.configure("redis:\n  address: unix:" + s.redis.Addr + "\n" + password)
		r := s.do("status")
		require.Equal(t, exit.Unreachable, r.code, r.err)
		require.Contains(t, r.err, "check redis.username and redis.password")
	}
	s.configure("redis:\n  address: unix:" + s.redis.Addr + "\n")
	s.env = []string{"CATALOG_BACKUP_REDIS_PASSWORD=right-" + secret}
	require.Equal(t, exit.NotFound, s.do("status").code)
}

func TestPermissionDeniedNamesTheGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("an ordinary user cannot make another one's directory; the root run of this test does")
		return
	}
	s := newSite(t)
	cred, err := lab.PostgresUser()
	require.NoError(t, err)
	base, err := os.MkdirTemp("/tmp", "cb-perm-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	require.NoError(t, os.Chmod(base, 0o755))
	state := filepath.Join(base, "state")
	require.NoError(t, os.MkdirAll(filepath.Join(state, "redis.socket"), 0o750))
	require.NoError(t, os.Chown(state, 0, 4)) // the group adm
	config := filepath.Join(base, "c.yaml")
	require.NoError(t, os.WriteFile(config, []byte("instance: catalog\nredis: embedded\nstate_dir: "+state+"\n"), 0o644))
	binary := filepath.Join(base, "producer")
	require.NoError(t, exec.Command("cp", program, binary).Run())
	p := &running{s: s, cmd: exec.Command(binary, "status", "--config", config), done: make(chan struct{})}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	_ = p.cmd.Run()
	close(p.done)
	r := p.wait()
	require.Equal(t, exit.Unreachable, r.code, r.err)
	require.Contains(t, r.err, "permission denied")
	require.Contains(t, r.err, "group adm")
}

func TestNothingThereYet(t *testing.T) {
	s := newSite(t)
	for _, verb := range [][]string{{"status"}, {"watch"}, {"cancel"}, {"status", "20261123t184702z-abcdefgh"}, {"watch", "../../etc"},
		{"cancel", "20261123t184702z-abcdefgh"}, {"show", "202109232027_10-0-0-147420"}, {"show", "../x"}} {
		for _, args := range [][]string{verb, append(slices.Clone(verb), "--json")} {
			r := s.do(args...)
			require.Equal(t, exit.NotFound, r.code, "%v: %s", args, r.err)
			require.Empty(t, r.out)
		}
	}
	r := s.do("list", "--json")
	require.Zero(t, r.code)
	require.Equal(t, "[]\n", r.out)
	require.Contains(t, s.do("list").out, "no worker of instance catalog has published")
}

func TestRunOfAnotherInstance(t *testing.T) {
	s := newSite(t)
	r, err := s.store.Start(context.Background(), run.Request{ID: "20261123t184702z-abcdefgh", Instance: "other", Requested: "full", Type: "full", FirstStage: "prepare", Epoch: "e"})
	require.NoError(t, err)
	for _, verb := range []string{"status", "watch", "cancel"} {
		got := s.do(verb, r.ID)
		require.Equal(t, exit.NotFound, got.code)
		require.Contains(t, got.err, "instance other")
	}
	require.False(t, s.reload(r.ID).Cancel)
	require.Equal(t, exit.Good, s.do("backup-all").code, "another instance's run does not lock this one")
}

func TestDamagedRecordIsNoRedisTrouble(t *testing.T) {
	s := newSite(t)
	id := strings.TrimSpace(s.do("backup-all").out)
	require.NoError(t, s.rdb.HSet(context.Background(), "catalog-backup:run:"+id, "attempt:1", "{").Err())
	r := s.do("status", id)
	require.Zero(t, r.code, "what can be read is shown")
	require.Contains(t, r.out, "damaged    attempt:1: it is damaged, and left out: {")
	require.NoError(t, s.rdb.Del(context.Background(), "catalog-backup:run:"+id).Err())
	require.NoError(t, s.rdb.Set(context.Background(), "catalog-backup:run:"+id, "x", 0).Err())
	require.Equal(t, exit.NotFound, s.do("status", id).code)
	require.Equal(t, exit.NotFound, s.do("watch", id).code)
}

func TestCompletionOffersIDs(t *testing.T) {
	s := newSite(t)
	id := strings.TrimSpace(s.do("backup-all").out)
	for _, verb := range []string{"status", "watch", "cancel", "abandon"} {
		require.Contains(t, s.do("__complete", verb, "").out, id+"\tqueued")
	}
	publish(s)
	require.Contains(t, s.do("__complete", "show", "").out, "202109232027_10-0-0-147420\tfull")
	require.NoError(t, s.redis.Kill9())
	require.Zero(t, s.do("__complete", "status", "").code)
}

func TestExplainSparesTheRecord(t *testing.T) {
	require.False(t, damaged(errors.New("EOF")))
	require.False(t, damaged(context.DeadlineExceeded))
}
