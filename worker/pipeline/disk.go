package pipeline

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// errHangs is returned for a file system that does not answer in time.
var errHangs = errors.New("the file system does not answer")

// looks are those at the disk by somebody who must not hang with it. One that hangs
// is not begun a second time, and does its work once the disk answers.
type looks struct {
	mu   sync.Mutex
	busy map[string]bool
}

// at does what key names, and waits limit for it.
func (l *looks) at(key string, limit time.Duration, do func() error) error {
	l.mu.Lock()
	if l.busy[key] {
		l.mu.Unlock()
		return errHangs
	}
	if l.busy == nil {
		l.busy = map[string]bool{}
	}
	l.busy[key] = true
	l.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.busy, key)
		}()
		done <- guarded(do)
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return errHangs
	}
}

// guarded turns a panic into an error.
func guarded(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a panic: %v; this is a bug, please report it: %s", p, debug.Stack())
		}
	}()
	return do()
}
