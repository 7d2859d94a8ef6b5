package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// errHangs is returned for a file system that does not answer in time.
var errHangs = errors.New("the file system does not answer")

// longLook is how long a look at the disk may take that no pump ends. Never longer than
// Limits.CloseAfter.
const longLook = 30 * time.Second

func (e *Engine) diskLimit() time.Duration { return min(longLook, e.p.Limits.CloseAfter) }

// until does what may hang with a disk, and waits for it until ctx ends; the error is
// then the cause of that. What hangs does its work once the disk answers, so do asks ctx
// before each step that changes anything.
func until[T any](ctx context.Context, do func() (T, error)) (T, error) {
	type answer struct {
		what T
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		var a answer
		a.err = guarded(func() (err error) { a.what, err = do(); return err })
		got <- a
	}()
	select {
	case a := <-got:
		return a.what, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-got: // both
		return a.what, a.err
	default:
		var none T
		return none, context.Cause(ctx)
	}
}

// soon is until with a limit.
func soon[T any](ctx context.Context, limit time.Duration, do func() (T, error)) (T, error) {
	ctx, stop := context.WithTimeoutCause(ctx, limit, errHangs)
	defer stop()
	return until(ctx, do)
}

// hung names the directory whose disk hangs, where err is that.
func hung(err error, dir string) error {
	if err == errHangs {
		return fmt.Errorf("look at %s: %w; see what hangs there (a network file system, a dying disk)", dir, err)
	}
	return err
}

// looks are those at the disk that come again and again. One that hangs is not begun a
// second time.
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
	_, err := soon(context.Background(), limit, func() (struct{}, error) {
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.busy, key)
		}()
		return struct{}{}, do()
	})
	return err
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
