// Package pipeline drives runs through their stages: it claims, advances, retries,
// cancels and cleans up, and its reconciler mends what a crash left. It alone
// knows the order of the stages and asynq's handlers. The run record in Redis
// decides everything; asynq only carries the tasks.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/worker/dump"
	"catalog-backup/worker/stage"
)

// Stage is one chained subtask of a run.
type Stage interface {
	// Name is the stage's name in records, queues and staging paths.
	Name() string
	// Run does the work in a.Dir and returns what later stages need, as a value
	// that JSON keeps. It ends soon after ctx does, with no child left. Effects
	// outside a.Dir are preceded by a.Holds. An error that no retry can mend is
	// marked by stage.Permanent.
	Run(ctx context.Context, a *Attempt) (any, error)
}

// Attempt is one try at a stage.
type Attempt struct {
	Run   run.Record // as it was when claimed
	Stage string
	Hold  run.Hold
	Dir   string // private staging, 0700
	// Progress takes how far the stage is.
	Progress stage.Progress

	engine    *Engine
	ends      time.Time // when the run's time is over, by this process's own clock
	lock      *dump.Lock
	committed atomic.Bool
	counter   *counter
}

// Result reads what an earlier stage of the run handed on.
func (a *Attempt) Result(stageName string, into any) error {
	dir, ok := a.Run.Results[stageName]
	if !ok {
		return fmt.Errorf("stage %s of run %s handed nothing on", stageName, a.Run.ID)
	}
	if err := dump.ReadResult(filepath.Join(a.engine.p.Dir.RunDir(a.Run.ID), dir), into); err != nil {
		return stage.Permanentf("read what stage %s handed on: %w; was %s cleared by something else? start the backup again", stageName, err, a.engine.p.Dir.Temp)
	}
	return nil
}

// Holds asks whether this attempt may still act outside its staging. It waits
// while Redis is away. With commit, a cancel or the time limit come too late
// from then on.
func (a *Attempt) Holds(ctx context.Context, commit bool) error {
	err := a.engine.untilAnswer(ctx, a.Run.ID, func(ctx context.Context) error {
		return a.engine.p.Store.Holds(ctx, a.Run.ID, a.Hold, a.Run.Epoch, commit)
	})
	if err == nil && a.lock != nil && !a.lock.Holds() {
		err = errLockLost // before the first effect; a commit that the record has begun is finished by the next attempt
	}
	if err == nil && commit {
		a.committed.Store(true)
	}
	return err
}

// Note writes facts into the run's record.
func (a *Attempt) Note(ctx context.Context, f run.Facts) error {
	return a.engine.untilAnswer(ctx, a.Run.ID, func(ctx context.Context) error {
		return a.engine.p.Store.Note(ctx, a.Run.ID, a.Hold, f)
	})
}

// counter is the stage.Progress of an attempt.
type counter struct{ done, total atomic.Int64 }

func (c *counter) Total(n int64) { c.total.Store(n) }
func (c *counter) Done(n int64)  { c.done.Store(n) }
func (c *counter) Add(n int64)   { c.done.Add(n) }

// rate is bytes a second over the last seconds of an attempt.
type rate struct {
	at   []time.Time
	done []int64
}

const rateWindow = 20

func (r *rate) add(now time.Time, done int64) *int64 {
	r.at, r.done = append(r.at, now), append(r.done, done)
	if len(r.at) > rateWindow {
		r.at, r.done = r.at[1:], r.done[1:]
	}
	span := now.Sub(r.at[0])
	if span < time.Second {
		return nil
	}
	n := int64(float64(done-r.done[0]) / span.Seconds())
	return &n
}

var (
	// errStopping is the cause when the worker is told to stop.
	errStopping = errors.New("the worker was stopped")
	// errTimeout is the cause when the run's time is up.
	errTimeout = errors.New("the run's time limit is over")
	// errRedisAway is the cause when Redis was away for longer than an attempt waits.
	errRedisAway = errors.New("Redis did not answer for too long")
	// errLockLost is the cause when the lock of the run is not ours any more.
	errLockLost = errors.New("the lock of the run was lost: its staging was removed by something else, or the file system of the temp directory (alation.backup.data_temp_dir) gave the lock away or did not answer")
)
