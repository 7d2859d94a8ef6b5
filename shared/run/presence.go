package run

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// Worker is a worker that serves an instance right now.
type Worker struct {
	ID      string    `json:"id"`
	Node    string    `json:"node"`
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Neighbour
}

// presenceTTL is how long a worker counts as live after its last sign.
const presenceTTL = 12 * time.Second

func workersKey(instance string) string    { return keyPrefix + instance + ":workers" }
func workerKey(instance, id string) string { return keyPrefix + instance + ":worker:" + id }
func setsKey(instance string) string       { return keyPrefix + instance + ":sets" }
func leaderKey(instance string) string     { return keyPrefix + instance + ":leader" }
func nodesKey(instance string) string      { return keyPrefix + instance + ":nodes" }

// SignIn shows the worker as live for presenceTTL; it is repeated.
func (s *Store) SignIn(ctx context.Context, instance string, w Worker) error {
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	at, err := s.Time(ctx)
	if err != nil {
		return err
	}
	keys := []string{instancesKey, workersKey(instance), nodesKey(instance), setsKey(instance), workerKey(instance, w.ID)}
	return signScript.Run(ctx, s.rdb, keys, instance, w.ID, w.Node, stamp(at), b, presenceTTL.Milliseconds()).Err()
}

// SignOut takes the worker off, and out of the lead.
func (s *Store) SignOut(ctx context.Context, instance, id string) error {
	if holder, err := s.rdb.Get(ctx, leaderKey(instance)).Result(); err == nil && holder == id {
		s.rdb.Del(ctx, leaderKey(instance))
	}
	_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.SRem(ctx, workersKey(instance), id)
		p.Del(ctx, workerKey(instance, id))
		return nil
	})
	return err
}

// SignedIn tells whether the worker counts as live.
func (s *Store) SignedIn(ctx context.Context, instance, id string) (bool, error) {
	n, err := s.rdb.Exists(ctx, workerKey(instance, id)).Result()
	if err != nil {
		return false, fmt.Errorf("look for the worker's own sign: %w", err)
	}
	return n > 0, nil
}

// Workers lists the live workers of the instance.
func (s *Store) Workers(ctx context.Context, instance string) ([]Worker, error) {
	texts, err := workersScript.Run(ctx, s.rdb, []string{workersKey(instance)}, workerKey(instance, ""), presenceTTL.Milliseconds()).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	live := []Worker{}
	for _, text := range texts {
		var w Worker
		if json.Unmarshal([]byte(text), &w) == nil {
			live = append(live, w)
		}
	}
	return live, nil
}

// Instances lists the names of all instances that ever had a worker or a run in
// this Redis, in order.
func (s *Store) Instances(ctx context.Context) ([]string, error) {
	names, err := s.rdb.SMembers(ctx, instancesKey).Result()
	if err != nil {
		return nil, fmt.Errorf("list the instances: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// NodeSeen is when a worker of the node last gave a sign; zero if never. One that is to come,
// of a clock that was ahead, becomes one of now: a node that is gone ages from there.
func (s *Store) NodeSeen(ctx context.Context, instance, node string) (time.Time, error) {
	out, err := s.call(ctx, nodeSeenScript, []string{nodesKey(instance)}, node)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the last sign of node %s: %w", node, err)
	}
	t, _ := time.Parse(time.RFC3339Nano, out[0]) // one that is damaged is none
	return t, nil
}

// Lead takes or keeps the leadership of the instance's reconcilers for ttl. Nobody has it
// for longer without keeping it, whatever became of the key.
func (s *Store) Lead(ctx context.Context, instance, worker string, ttl time.Duration) (bool, error) {
	return leadScript.Run(ctx, s.rdb, []string{leaderKey(instance)}, worker, ttl.Milliseconds()).Bool()
}
