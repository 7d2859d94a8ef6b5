// Package start opens runs, the one way for all who ask for one: the command
// line, the ticks of the schedule and the dashboard.
package start

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"

	"github.com/redis/go-redis/v9"
)

// callLimit is how long one step may take.
const callLimit = 10 * time.Second

// Starter opens runs.
type Starter struct {
	Store *run.Store
	Queue *task.Enqueuer
	Now   func() time.Time
}

// New makes a Starter on rdb, which the caller closes.
func New(rdb *redis.Client, store *run.Store, now func() time.Time) Starter {
	return Starter{Store: store, Queue: task.NewEnqueuer(rdb, now), Now: now}
}

// Request is who wants what.
type Request struct {
	Instance  string
	Requested set.Type
	Tick      string // see run.Request
}

// Open takes the instance's lock and writes the run's record. The run's id is known
// to the caller even when the answer of Redis is lost on the way: it is the record's,
// whatever the error. The error is *run.BusyError when another run is open. A tick
// that has opened a run already gets that one.
func (s Starter) Open(ctx context.Context, q Request) (run.Record, error) {
	ctx, done := context.WithTimeout(ctx, callLimit)
	defer done()
	random := make([]byte, 16)
	rand.Read(random) // never fails, see crypto/rand
	id := run.NewID(s.Now(), random)
	r, err := s.Store.Start(ctx, run.Request{ID: id, Instance: q.Instance, Requested: string(q.Requested), Type: string(set.Full),
		FirstStage: run.Prepare, Epoch: hex.EncodeToString(random[5:]), Tick: q.Tick})
	if err != nil {
		r.ID = id
	}
	return r, err
}

// HandOver enqueues the first stage of a run that Open opened. An error here does not
// hurt the run: the workers' reconciler enqueues what is missing.
func (s Starter) HandOver(ctx context.Context, r run.Record) error {
	ctx, done := context.WithTimeout(ctx, callLimit)
	defer done()
	return s.Queue.Enqueue(ctx, r.Epoch, "", task.Payload{Run: r.ID, Instance: r.Instance, Stage: r.Stage, Generation: r.Generation}, nil)
}
