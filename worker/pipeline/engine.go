package pipeline

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"
	"catalog-backup/worker/dump"
	"catalog-backup/worker/stage"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
)

// Limits are how patient the queue core is.
type Limits struct {
	Errors, Interruptions, Crashes int           // further attempts a stage may have, by kind
	Backoff                        time.Duration // before the first retry after an error, doubled each time
	Timeout                        time.Duration // of the whole run; that of its first claim counts
	NodeLostAfter                  time.Duration
	// RedisGrace is after how long without Redis an attempt that works on says so at error.
	RedisGrace time.Duration
	// CloseAfter is how long a run's ending may take before it is closed without its cleanup.
	CloseAfter time.Duration
	// Poll is between two looks for a task in the queues; 0 = 100 ms.
	Poll time.Duration
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
	// Boot names the kernel that runs the worker; by default it says so itself.
	Boot string
	// Pulse is how often an attempt reports and looks for a cancel. Default 500 ms.
	Pulse time.Duration
	// StopWithin is how long Shutdown waits for what does not end. Default 30 s.
	StopWithin time.Duration
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
	slots  []*slot
	wg     sync.WaitGroup
	stopCh chan struct{}
	once   sync.Once
}

// NewEngine makes an engine.
func NewEngine(p Params) *Engine {
	if p.Pulse == 0 {
		p.Pulse = 500 * time.Millisecond
	}
	if p.StopWithin == 0 {
		p.StopWithin = 30 * time.Second
	}
	if p.Limits.CloseAfter == 0 {
		p.Limits.CloseAfter = 10 * time.Minute
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
	ctx := context.Background()
	giveUp := make(chan struct{})
	s := &slot{run: p.Run, stage: p.Stage, giveUp: giveUp}
	e.occupy(s)
	done := make(chan error, 1)
	go func() {
		defer e.wg.Done()
		defer e.vacate(s)
		done <- guarded(func() error { return e.process(ctx, p) })
	}()
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, errBusy) {
			e.p.Log.WithField("run", p.Run).WithField("error", e.text(err)).Debug("a task ends badly; it is delivered again")
		}
		return err
	case <-giveUp:
		return nil
	}
}

// process does a task whose generation is the current one.
func (e *Engine) process(ctx context.Context, p task.Payload) error {
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
		return e.misplaced(ctx, r)
	}
	if early, err := e.early(ctx, r); err != nil || early {
		return errors.Join(err, errBusy)
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

// erred is the end of an attempt by an error. A full disk ends the run, whichever write
// found it: the cleanup gives its room back.
func (e *Engine) erred(r run.Record, err error) run.Retry {
	wait := e.p.Limits.Backoff << min(r.Errors, 20)
	if wait <= 0 || wait > longestWait {
		wait = longestWait
	}
	return run.Retry{Kind: run.Erred, Error: e.text(err), Budget: e.p.Limits.Errors, Wait: wait, Permanent: stage.IsPermanent(err) || stage.IsFull(err)}
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
