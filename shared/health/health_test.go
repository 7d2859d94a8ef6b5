package health

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"catalog-backup/shared/lab"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var ctx = context.Background()

// patience is how long a test waits for what should come at once.
const patience = 60 * time.Second

// clock is moved by hand.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 11, 23, 18, 47, 2, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// stepping is a clock on which every answer is an old one the next time.
func stepping() func() time.Time {
	c := newClock()
	return func() time.Time { c.pass(2 * time.Second); return c.Now() }
}

// newHealth is a Health on server that ends with the test.
func newHealth(t *testing.T, server *lab.RedisServer, o Options) *Health {
	t.Helper()
	rdb := server.Client()
	o.Redis, o.Where = rdb, "Redis of the test"
	if o.Program == "" {
		o.Program, o.Version = "worker", "1.2.3"
	}
	h := New(o)
	t.Cleanup(func() { h.Shutdown(); _ = rdb.Close() })
	return h
}

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestPaths(t *testing.T) {
	bad := atomic.Bool{}
	c := newClock()
	h := newHealth(t, lab.Redis(t), Options{Now: c.Now, Mask: func(s string) string { return strings.ReplaceAll(s, "geheim", "***") },
		Live: []Check{{Name: "main loop", Do: func(context.Context) error { return nil }}},
		Ready: []Check{{Name: "door", Do: func(context.Context) error {
			if bad.Load() {
				return errors.New("it is\nshut by geheim")
			}
			return nil
		}}}})
	code, text := get(t, h, "/healthz")
	require.Equal(t, 200, code)
	require.Equal(t, "ok   main loop\n", text)
	code, text = get(t, h, "/readyz")
	require.Equal(t, 200, code)
	require.Equal(t, "ok   redis\nok   door\n", text)

	bad.Store(true)
	code, _ = get(t, h, "/readyz")
	require.Equal(t, 200, code, "the result is held for a second")
	c.pass(2 * time.Second)
	code, text = get(t, h, "/readyz")
	require.Equal(t, 503, code)
	require.Equal(t, "ok   redis\nBAD  door: it is shut by ***\n", text)
	code, _ = get(t, h, "/healthz")
	require.Equal(t, 200, code)

	code, _ = get(t, h, "/else")
	require.Equal(t, 404, code)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/healthz", nil))
	require.Equal(t, 405, w.Code)
	require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
}

// A check that hangs is told, is not asked a second time meanwhile, and recovers.
func TestCheckThatHangs(t *testing.T) {
	release, asked := make(chan struct{}), atomic.Int32{}
	c := newClock()
	h := newHealth(t, lab.Redis(t), Options{Now: c.Now, Live: []Check{{Name: "disk", Limit: 20 * time.Millisecond, Do: func(context.Context) error {
		asked.Add(1)
		<-release // as a system call on a dead mount: it knows no context
		return nil
	}}}})
	for range 3 {
		code, text := get(t, h, "/healthz")
		require.Equal(t, 503, code)
		require.Contains(t, text, "BAD  disk: no answer within 20ms")
		c.pass(10 * time.Second)
	}
	require.Equal(t, int32(1), asked.Load())
	close(release)
	require.Eventually(t, func() bool { code, _ := get(t, h, "/healthz"); return code == 200 }, patience, 5*time.Millisecond)
}

func TestCheckThatPanics(t *testing.T) {
	h := newHealth(t, lab.Redis(t), Options{Live: []Check{{Name: "x", Do: func(context.Context) error { panic("oh") }}}})
	code, text := get(t, h, "/healthz")
	require.Equal(t, 503, code)
	require.Contains(t, text, "the check panicked: oh")
}

// Many probes at once ask once.
func TestProbesShareAnAnswer(t *testing.T) {
	release, asked := make(chan struct{}), atomic.Int32{}
	h := newHealth(t, lab.Redis(t), Options{Now: newClock().Now, Live: []Check{{Name: "x", Limit: patience, Do: func(context.Context) error {
		asked.Add(1)
		<-release
		return nil
	}}}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			code, _ := get(t, h, "/healthz")
			assert.Equal(t, 200, code)
		})
	}
	require.Eventually(t, func() bool { return asked.Load() == 1 }, patience, time.Millisecond)
	close(release)
	wg.Wait()
	require.Equal(t, int32(1), asked.Load())
}

func TestBeat(t *testing.T) {
	c := newClock()
	b := NewBeat(c.Now)
	check := b.Check("loop", time.Minute)
	c.pass(time.Minute)
	require.NoError(t, check.Do(ctx))
	c.pass(time.Second)
	require.ErrorContains(t, check.Do(ctx), "it has not gone round for 1m1s (limit 1m0s)")
	b.Turn()
	require.NoError(t, check.Do(ctx))
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	long := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	require.NoError(t, os.Chtimes(dir, long, long))
	check := func(dir string) error { return Directory("dump directory", dir, "some.key").Do(ctx) }
	require.NoError(t, check(dir))
	require.NoError(t, accessible(dir))
	fi, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, long, fi.ModTime().UTC(), "what watches the directory is not woken")

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o700))
	require.ErrorContains(t, check(file), file+" (some.key) cannot be written: not a directory; give it to")
	require.ErrorContains(t, accessible(file), "not a directory")
	require.ErrorContains(t, check(filepath.Join(dir, "none")), "no such file or directory")
	require.ErrorContains(t, accessible(filepath.Join(dir, "none")), "no such file or directory")
}

func TestAddressInUse(t *testing.T) {
	server := lab.Redis(t)
	h, second := newHealth(t, server, Options{}), newHealth(t, server, Options{})
	require.NoError(t, h.Start("127.0.0.1:0", "worker.listen"))
	err := second.Start(h.Address(), "worker.listen")
	require.EqualError(t, err, "listen at "+h.Address()+" for health and metrics: address already in use; end the program that has the address, or set worker.listen to another one: each process on a machine needs its own")
	err = second.Start("192.0.2.1:9100", "worker.listen")
	require.ErrorContains(t, err, "cannot assign requested address; set worker.listen to an address of this machine")
}

func TestServer(t *testing.T) {
	h := newHealth(t, lab.Redis(t), Options{})
	require.NoError(t, h.Start("127.0.0.1:0", "worker.listen"))
	resp, err := http.Get("http://" + h.Address() + "/metrics")
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, resp.Body.Close())
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Contains(t, string(text), "catalog_backup_redis_up 1\n")
	require.Contains(t, string(text), "go_goroutines ")

	// A client that says nothing does not hold Shutdown up.
	c, err := net.Dial("tcp", h.Address())
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	h.Shutdown()
	_, err = http.Get("http://" + h.Address() + "/healthz")
	require.Error(t, err)
}

func TestRedisAwayAndBack(t *testing.T) {
	server := lab.Redis(t)
	c := newClock()
	h := newHealth(t, server, Options{Now: c.Now})
	play(t, server, c)
	c.pass(2 * time.Second)
	_, text := get(t, h, "/metrics")
	require.Contains(t, text, `catalog_backup_runs_total{instance="catalog",result="succeeded"} 1`)
	for name, away := range map[string]struct{ away, back func() error }{
		"shut down": {server.Shutdown, server.Start},
		"killed":    {server.Kill9, server.Start},
		"frozen":    {server.Stop, server.Cont},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, away.away())
			c.pass(2 * time.Second)
			begin := time.Now()
			code, text := get(t, h, "/metrics")
			require.Less(t, time.Since(begin), 20*time.Second, "a scrape is bounded")
			require.Equal(t, 200, code)
			require.Equal(t, []string{`catalog_backup_build_info{program="worker",version="1.2.3"} 1`, "catalog_backup_redis_up 0"}, samples(text))
			code, text = get(t, h, "/readyz")
			require.Equal(t, 503, code)
			require.Contains(t, text, "BAD  redis: ")
			code, _ = get(t, h, "/healthz")
			require.Equal(t, 200, code, "the process is not ended for it")

			require.NoError(t, away.back())
			require.Eventually(t, func() bool {
				c.pass(2 * time.Second)
				code, _ := get(t, h, "/readyz")
				_, text := get(t, h, "/metrics")
				return code == 200 && strings.Contains(text, `catalog_backup_runs_total{instance="catalog",result="succeeded"} 1`)
			}, patience, 20*time.Millisecond)
		})
	}
}

// samples are the lines of our own metrics.
func samples(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, namespace+"_") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}
