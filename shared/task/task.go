// Package task is what the producer and the worker agree on about asynq: queues,
// task ids, payloads and options.
package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Type of all tasks: one stage of one run.
const Type = "backup:stage"

// Payload of a task. It holds names only, never a secret.
type Payload struct {
	Run        string `json:"run"`
	Instance   string `json:"instance"`
	Stage      string `json:"stage"`
	Generation int64  `json:"generation"`
}

// Queue is the queue of an instance, for its first stage; or, with a node, of the
// storage that holds the staging of the later ones.
func Queue(instance, node string) string {
	if node == "" {
		return instance
	}
	return instance + "." + node
}

// ID is `<install>:<run>:<stage>:<generation>`: unique over all installations,
// since asynq's cancel goes by the id alone, across queues and databases.
func ID(install string, p Payload) string {
	return fmt.Sprintf("%s:%s:%s:%d", install, p.Run, p.Stage, p.Generation)
}

const (
	// retention keeps the id of a completed task taken, so that enqueued twice is once.
	retention = 14 * 24 * time.Hour
	// maxRetry is out of reach: our own budgets decide.
	maxRetry = 1 << 30
)

// noDeadline stands for none: without a deadline or timeout asynq would stop a task after
// 30 minutes. It goes by no host's clock: by one that is decades behind, asynq would drop the task.
var noDeadline = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// Enqueuer puts stages into their queue.
type Enqueuer struct {
	rdb redis.UniversalClient
	now func() time.Time
}

// NewEnqueuer uses rdb, which the caller closes.
func NewEnqueuer(rdb redis.UniversalClient, now func() time.Time) *Enqueuer {
	return &Enqueuer{rdb: rdb, now: now}
}

// client is a new one for each task. One of asynq's remembers which queues it has
// published (rdb.go, queuesPublished) and does not do so again in a Redis that was
// emptied, where its tasks are then invisible to the inspector. Making one costs no call.
func (e *Enqueuer) client() *asynq.Client { return asynq.NewClientFromRedisClient(e.rdb) }

// Enqueue puts the task into the queue of the node ("" = the instance's), to start
// at notBefore at the earliest. A task that is there already is no error.
func (e *Enqueuer) Enqueue(ctx context.Context, install, node string, p Payload, notBefore *time.Time) error {
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	opts := []asynq.Option{asynq.TaskID(ID(install, p)), asynq.Retention(retention)}
	if notBefore != nil && notBefore.After(e.now()) {
		opts = append(opts, asynq.ProcessAt(*notBefore))
	}
	err = e.put(ctx, Queue(p.Instance, node), asynq.NewTask(Type, body), opts...)
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("enqueue stage %s of run %s: %w", p.Stage, p.Run, err)
	}
	return nil
}

// put enqueues the task, also where keys of the queue are of another type.
func (e *Enqueuer) put(ctx context.Context, queue string, t *asynq.Task, opts ...asynq.Option) error {
	opts = append(opts, asynq.Queue(queue), asynq.MaxRetry(maxRetry), asynq.Deadline(noDeadline))
	_, err := e.client().EnqueueContext(ctx, t, opts...)
	if err != nil && strings.Contains(err.Error(), "WRONGTYPE") && Publish(ctx, e.rdb, queue) == nil {
		_, err = e.client().EnqueueContext(ctx, t, opts...)
	}
	return err
}

// Read takes a task's payload.
func Read(t *asynq.Task) (Payload, error) {
	var p Payload
	if err := json.Unmarshal(t.Payload(), &p); err != nil {
		return p, fmt.Errorf("read the payload of a task: %w", err)
	}
	return p, nil
}
