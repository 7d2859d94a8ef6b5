package run

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"catalog-backup/shared/set"

	"github.com/redis/go-redis/v9"
)

// Published is what the workers of a node last said of its dump directory.
type Published struct {
	At       time.Time     `json:"at"`
	Node     string        `json:"node"`
	Dir      string        `json:"dir"`
	Sets     []set.Summary `json:"sets"`
	Foreign  []string      `json:"foreign"`
	Problems []string      `json:"problems"`
}

// silentFor is how long a node may give no sign, while another node of the instance
// does, until what it published is dropped: longer than repairs and holidays take. The
// last word of an instance whose nodes are all silent stays, since the age of its newest set is
// what tells people that something is wrong.
const silentFor = 7 * 24 * time.Hour

// Publish replaces what the node said before, and drops what silent nodes did.
func (s *Store) Publish(ctx context.Context, instance string, p Published) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := s.rdb.HSet(ctx, setsKey(instance), p.Node, b).Err(); err != nil {
		return err
	}
	_, silent, err := s.published(ctx, instance)
	if err != nil {
		return fmt.Errorf("look for nodes that are silent: %w", err)
	}
	for _, node := range silent {
		if _, err := s.drop(ctx, instance, node); err != nil {
			return err
		}
	}
	return nil
}

// Published lists what every node last said.
func (s *Store) Published(ctx context.Context, instance string) ([]Published, error) {
	heard, _, err := s.published(ctx, instance)
	return heard, err
}

func (s *Store) published(ctx context.Context, instance string) (heard []Published, silent []string, err error) {
	said, err := s.rdb.HGetAll(ctx, setsKey(instance)).Result()
	if err != nil {
		return nil, nil, fmt.Errorf("read the published sets: %w", err)
	}
	signs, err := s.rdb.HGetAll(ctx, nodesKey(instance)).Result()
	if err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE") {
		return nil, nil, fmt.Errorf("read the nodes' last signs: %w", err)
	}
	now, err := s.Time(ctx)
	if err != nil {
		return nil, nil, err
	}
	all := []Published{}
	for node, v := range said {
		var p Published
		if err := json.Unmarshal([]byte(v), &p); err != nil {
			return nil, nil, fmt.Errorf("read the published sets of node %s: %w", node, err)
		}
		all = append(all, p)
	}
	heard, silent = hear(all, signs, now)
	return heard, silent, nil
}

// hear tells the nodes that were heard of lately from the silent ones. One without any time
// was heard, and a time after now is of a host whose clock is wrong.
func hear(all []Published, signs map[string]string, now time.Time) (heard []Published, silent []string) {
	last, newest := map[string]time.Time{}, time.Time{}
	sign := func(node string, at time.Time) {
		if at.After(now) {
			at = now
		}
		if at.After(last[node]) {
			last[node] = at
		}
		if at.After(newest) {
			newest = at
		}
	}
	for node, v := range signs {
		at, _ := time.Parse(time.RFC3339Nano, v)
		sign(node, at)
	}
	for _, p := range all {
		sign(p.Node, p.At)
	}
	heard = []Published{}
	for _, p := range all {
		if at := last[p.Node]; !at.IsZero() && newest.Sub(at) > silentFor {
			silent = append(silent, p.Node)
			continue
		}
		heard = append(heard, p)
	}
	return heard, silent
}

func (s *Store) drop(ctx context.Context, instance, node string) (bool, error) {
	cmds, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.HDel(ctx, setsKey(instance), node)
		p.HDel(ctx, nodesKey(instance), node)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("forget node %s: %w", node, err)
	}
	return cmds[0].(*redis.IntCmd).Val()+cmds[1].(*redis.IntCmd).Val() > 0, nil
}

// InUseError is why a node cannot be forgotten.
type InUseError struct {
	Node string
	By   string // a worker or a run, in words
}

func (e *InUseError) Error() string { return "node " + e.Node + " is in use: " + e.By }

// Forget removes what a node that is gone published, and its last sign. It is an
// *InUseError where a live worker or an open run has the node. known is false for a node of
// which nothing was known.
func (s *Store) Forget(ctx context.Context, instance, node string) (known bool, err error) {
	workers, err := s.Workers(ctx, instance)
	if err != nil {
		return false, err
	}
	for _, w := range workers {
		if w.Node == node {
			return false, &InUseError{Node: node, By: fmt.Sprintf("a worker of it lives, on host %s with process number %d", w.Host, w.PID)}
		}
	}
	open, err := s.Open(ctx, instance)
	if err != nil {
		return false, err
	}
	for _, id := range open {
		if r, err := s.Get(ctx, id); err == nil && r.Node == node && !r.State.Over() {
			return false, &InUseError{Node: node, By: "run " + id + " is open there"}
		}
	}
	return s.drop(ctx, instance, node)
}
