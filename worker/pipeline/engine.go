package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"
	"catalog-backup/worker/dump"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
)

// Limits are how patient the queue core is.
type Limits struct {
	Errors, Interruptions, Crashes int           // further attempts a stage may have, by kind
	Backoff                        time.Duration // before the first retry after an error, doubled each time
	Timeout                        time.Duration // of the whole run
	NodeLostAfter                  time.Duration
	RedisGrace                     time.Duration
	Poll                           time.Duration // between two looks for a task in the queues; 0 = 100 ms
}

// Params are what an Engine works with.
type Params struct {
	Store    *run.Store
	Enqueuer *task.Enqueuer
	Dir      *dump.Directory
	Instance string
	Node     string
	Stages   []Stage // in order
	Limits   Limits
	Now      func() time.Time
	Log      logrus.FieldLogger
	// Mask takes secrets out of an error's text before it goes into a record or log.
	Mask func(string) string
	// Publish shows the node's sets to the producers, before a run is shown as succeeded.
	Publish func(ctx context.Context)
	// Ended is called after a run of this node has ended, to sweep what is left.
	Ended func(ctx context.Context)
	// Others do the tasks of other types, beside the stages.
	Others map[string]Handler
	// Pulse is how often an attempt reports and looks for a cancel. Default 500 ms.
	Pulse time.Duration
}

// Handler does the tasks of one type. Stop ends those under way, which are delivered
// again, and waits for them.
type Handler interface {
	asynq.Handler
	Stop()
}

// Engine handles the tasks of one worker.
type Engine struct {
	p      Params
	mu     sync.Mutex
	live   map[string]bool // runs with an attempt in this process
	wg     sync.WaitGroup
	stopCh chan struct{}
	once   sync.Once
}

// NewEngine makes an engine.
func NewEngine(p Params) *Engine {
	if p.Pulse == 0 {
		p.Pulse = 500 * time.Millisecond
	}
	if p.Mask == nil {
		p.Mask = func(s string) string { return s }
	}
	return &Engine{p: p, live: map[string]bool{}, stopCh: make(chan struct{})}
}

// FirstStage is what the producer enqueues.
const FirstStage = run.Prepare

// errBusy makes asynq deliver the task again soon; it never counts.
var errBusy = errors.New("a live attempt holds the run; looked at again soon")

// Stop ends all attempts, which hand their stages on, and waits for them.
func (e *Engine) Stop() {
	e.once.Do(func() { close(e.stopCh) })
	e.wg.Wait()
}

func (e *Engine) stopping() bool {
	select {
	case <-e.stopCh:
		return true
	default:
		return false
	}
}

// ProcessTask is asynq's handler. asynq's own context is not the attempt's: a lost
// lease does not make work void that the flock and the fence still protect.
func (e *Engine) ProcessTask(_ context.Context, t *asynq.Task) error {
	p, err := task.Read(t)
	if err != nil || !run.ValidID(p.Run) {
		e.p.Log.WithError(err).Warn("dropped a task that is not ours")
		return nil
	}
	e.mu.Lock()
	if e.stopping() {
		e.mu.Unlock()
		return errBusy
	}
	e.wg.Add(1)
	e.mu.Unlock()
	defer e.wg.Done()
	ctx := context.Background()
	r, err := e.p.Store.Get(ctx, p.Run)
	if errors.Is(err, run.ErrNotFound) {
		return nil // Redis lost the record: the sweeper clears the disk
	}
	if err != nil {
		return err
	}
	if r.State.Over() || r.Stage != p.Stage || r.Generation != p.Generation {
		return nil // an older generation: it touches nothing
	}
	if r.Node != "" && r.Node != e.p.Node {
		return e.enqueueAnew(ctx, r) // it goes to the node with the staging
	}
	return e.deliver(ctx, r)
}

// enqueueAnew replaces the task of the record's generation by a fresh one, where the
// record says it belongs: it reached the wrong node, or will do nothing any more.
func (e *Engine) enqueueAnew(ctx context.Context, r run.Record) error {
	n, err := e.p.Store.Anew(ctx, r, r.Generation)
	if err != nil || n.Kind == "stale" {
		return err
	}
	return e.enqueue(ctx, r, r.Stage, n.Generation)
}

// deliver takes the run's lock and does the stage.
func (e *Engine) deliver(ctx context.Context, r run.Record) error {
	lock, err := e.lock(ctx, r)
	if errors.Is(err, dump.ErrHeld) {
		return errBusy
	}
	if err != nil && r.Stage != run.Cleanup {
		return e.stopRun(ctx, r, run.Failed, e.text(err))
	}
	if lock != nil {
		defer lock.Release()
	}
	c, err := e.p.Store.Claim(ctx, r.ID, r.Stage, r.Generation, e.p.Node, run.NewToken(), e.p.Limits.Timeout)
	if err != nil {
		return err
	}
	switch c.Kind {
	case "ok":
	case "claimed":
		return e.crashed(ctx, r)
	case "cancel":
		return e.stopRun(ctx, r, run.Cancelled, "cancelled")
	case "elsewhere":
		if r, err = e.p.Store.Get(ctx, r.ID); err != nil {
			return err
		}
		return e.enqueueAnew(ctx, r) // it goes to the node with the staging
	default:
		return e.leaveNothing(ctx, r.ID)
	}
	if r, err = e.p.Store.Get(ctx, r.ID); err != nil {
		return err
	}
	if r.Hold() != c.Hold {
		return nil
	}
	e.setLive(r.ID, true)
	defer e.setLive(r.ID, false)
	if r.Stage == run.Cleanup {
		return e.cleanup(ctx, r)
	}
	return e.attempt(ctx, r, lock)
}

// leaveNothing removes the staging that taking the lock has made again, if the run
// ended just before. The caller holds the lock.
func (e *Engine) leaveNothing(ctx context.Context, id string) error {
	r, err := e.p.Store.Get(ctx, id)
	if err != nil || !r.State.Over() {
		return nil // the next task of the run, or the sweeper, finds it
	}
	_, err = e.p.Dir.Clean(ctx, id, r.State == run.Succeeded)
	return err
}

// lock waits a moment: the reconciler takes the lock for an instant to see whether an attempt lives.
func (e *Engine) lock(ctx context.Context, r run.Record) (*dump.Lock, error) {
	for deadline := e.p.Now().Add(time.Second); ; {
		l, err := e.p.Dir.Lock(r.ID, true)
		if !errors.Is(err, dump.ErrHeld) || e.p.Now().After(deadline) {
			return l, err
		}
		if !e.sleep(ctx, 20*time.Millisecond) {
			return nil, err
		}
	}
}

func (e *Engine) setLive(id string, on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if on {
		e.live[id] = true
	} else {
		delete(e.live, id)
	}
}

func (e *Engine) isLive(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.live[id]
}

// enqueue puts the stage's task of that generation where it belongs: the node
// that the record names now, or the instance's queue while it names none.
func (e *Engine) enqueue(ctx context.Context, r run.Record, stageName string, generation int64) error {
	fresh, err := e.p.Store.Get(ctx, r.ID)
	if err != nil {
		return err
	}
	return e.p.Enqueuer.Enqueue(ctx, fresh.Epoch, fresh.Node, task.Payload{Run: r.ID, Instance: r.Instance, Stage: stageName, Generation: generation}, fresh.NotBefore)
}

// crashed counts an attempt whose worker died. The caller holds the run's lock.
func (e *Engine) crashed(ctx context.Context, r run.Record) error {
	kind, text := run.Crashed, "the worker died in this attempt"
	budget := e.p.Limits.Crashes
	if end, err := readEnd(e.attemptDir(r.ID, r.Stage, r.Hold())); err == nil { // it could not reach Redis any more
		kind, text = end.Kind, end.Error
		if kind == run.Interrupted {
			budget = e.p.Limits.Interruptions
		} else {
			budget = e.p.Limits.Errors
		}
	}
	return e.again(ctx, r, run.Retry{Kind: kind, Error: text, Budget: budget})
}

// again ends an attempt badly and enqueues what comes next.
func (e *Engine) again(ctx context.Context, r run.Record, q run.Retry) error {
	n, err := e.p.Store.Again(ctx, r, r.Stage, r.Generation, q)
	if err != nil {
		return err
	}
	switch n.Kind {
	case "again":
		return e.enqueue(ctx, r, r.Stage, n.Generation)
	case "cleanup":
		e.p.Log.WithFields(logrus.Fields{"run": r.ID, "stage": r.Stage, "error": q.Error}).Error("the run fails; cleaning up")
		return e.enqueue(ctx, r, run.Cleanup, n.Generation)
	case "cancel":
		return e.stopRun(ctx, r, run.Cancelled, "cancelled")
	}
	return nil
}

// stopRun ends the run, by its cleanup where there is anything to clean.
func (e *Engine) stopRun(ctx context.Context, r run.Record, ending run.State, why string) error {
	n, err := e.p.Store.Stop(ctx, r, r.Generation, ending, why, false)
	if err != nil {
		return err
	}
	if n.Kind == "cleanup" {
		return e.enqueue(ctx, r, run.Cleanup, n.Generation)
	}
	return nil
}

func (e *Engine) attemptDir(runID, stageName string, h run.Hold) string {
	return filepath.Join(e.p.Dir.RunDir(runID), fmt.Sprintf("%s.%s", stageName, h))
}

// next is the stage after name, "" after the last.
func (e *Engine) next(name string) string {
	for i, s := range e.p.Stages {
		if s.Name() == name && i+1 < len(e.p.Stages) {
			return e.p.Stages[i+1].Name()
		}
	}
	return ""
}

func (e *Engine) stage(name string) Stage {
	for _, s := range e.p.Stages {
		if s.Name() == name {
			return s
		}
	}
	return nil
}

// text makes an error fit for a record: one line, no secret, no end.
func (e *Engine) text(err error) string {
	return exit.OneLine(e.p.Mask(err.Error()), 2000)
}

func (e *Engine) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// isAnswer tells a verdict of the record from trouble on the way to it.
func isAnswer(err error) bool {
	return err == nil || errors.Is(err, run.ErrFenced) || errors.Is(err, run.ErrCancel) || errors.Is(err, run.ErrEpoch) || errors.Is(err, run.ErrNotFound)
}

// untilAnswer repeats ask until Redis answers, ctx ends or the grace is over.
func (e *Engine) untilAnswer(ctx context.Context, ask func(context.Context) error) error {
	begin, wait := e.p.Now(), 50*time.Millisecond
	for {
		err := ask(ctx)
		if isAnswer(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.p.Now().Sub(begin) > e.p.Limits.RedisGrace {
			return fmt.Errorf("%w: %w", errRedisAway, err)
		}
		if !e.sleep(ctx, wait) {
			return context.Cause(ctx)
		}
		wait = min(2*wait, time.Second)
	}
}

// removeQuietly clears an attempt's own staging; what stays is left to the cleanup.
func (e *Engine) removeQuietly(dir string) {
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.p.Log.WithError(err).Warn("could not remove the staging of an attempt; the cleanup will")
	}
}
