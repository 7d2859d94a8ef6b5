// Package redisserver is the embedded Redis of the workers of one machine: a
// redis-server on a private unix socket, started as a child of one of them.
//
// The worker that holds the lock in the data directory owns the server and starts
// it under a keeper, so that it ends, in order, when that worker dies. The other
// workers are clients; one of them takes over lock and data then. The pattern is
// Faktory's (storage/redis.go).
package redisserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"catalog-backup/shared/redisowner"
	"catalog-backup/worker/keeper"
	"catalog-backup/worker/stage"
)

const (
	// gentle is how long redis-server may take to end after SIGTERM.
	gentle = 10 * time.Second
	// lockEvery is how often a client tries to become the owner.
	lockEvery = 200 * time.Millisecond
	// answerEvery is how often a starting server is asked.
	answerEvery = 20 * time.Millisecond
	// A server that ends is started again after backoffMin, doubled up to
	// backoffMax; one that lived for steady starts anew with backoffMin.
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
	steady     = 10 * time.Second
)

// Options say where the embedded Redis lives.
type Options struct {
	Dir     string // its data, configuration, log and lock, an absolute path; made if missing
	Socket  string // its unix socket, an absolute path of at most 100 bytes
	Group   string // group that may use the socket; "" is nobody but the owner
	Program string // redis-server; "" looks it up in PATH and /usr/bin
	// Hung is how long a server may leave every question unanswered before its owner
	// ends it and starts it again. Default 30 s, in steps of a second.
	Hung time.Duration
	// Version is this program's, for the people who are told who owns the server.
	Version string
	// Logf tells what goes on behind the caller's back: restarts, takeovers. Optional.
	Logf func(format string, args ...any)
	// Errorf tells what a person must see to. Optional, Logf if it is not set.
	Errorf func(format string, args ...any)
}

// Server is this worker's part in the embedded Redis.
type Server struct {
	Options
	gid       int  // of Group, -1 if there is none
	modern    bool // redis-server 7 or newer
	gentle    time.Duration
	tellAfter time.Duration
	limit     time.Duration // silentLimit
	mu        sync.Mutex
	owner     bool
	process   *keeper.Process // of the owner
	cancel    context.CancelFunc
	done      chan struct{} // closed when the loop has ended and the lock is free
}

// New makes a Server; Start does the work.
func New(o Options) *Server {
	if o.Hung == 0 {
		o.Hung = hung
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	if o.Errorf == nil {
		o.Errorf = o.Logf
	}
	if o.Version == "" {
		o.Version = "unknown"
	}
	return &Server{Options: o, gid: -1, gentle: gentle, tellAfter: tellAfter, limit: silentLimit}
}

// Owner tells whether this worker runs the server at the moment.
func (s *Server) Owner() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owner
}

// Start returns when Redis answers, whoever owns it. From then on this worker
// keeps it running, or takes over when its owner dies, until Shutdown. ctx bounds
// the start only. Where another worker owns it and nothing answers for a minute, the
// error is an ErrSilent.
func (s *Server) Start(ctx context.Context) error {
	if s.cancel != nil {
		return errors.New("starting the embedded Redis: it was started already")
	}
	if err := s.prepare(ctx); err != nil {
		return fmt.Errorf("starting the embedded Redis: %w", err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.done = make(chan struct{})
	for q := (silence{}); ; {
		lock, err := s.tryLock()
		if err == nil && lock != nil {
			if err = s.own(ctx, run); err == nil {
				go s.serve(run, lock)
				break
			}
			s.release(lock)
		}
		if err != nil {
			cancel()
			return fmt.Errorf("starting the embedded Redis: %w", err)
		}
		if err = s.ask(&q, nil); err == nil {
			go s.serve(run, nil)
			break
		}
		if q.lasted >= s.limit {
			cancel()
			return fmt.Errorf("starting the embedded Redis: %w", s.silent(&q, err, nil))
		}
		select { // its owner is starting it, or has just died
		case <-ctx.Done():
			cancel()
			return fmt.Errorf("starting the embedded Redis: another worker holds %s but none answers on %s: %w; look into %s",
				s.path("lock"), s.Socket, context.Cause(ctx), s.path("redis.log"))
		case <-time.After(answerEvery):
		}
	}
	s.cancel = cancel
	return nil
}

// Shutdown ends this worker's part: an owner's server ends in order, its data
// safe, and the next worker may take over. It returns when that is done or ctx
// ends; the end goes on then.
func (s *Server) Shutdown(ctx context.Context) error {
	if s.cancel == nil {
		return nil
	}
	s.cancel()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ending the embedded Redis: %w; it goes on ending by itself", context.Cause(ctx))
	}
}

// serve keeps the server running as its owner, who has the lock, or waits for the
// lock as a client, until ctx ends.
func (s *Server) serve(ctx context.Context, lock *os.File) {
	defer close(s.done)
	defer func() { s.release(lock) }()
	var q silence
	for wait := backoffMin; ; {
		began := time.Now()
		if lock != nil && s.process != nil {
			err := s.process.Wait()
			s.setOwner(nil)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				err = errors.New("somebody told it to end")
			}
			if time.Since(began) > steady {
				wait, q = backoffMin, silence{}
			}
			s.Logf("the embedded Redis ended and is started again in %v: %v%s", wait, err, s.logTail())
			_ = s.ask(&q, err) // again and again is as good as silent
		}
		pause := lockEvery
		if lock != nil {
			pause, wait = wait, min(2*wait, backoffMax)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if lock = s.keepOrTake(lock, &q); lock == nil {
			continue
		}
		if err := s.own(ctx, ctx); err != nil && ctx.Err() == nil {
			s.Logf("the embedded Redis: %v; tried again in %v", err, wait)
			_ = s.ask(&q, err)
		}
	}
}

// keepOrTake returns the lock that is worth having: the one of the owner, unless the
// state directory is another one now, or the one that a client could take; nil if there
// is none. A client looks after the server of the other.
func (s *Server) keepOrTake(lock *os.File, q *silence) *os.File {
	if lock != nil && s.replaced(lock) {
		s.Errorf("the embedded Redis: %s was moved away under this worker, which owned it; whoever takes the lock that is there now owns it", s.Dir)
		s.release(lock)
		lock = nil
	}
	if lock != nil {
		return lock
	}
	lock, err := s.tryLock()
	if lock != nil {
		s.Logf("this worker takes over the embedded Redis")
		return lock
	}
	if q.due() {
		_ = s.ask(q, err)
	}
	return nil
}

func (s *Server) setOwner(p *keeper.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owner, s.process = p != nil, p
}

// own starts the server of the owner and returns when it answers. The server's
// life is run, ctx bounds the start.
func (s *Server) own(ctx, run context.Context) error {
	// The dead owner's server may still be ending; two on one data directory would
	// spoil it.
	if err := keeper.EndLeftover(ctx, s.path("redis.pid")); err != nil {
		return err
	}
	if conn, err := net.DialTimeout("unix", s.Socket, time.Second); err == nil {
		conn.Close()
		return fmt.Errorf("a server that is not ours listens on %s; end it or set another socket", s.Socket)
	}
	if info, err := os.Lstat(s.Socket); err == nil && info.Mode().Type() != os.ModeSocket {
		return stage.Permanentf("%s is there and no socket; redis-server would delete it: move it away or set another socket", s.Socket)
	}
	if err := s.sweep(); err != nil {
		return err
	}
	if err := s.writeConfig(); err != nil {
		return err
	}
	life, end := context.WithCancelCause(run)
	p, err := keeper.Start(life, keeper.Command{
		Path: s.Program, Args: []string{s.path("redis.conf")}, Dir: s.Dir, Gentle: s.gentle, PIDFile: s.path("redis.pid"),
	})
	if err != nil {
		end(nil)
		return err
	}
	go func() { <-p.Done(); end(nil) }()
	go s.endIfHung(p, end)
	for {
		if err = answers(s.Socket); err == nil {
			break
		}
		select {
		case <-p.Done():
			return fmt.Errorf("redis-server ended at once: %w%s", p.Wait(), s.logTail())
		case <-ctx.Done():
			end(nil)
			_ = p.Wait()
			return fmt.Errorf("redis-server does not answer (%w): %w%s", err, context.Cause(ctx), s.logTail())
		case <-time.After(answerEvery):
		}
	}
	if err := s.openToGroup(); err != nil {
		end(nil)
		_ = p.Wait()
		return err
	}
	s.setOwner(p)
	return nil
}

func (s *Server) path(name string) string { return filepath.Join(s.Dir, name) }

// tryLock returns the open lock file, or nil if another worker has the lock. The
// kernel frees it when its holder dies.
func (s *Server) tryLock() (*os.File, error) {
	f, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		if err := redisowner.Sign(f, s.Version); err != nil {
			s.Logf("the embedded Redis: %v; it works, but who waits for it is not told that this worker owns it", err)
		}
		return f, nil
	}
	f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return nil, nil
	}
	return nil, fmt.Errorf("locking %s: %w; the state directory must be on a file system with flock", s.path("lock"), err)
}

func (s *Server) release(lock *os.File) {
	if lock != nil {
		lock.Close()
	}
}

// logTail is the end of the server's log for an error, on one line.
func (s *Server) logTail() string {
	text, err := os.ReadFile(s.path("redis.log"))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text[max(0, len(text)-2000):])), "\n")
	return "; its log says: " + strings.Join(lines[max(0, len(lines)-3):], " | ")
}
