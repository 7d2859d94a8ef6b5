package run

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// Survey is how one instance stands, for monitoring.
type Survey struct {
	Instance  string
	At        time.Time // by the clock of Redis
	Totals    Totals
	Workers   int // live ones
	Open      *Record
	Published []Published
	// Unreadable are entries in Redis that make no sense to this version, in words.
	Unreadable []string
}

// inquiry is what a Survey is made of, while the pipelines run.
type inquiry struct {
	totals, published *redis.MapStringStringCmd
	nodes             *redis.MapStringStringCmd
	workers           *redis.StringSliceCmd
	lock              *redis.StringCmd
	live              []*redis.DurationCmd
	record            *redis.MapStringStringCmd
}

// Surveys looks at all instances of this Redis, in three round trips however many
// there are.
func (s *Store) Surveys(ctx context.Context) ([]Survey, error) {
	names, err := s.Instances(ctx)
	if err != nil {
		return nil, err
	}
	asked := make([]inquiry, len(names))
	var now *redis.TimeCmd
	err = s.pipeline(ctx, func(p redis.Pipeliner) {
		now = p.Time(ctx)
		for i, name := range names {
			asked[i] = inquiry{totals: p.HGetAll(ctx, totalsKey(name)), published: p.HGetAll(ctx, setsKey(name)),
				nodes: p.HGetAll(ctx, nodesKey(name)), workers: p.SMembers(ctx, workersKey(name)), lock: p.Get(ctx, lockKey(name))}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("survey the instances: %w", err)
	}
	err = s.pipeline(ctx, func(p redis.Pipeliner) {
		for i, name := range names {
			for _, id := range asked[i].workers.Val() {
				asked[i].live = append(asked[i].live, p.PTTL(ctx, workerKey(name, id)))
			}
			if id := asked[i].lock.Val(); ValidID(id) {
				asked[i].record = p.HGetAll(ctx, runKey(id))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("survey the instances: %w", err)
	}
	at := now.Val()
	if s.now != nil {
		at = s.now()
	}
	out := make([]Survey, len(names))
	for i, name := range names {
		out[i] = asked[i].survey(name, at)
	}
	return out, nil
}

// pipeline executes what ask queues. A key that is missing is no error, and one
// that an odd hand made of another type is none of the way to Redis.
func (s *Store) pipeline(ctx context.Context, ask func(redis.Pipeliner)) error {
	p := s.rdb.Pipeline()
	ask(p)
	cmds, err := p.Exec(ctx)
	if err == nil {
		return nil
	}
	for _, c := range cmds {
		if err := c.Err(); err != nil && err != redis.Nil && !redis.HasErrorPrefix(err, "WRONGTYPE") {
			return err
		}
	}
	return nil
}

func (q inquiry) survey(name string, at time.Time) Survey {
	v := Survey{Instance: name, At: at, Totals: parseTotals(q.totals.Val())}
	odd := func(what string, err error) { v.Unreadable = append(v.Unreadable, what+": "+err.Error()) }
	for what, cmd := range map[string]redis.Cmder{"totals": q.totals, "published sets": q.published, "nodes": q.nodes, "workers": q.workers, "lock": q.lock} {
		if err := cmd.Err(); err != nil && err != redis.Nil {
			odd(what, err)
		}
	}
	for _, c := range q.live {
		if left := c.Val(); left > 0 && left <= presenceTTL { // a longer one is no live worker's
			v.Workers++
		}
	}
	for node, text := range q.published.Val() {
		var p Published
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			odd("the published sets of node "+node, err)
			continue
		}
		v.Published = append(v.Published, p)
	}
	v.Published, _ = hear(v.Published, q.nodes.Val(), at)
	if q.record != nil {
		r, err := parse(q.lock.Val(), q.record.Val(), at)
		if err != nil {
			odd("the open run", err)
		}
		for _, text := range r.Odd {
			v.Unreadable = append(v.Unreadable, "the open run: "+text)
		}
		if err == nil && !r.State.Over() {
			v.Open = &r
		}
	}
	slices.Sort(v.Unreadable)
	return v
}
