package dashboard

import (
	"bytes"
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"catalog-backup/producer/start"
	"catalog-backup/shared/config"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"

	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

const (
	// secret must be on no page and in no log.
	secret = "geheim-7f3a-lang"
	// patience bounds every wait of these tests.
	patience = 60 * time.Second
)

var ctx = context.Background()

// site is a real Redis with a dashboard on it, and this test as its worker.
type site struct {
	t     *testing.T
	redis *lab.RedisServer
	rdb   *redis.Client
	store *run.Store
	o     Options
	s     *Service
	base  string // URL without user
	log   *lab.Buffer

	mu sync.Mutex
	at time.Time // what the store's clock says; zero: the time of day
}

func newSite(t *testing.T, change ...func(*Options)) *site {
	t.Helper()
	s := &site{t: t, redis: lab.Redis(t), log: &lab.Buffer{}}
	path := filepath.Join(t.TempDir(), "config.yaml")
	c, err := config.Parse(path, []byte("instance: catalog\nredis: {address: 'unix:"+s.redis.Addr+"'}\n"), func(string) string { return "" })
	require.NoError(t, err)
	s.rdb, err = task.Connect(c)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.rdb.Close() })
	s.rdb.Options().ContextTimeoutEnabled = true
	s.store = run.NewStore(s.rdb, s.now, 1000*time.Hour)
	queues, err := task.Connector(c)
	require.NoError(t, err)
	log := logrus.New()
	log.SetOutput(s.log)
	s.o = Options{Path: path, Listen: []string{"127.0.0.1:0"}, Username: "admin", Password: secret, Token: "token-" + secret, MaxAge: 26 * time.Hour,
		Instance: "catalog", Version: "1.2.3", Store: s.store, Starter: start.New(s.rdb, s.store, time.Now), Queues: queues,
		Ping: func(ctx context.Context) error { return s.rdb.Ping(ctx).Err() }, Explain: func(err error) error { return err }, Now: time.Now, Log: log}
	for _, f := range change {
		f(&s.o)
	}
	s.s, err = New(s.o)
	require.NoError(t, err)
	s.s.guard.wait = func(context.Context, time.Duration) {}
	require.NoError(t, s.s.Start())
	t.Cleanup(func() {
		end, done := context.WithTimeout(ctx, patience)
		defer done()
		require.NoError(t, s.s.Shutdown(end))
		require.NotContains(t, s.log.String(), secret)
	})
	s.base = strings.TrimSuffix(s.s.URLs()[0], "/")
	return s
}

func (s *site) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() {
		return time.Now()
	}
	return s.at
}

func (s *site) setClock(t time.Time) { s.mu.Lock(); s.at = t; s.mu.Unlock() }

// open asks for a run as the command line does, its first task included.
func (s *site) open(instance string, requested set.Type) run.Record {
	s.t.Helper()
	starter := start.New(s.rdb, s.store, s.now)
	r, err := starter.Open(ctx, start.Request{Instance: instance, Requested: requested})
	require.NoError(s.t, err)
	require.NoError(s.t, starter.HandOver(ctx, r))
	return r
}

func (s *site) reload(id string) run.Record {
	s.t.Helper()
	r, err := s.store.Get(ctx, id)
	require.NoError(s.t, err)
	return r
}

// claim begins an attempt as a worker does.
func (s *site) claim(id string) run.Record {
	s.t.Helper()
	r := s.reload(id)
	c, err := s.store.Claim(ctx, id, r.Stage, r.Generation, "host1", "token234", 6*time.Hour)
	require.NoError(s.t, err)
	require.Equal(s.t, "ok", c.Kind)
	return s.reload(id)
}

func (s *site) progress(r run.Record, done, total, rate int64) {
	s.t.Helper()
	require.NoError(s.t, s.store.Progress(ctx, r.ID, r.Hold(), r.Epoch, &done, &total, &rate))
}

// advance ends the current stage well; next "" ends the run.
func (s *site) advance(r run.Record, next string) run.Record {
	s.t.Helper()
	_, err := s.store.Advance(ctx, r, r.Stage, r.Hold(), next, r.Stage+".1")
	require.NoError(s.t, err)
	return s.reload(r.ID)
}

func (s *site) again(r run.Record, kind run.Outcome, why string, permanent bool) run.Record {
	s.t.Helper()
	_, err := s.store.Again(ctx, r, r.Stage, r.Generation, run.Retry{Kind: kind, Error: why, Budget: 3, Permanent: permanent})
	require.NoError(s.t, err)
	return s.reload(r.ID)
}

func (s *site) clean(id string) {
	s.t.Helper()
	r := s.claim(id)
	require.NoError(s.t, s.store.Cleaned(ctx, r, r.Hold(), false))
}

// worker signs in and stays for the presence's length.
func (s *site) worker(instance, node string) {
	s.t.Helper()
	require.NoError(s.t, s.store.SignIn(ctx, instance, run.Worker{ID: node + "-4711-ab12cd34", Node: node, Host: "catalog-" + node, PID: 4711, Version: "1.2.3", Started: time.Now().Add(-49 * time.Hour)}))
	// A sign lasts for seconds; these tests take longer.
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-ended:
				return
			case <-time.After(2 * time.Second):
				_ = s.rdb.PExpire(ctx, "catalog-backup:"+instance+":worker:"+node+"-4711-ab12cd34", 12*time.Second).Err()
			}
		}
	}()
	s.t.Cleanup(func() { close(ended); <-stopped })
}

func summary(id string, age time.Duration, size int64, proof *set.Proof) set.Summary {
	dir := "/data2/backup/"
	return set.Summary{Set: id, Type: set.Full, Created: time.Now().Add(-age), Size: &size, Instance: "catalog", Dir: "/data2/backup",
		Archives: []string{dir + id + "_alation_backup.tar.gz", dir + id + "_alation_eb_backup.tar.gz"}, Parts: []string{"files", "postgres", "eventbus"}, Proof: proof}
}

func (s *site) publish(instance string, p run.Published) {
	s.t.Helper()
	require.NoError(s.t, s.store.Publish(ctx, instance, p))
}

// get asks for a page as admin.
func (s *site) get(path string, change ...func(*http.Request)) (int, string, http.Header) {
	s.t.Helper()
	return s.ask(http.MethodGet, path, change...)
}

func (s *site) ask(method, path string, change ...func(*http.Request)) (int, string, http.Header) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, s.base+path, nil)
	require.NoError(s.t, err)
	r.SetBasicAuth("admin", secret)
	for _, f := range change {
		f(r)
	}
	client := &http.Client{Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := client.Do(r)
	require.NoError(s.t, err)
	defer func() { _ = answer.Body.Close() }()
	var b bytes.Buffer
	_, err = b.ReadFrom(answer.Body)
	require.NoError(s.t, err)
	require.NotContains(s.t, b.String(), secret)
	return answer.StatusCode, b.String(), answer.Header
}
