package redisserver

import (
	"errors"
	"fmt"
	"os"
	"time"

	"catalog-backup/shared/redisowner"
)

// ErrSilent means that another worker has the lock, but no Redis answers.
var ErrSilent = errors.New("another worker keeps it, but it has answered nothing")

const (
	// tellAfter is how long there may be no server before a worker says so at error;
	// from then on it does every tellEvery.
	tellAfter = 10 * time.Second
	tellEvery = time.Minute
	// silentLimit is how long a worker that starts waits for a silent Redis. One that
	// loads its data is not silent.
	silentLimit = time.Minute
)

// silence is how long a worker has been without a server.
type silence struct {
	lasted time.Duration
	next   time.Duration // of lasted, when to say so; 0: not decided
	asked  time.Time
}

// due tells whether it is time to ask again.
func (q *silence) due() bool { return time.Since(q.asked) >= askEvery }

// ask asks the server, and tells people where there has been none for long. failed is
// why this worker cannot run it, nil where another one has the lock.
func (s *Server) ask(q *silence, failed error) error {
	err := answers(s.Socket)
	// Where this worker was frozen, or the machine slept, nobody has asked.
	if !q.asked.IsZero() {
		q.lasted += min(time.Since(q.asked), 2*askEvery)
	}
	q.asked = time.Now()
	if lives(err) && failed == nil {
		q.lasted, q.next = 0, 0
		return err
	}
	if q.next == 0 {
		q.next = s.tellAfter
	}
	if q.lasted >= q.next {
		q.next = q.lasted + tellEvery
		s.Errorf("the embedded Redis: %v", s.silent(q, err, failed))
	}
	return err
}

// silent is the error for a server that has been away for long.
func (s *Server) silent(q *silence, answer, failed error) error {
	span := q.lasted.Round(time.Second)
	if failed == nil {
		return fmt.Errorf("%w for %v on %s (%w); %s", ErrSilent, span, s.Socket, answer, redisowner.Remedy(s.path("lock"), true))
	}
	err := fmt.Errorf("this worker has not been able to keep it running for %v: %w", span, failed)
	if place := redisowner.Place(s.path("lock")); place != "" {
		err = fmt.Errorf("%w; %s", err, place)
	}
	return err
}

// replaced tells whether lock is no longer the file that others would take: the state
// directory was moved away, maybe with another one in its place.
func (s *Server) replaced(lock *os.File) bool {
	ours, err := lock.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(s.path("lock"))
	return errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(ours, there)
}
