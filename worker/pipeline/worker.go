package pipeline

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"catalog-backup/shared/health"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Worker is the daemon: asynq's server with the engine as its handler, the
// reconciler, the signs of life, the sweeper and the publishing of sets.
type Worker struct {
	p         Params
	rdb       *redis.Client
	who       run.Worker
	near      *neighbours
	refused   chan error
	engine    *Engine
	server    *asynq.Server
	reconcile *Reconciler
	signing   *health.Beat
	stopping  atomic.Bool
	done      chan struct{}
	wg        sync.WaitGroup
	wake      chan struct{}
	// firstSweep is how long Start waits for the first sweep.
	firstSweep time.Duration
	listing    *listing
}

const (
	// defaultPoll is Limits.Poll where it is not set.
	defaultPoll   = 100 * time.Millisecond
	lookInterval  = time.Second
	signInterval  = 4 * time.Second
	sweepInterval = time.Minute
	// changeInterval is how soon a change of the dump directory is published.
	changeInterval = 3 * time.Second
	// settle lets the attempt that woke the house give its lock back first.
	settle = 200 * time.Millisecond
	// busyDelay is when asynq delivers a task again whose run a live attempt holds.
	busyDelay = 3 * time.Second
)

// New makes a worker on rdb, which the caller closes.
func New(p Params, rdb *redis.Client, who run.Worker) *Worker {
	if p.Limits.Poll == 0 {
		p.Limits.Poll = defaultPoll
	}
	w := &Worker{p: p, rdb: rdb, who: who, done: make(chan struct{}), wake: make(chan struct{}, 1), refused: make(chan error, 1),
		firstSweep: 10 * time.Second, listing: newListing(p.Dir.Dump)}
	p.Ended = func(context.Context) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	p.Publish = w.publish
	p.Enqueuer = task.NewEnqueuer(rdb, p.Now)
	w.p = p
	w.near = newNeighbours(p, who)
	w.engine = NewEngine(p)
	w.signing = health.NewBeat(p.Now)
	w.reconcile = NewReconciler(w.engine, asynq.NewInspectorFromRedisClient(rdb), who.ID, lookInterval)
	w.server = asynq.NewServerFromRedisClient(rdb, asynq.Config{
		Concurrency:              4,
		Queues:                   w.queues(),
		TaskCheckInterval:        p.Limits.Poll,
		DelayedTaskCheckInterval: 500 * time.Millisecond,
		RetryDelayFunc:           func(int, error, *asynq.Task) time.Duration { return busyDelay },
		IsFailure:                func(error) bool { return false }, // our own budgets count
		Logger:                   task.Quiet{Log: p.Log},
		LogLevel:                 asynq.WarnLevel,
		ShutdownTimeout:          2 * time.Second,
	})
	return w
}

// queues are those that the worker serves, with their weights.
func (w *Worker) queues() map[string]int {
	return map[string]int{task.Queue(w.p.Instance, ""): 1, task.Queue(w.p.Instance, w.p.Node): 2}
}

// Start begins to work, once it is proved that this worker and the others of its node
// see each other's locks. Redis answers when it is called.
func (w *Worker) Start(ctx context.Context) error {
	if err := w.publishQueues(ctx); err != nil {
		return err
	}
	if err := w.near.join(ctx); err != nil {
		return err
	}
	w.signing.Turn()
	w.wg.Add(2)
	go w.signs()
	swept := make(chan struct{})
	go w.house(swept)
	select { // so that a start after a crash begins on a clean disk; one that hangs keeps no work
	case <-swept:
	case <-ctx.Done():
	case <-time.After(w.firstSweep):
		w.p.Log.Warn("the dump and temp directories have not been swept and shown yet, as their disks are slow or hang; taking work meanwhile")
	}
	if err := w.server.Start(asynq.HandlerFunc(w.handle)); err != nil {
		close(w.done)
		w.near.leave()
		return err
	}
	w.reconcile.Start()
	w.near.watch(w.done, func(err error) { w.refused <- err })
	return nil
}

// handle gives a task to the one who does its type.
func (w *Worker) handle(ctx context.Context, t *asynq.Task) error {
	if h, ok := w.p.Others[t.Type()]; ok {
		return h.ProcessTask(ctx, t)
	}
	return w.engine.ProcessTask(ctx, t)
}

// Refused gives the reason why this worker must be shut down: it came after another one
// of its node that it was not to see then, and they do not see each other's locks.
func (w *Worker) Refused() <-chan error { return w.refused }

// freshEpoch proposes a name for a Redis that has none yet.
func freshEpoch() string {
	b := make([]byte, 6)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// publishQueues gives an emptied Redis a new epoch, and makes it know the worker's
// queues.
func (w *Worker) publishQueues(ctx context.Context) error {
	if _, err := w.p.Store.Epoch(ctx, freshEpoch()); err != nil {
		return err
	}
	return task.Publish(ctx, w.rdb, slices.Collect(maps.Keys(w.queues()))...)
}

// signs repeats that the worker is there, and what an emptied Redis must know.
func (w *Worker) signs() {
	defer w.wg.Done()
	t := time.NewTicker(signInterval)
	defer t.Stop()
	for {
		select {
		case <-w.done:
			return
		case <-t.C:
		}
		w.signing.Turn()
		ctx, cancel := context.WithTimeout(context.Background(), signInterval)
		err := w.sign(ctx)
		cancel()
		if err != nil {
			w.p.Log.WithError(err).Warn("Redis does not answer, or refuses what this worker writes; trying on")
		}
	}
}

// sign does both: where one comes to grief, the other is done all the same.
func (w *Worker) sign(ctx context.Context) error {
	return errors.Join(w.p.Store.SignIn(ctx, w.p.Instance, w.near.shown()), w.publishQueues(ctx))
}

// house sweeps and publishes, at the start, which it tells, now and then and after each run.
func (w *Worker) house(begun chan<- struct{}) {
	defer w.wg.Done()
	first, cancel := context.WithTimeout(context.Background(), sweepInterval)
	w.keepHouse(first)
	cancel()
	close(begun)
	t, changes := time.NewTicker(sweepInterval), time.NewTicker(changeInterval)
	defer t.Stop()
	defer changes.Stop()
	var seen time.Time
	for {
		select {
		case <-w.done:
			return
		case <-changes.C: // a set, or a proof of one, came or went by other hands
			fi, err := os.Stat(w.p.Dir.Dump)
			if err != nil || fi.ModTime().Equal(seen) {
				continue
			}
			seen = fi.ModTime()
			ctx, cancel := context.WithTimeout(context.Background(), sweepInterval)
			w.publish(ctx)
			cancel()
			continue
		case <-t.C:
		case <-w.wake:
			time.Sleep(settle)
		}
		ctx, cancel := context.WithTimeout(context.Background(), sweepInterval)
		w.keepHouse(ctx)
		cancel()
	}
}

func (w *Worker) keepHouse(ctx context.Context) {
	if err := Sweep(ctx, w.p.Store, w.p.Dir, w.p.Instance); err != nil {
		w.p.Log.WithError(err).Warn("sweeping left-overs ends badly; trying again later")
	}
	own, cancel := context.WithTimeout(context.Background(), sweepInterval) // tools that do not die may have taken all of ctx
	defer cancel()
	w.publish(own)
}

// publish shows the sets of this node to the producers.
func (w *Worker) publish(ctx context.Context) {
	l, err := w.listing.read(ctx)
	var at time.Time
	if err == nil {
		at, err = w.p.Store.Time(ctx)
	}
	if err == nil {
		err = w.p.Store.Publish(ctx, w.p.Instance, run.Published{At: at.UTC(), Node: w.p.Node, Dir: w.p.Dir.Dump, Sets: l.Sets, Foreign: l.Foreign, Problems: l.Problems})
	}
	if err != nil {
		w.p.Log.WithError(err).Warn("could not publish the list of sets")
	}
}
