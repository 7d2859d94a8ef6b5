// Package health answers whether a process lives (/healthz), whether it can do its
// work now (/readyz), and what there is to measure (/metrics, for Prometheus). The
// worker, the scheduler and the dashboard use it alike.
//
// A process with a listener of its own:
//
//	h := health.New(health.Options{Program: "scheduler", Version: exit.Version, Redis: rdb, Where: task.Where(c), Mask: c.Mask,
//		Live: []health.Check{beat.Check("main loop", 2*time.Minute)}})
//	defer h.Shutdown()
//	if c.Listen.Schedule != "" {
//		if err := h.Start(c.Listen.Schedule, "schedule.listen"); err != nil {
//			return exit.With(exit.Usage, err)
//		}
//	}
//
// where beat is a health.NewBeat(time.Now), and the main loop calls beat.Turn() each
// time that it goes round. A process with a server of its own mounts h, which is an
// http.Handler, under the three paths instead of calling Start.
package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
)

// The paths that a Health answers.
const (
	LivePath    = "/healthz"
	ReadyPath   = "/readyz"
	MetricsPath = "/metrics"
)

const (
	// hold is how long a result is good for: probing more often costs nothing.
	hold = time.Second
	// defaultLimit is how long a check, or a look at Redis for the metrics, may take.
	defaultLimit = 2 * time.Second
)

// Options say what a Health tells.
type Options struct {
	Program string // worker, scheduler or dashboard
	Version string
	// Live are the checks that a process fails which should be ended and started again. None
	// of them may depend on another server.
	Live []Check
	// Ready are the checks that a process fails which cannot do its work now. That
	// Redis answers is always asked, before them.
	Ready []Check
	// Redis is where the metrics come from. A connection of our own is made to it, so
	// that a frozen server or a busy pool holds nobody up.
	Redis *redis.Client
	Where string // what Redis it is, for people, without secrets
	// Mask takes secrets out of a text.
	Mask func(string) string
	// Collectors are further metrics.
	Collectors []prometheus.Collector
	// Now is the clock; nil is time.Now, and Redis's for what Redis knows.
	Now func() time.Time
}

// Health is the handler of the three paths, and a small server for it.
type Health struct {
	o       Options
	live    []*checked
	ready   []*checked
	metrics http.Handler
	rdb     *redis.Client
	server  *http.Server
	address string
	served  chan struct{} // closed when the server has ended

	registry *prometheus.Registry
}

// New makes a Health. Shutdown ends it.
func New(o Options) *Health {
	given := o.Now // nil: the ages of what Redis knows are told by its own clock
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Mask == nil {
		o.Mask = func(s string) string { return s }
	}
	h := &Health{o: o, rdb: impatient(o.Redis), live: checks(o.Live, o.Now)}
	h.ready = checks(append([]Check{redisCheck(h.rdb, o.Where)}, o.Ready...), o.Now)
	h.registry = prometheus.NewRegistry()
	h.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newCollector(h.rdb, run.NewStore(h.rdb, given, time.Hour), o))
	h.registry.MustRegister(o.Collectors...)
	h.metrics = promhttp.HandlerFor(h.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 8})
	return h
}

// impatient makes a second client for the same Redis, which gives up when its
// context says so and never tries twice.
func impatient(rdb *redis.Client) *redis.Client {
	o := *rdb.Options()
	o.ContextTimeoutEnabled, o.MaxRetries, o.PoolSize, o.MinIdleConns = true, -1, 4, 0
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = defaultLimit, defaultLimit, defaultLimit, defaultLimit
	return redis.NewClient(&o)
}

// ServeHTTP answers the three paths.
func (h *Health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are answered here", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch r.URL.Path {
	case LivePath:
		h.tell(w, r, h.live)
	case ReadyPath:
		h.tell(w, r, h.ready)
	case MetricsPath:
		h.metrics.ServeHTTP(w, r)
	default:
		http.NotFound(w, r)
	}
}

// tell writes a line a check, and 503 when one is bad.
func (h *Health) tell(w http.ResponseWriter, r *http.Request, list []*checked) {
	errs := all(r.Context(), list)
	code, text := http.StatusOK, &strings.Builder{}
	for i, c := range list {
		if errs[i] == nil {
			fmt.Fprintf(text, "ok   %s\n", c.Name)
			continue
		}
		code = http.StatusServiceUnavailable
		fmt.Fprintf(text, "BAD  %s: %s\n", c.Name, h.line(errs[i]))
	}
	if len(list) == 0 {
		text.WriteString("ok   the process answers\n")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text.String()))
}

// line makes an error one line without secrets.
func (h *Health) line(err error) string {
	return exit.OneLine(h.o.Mask(err.Error()), 500)
}

// Start listens at address, HOST:PORT, and answers in the background. key is the
// configuration key that the address comes from.
func (h *Health) Start(address, key string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen at %s for health and metrics: %w; %s", address, cause(err), remedy(err, key))
	}
	h.address = l.Addr().String()
	h.server = &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	h.served = make(chan struct{})
	go func() {
		defer close(h.served)
		_ = h.server.Serve(l)
	}()
	return nil
}

// cause is the reason alone: net repeats the address.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func remedy(err error, key string) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "end the program that has the address, or set " + key + " to another one: each process on a machine needs its own"
	case errors.Is(err, syscall.EACCES):
		return "set " + key + " to a port from 1024 on"
	}
	return "set " + key + " to an address of this machine, or leave it out"
}

// Address is where Start listens.
func (h *Health) Address() string { return h.address }

// Shutdown lets answers under way end, for a second, and closes what New and Start opened.
func (h *Health) Shutdown() {
	if h.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if h.server.Shutdown(ctx) != nil {
			_ = h.server.Close()
		}
		<-h.served
	}
	_ = h.rdb.Close()
}
