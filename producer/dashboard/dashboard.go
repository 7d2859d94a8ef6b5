// Package dashboard is the web page of the producer: instances, the running run,
// sets, plans and failures as the run records and the workers' lists tell them, and
// asynqmon, which shows the queues. Everything is read; only with AllowActions can a
// backup be started or a run be cancelled. Log-in, headers and listening are here too.
package dashboard

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"catalog-backup/producer/start"
	"catalog-backup/shared/config"
	"catalog-backup/shared/run"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
)

// Options are what a dashboard works with. All but those marked are needed.
type Options struct {
	Path     string   // of the configuration, for errors
	Listen   []string // HOST:PORT
	Hosts    []string // names browsers may use; optional, see guard
	Open     bool     // no log-in
	Username string
	Password string // optional, if there is a token
	Token    string // optional, if there is a password
	CertFile string // optional; with KeyFile: speak TLS
	KeyFile  string

	AllowActions bool
	MaxAge       time.Duration // of the newest good set

	Instance string // shown even while Redis has not seen it
	Version  string
	Store    *run.Store
	Starter  start.Starter
	Queues   asynq.RedisConnOpt
	Ping     func(context.Context) error
	Explain  func(error) error // puts an error of Redis into words, with a remedy and without secrets
	Now      func() time.Time
	Log      *logrus.Logger

	// Plans of an instance and how many schedulers live; nil: the page says nothing of plans.
	Plans func(ctx context.Context, instance string) (Plans, error)
	// Health and Ready answer without a log-in, Metrics behind it; nil: not served.
	Health, Ready, Metrics http.Handler
}

// Plans are the periodic tasks of an instance.
type Plans struct {
	Known      bool // false: they stand in another configuration
	Plans      []Plan
	Schedulers int // live ones
	// Refused: the configuration file as it is now cannot be used; Plans are those that it
	// had when the dashboard started.
	Refused bool
}

// Plan is one periodic task.
type Plan struct {
	Name, Cron, Timezone, Job string
	Paused                    bool
	PausedBy                  string
	Next                      time.Time // zero: never
	LastTick                  time.Time // zero: none yet
	LastResult                string
	LastRun                   string // id, or ""
	LastReason                string
}

// Service is a running dashboard.
type Service struct {
	o       Options
	key     []byte // of the form tokens
	pages   pages
	queues  *queues
	guard   *guard
	server  *http.Server
	tls     bool // the server's TLSConfig does not tell: net/http makes one for itself
	sockets []net.Listener
	failed  chan error
}

// New makes a dashboard that does not listen yet.
func New(o Options) (*Service, error) {
	s := &Service{o: o, key: make([]byte, 32), failed: make(chan error, len(o.Listen))}
	rand.Read(s.key) // never fails, see crypto/rand
	var err error
	if s.pages, err = parsePages(); err != nil {
		return nil, err
	}
	s.queues = newQueues(o.Queues)
	s.guard = newGuard(o)
	s.server = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(lineWriter{o.Log}, "", 0),
	}
	if o.CertFile != "" {
		certs := &certificates{certFile: o.CertFile, keyFile: o.KeyFile}
		if err := certs.load(); err != nil {
			return nil, &config.Error{File: o.Path, Key: "dashboard.tls.cert_file", Problem: err.Error(), Remedy: "name readable PEM files of a certificate and its key"}
		}
		s.tls = true
		s.server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certs.get}
	}
	return s, nil
}

// Start listens on every address and returns when all are open. An address that
// cannot be had is an error, and none is open then.
func (s *Service) Start() error {
	for _, a := range s.o.Listen {
		l, err := net.Listen("tcp", a)
		if err != nil {
			for _, open := range s.sockets {
				_ = open.Close()
			}
			return &config.Error{File: s.o.Path, Key: "dashboard.listen", Problem: fmt.Sprintf("cannot listen on %s: %s", a, reason(err)), Remedy: "choose a free address of this machine"}
		}
		s.sockets = append(s.sockets, l)
	}
	for _, l := range s.sockets {
		serve := s.server.Serve
		if s.tls {
			serve = func(l net.Listener) error { return s.server.ServeTLS(l, "", "") }
		}
		go func() {
			if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
				s.failed <- fmt.Errorf("serve the dashboard on %s: %w", l.Addr(), err)
			}
		}()
	}
	return nil
}

// reason leaves out what the message says anyway.
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

// URLs are where the dashboard can be reached.
func (s *Service) URLs() []string {
	scheme := "http://"
	if s.tls {
		scheme = "https://"
	}
	var out []string
	for _, l := range s.sockets {
		out = append(out, scheme+l.Addr().String()+"/")
	}
	return out
}

// Failed tells of a listener that broke while serving.
func (s *Service) Failed() <-chan error { return s.failed }

// Shutdown lets requests under way finish until ctx ends, then closes everything.
func (s *Service) Shutdown(ctx context.Context) error {
	err := s.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.server.Close())
	}
	return errors.Join(err, s.queues.close())
}

// handler is everything: headers, host check, log-in, cross-origin protection, pages.
func (s *Service) handler() http.Handler {
	inside := http.NewServeMux()
	s.routes(inside)
	if s.o.Metrics != nil {
		inside.Handle("GET /metrics", s.o.Metrics)
	}
	inside.Handle(queuesRoot+"/", s.queues)
	inside.Handle("GET "+queuesRoot, http.RedirectHandler(queuesRoot+"/", http.StatusSeeOther))
	all := http.NewServeMux()
	all.Handle("/", s.guard.host(s.guard.loggedIn(http.NewCrossOriginProtection().Handler(inside))))
	for path, h := range map[string]http.Handler{"GET /healthz": s.o.Health, "GET /readyz": s.o.Ready} {
		if h != nil {
			all.Handle(path, s.guard.discreet(h))
		}
	}
	return secured(all)
}

// secured sets the headers that every answer carries.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", ownPolicy)
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// ownPolicy is for our pages: own files only, nothing inline, no frames.
const ownPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// lineWriter brings what net/http has to say into the log.
type lineWriter struct{ log *logrus.Logger }

var _ io.Writer = lineWriter{}

func (w lineWriter) Write(p []byte) (int, error) {
	level := logrus.DebugLevel // clients that go away, handshakes that fail
	if bytes.Contains(p, []byte("panic")) {
		level = logrus.ErrorLevel
	}
	w.log.Log(level, printable(string(p)))
	return len(p), nil
}
