package schedule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Scheduler is a scheduler that serves the instance right now.
type Scheduler struct {
	ID      string    `json:"id"`
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
}

// PresenceTTL is how long a scheduler counts as live after its last sign.
const PresenceTTL = 20 * time.Second

// SignIn shows the scheduler as live for PresenceTTL; it is repeated.
func (s *Store) SignIn(ctx context.Context, who Scheduler) error {
	b, err := json.Marshal(who)
	if err != nil {
		return err
	}
	_, err = s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.SAdd(ctx, s.key("schedulers"), who.ID)
		p.Set(ctx, s.key("scheduler", who.ID), b, PresenceTTL)
		return nil
	})
	return err
}

// SignOut takes the scheduler off.
func (s *Store) SignOut(ctx context.Context, id string) error {
	_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.SRem(ctx, s.key("schedulers"), id)
		p.Del(ctx, s.key("scheduler", id))
		return nil
	})
	return err
}

// Schedulers lists the live schedulers of the instance.
func (s *Store) Schedulers(ctx context.Context) ([]Scheduler, error) {
	ids, err := s.rdb.SMembers(ctx, s.key("schedulers")).Result()
	if err != nil {
		return nil, fmt.Errorf("list schedulers: %w", err)
	}
	live := []Scheduler{}
	for _, id := range ids {
		b, err := s.rdb.Get(ctx, s.key("scheduler", id)).Bytes()
		if errors.Is(err, redis.Nil) {
			s.rdb.SRem(ctx, s.key("schedulers"), id)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list schedulers: %w", err)
		}
		var who Scheduler
		if json.Unmarshal(b, &who) == nil {
			live = append(live, who)
		}
	}
	slices.SortFunc(live, func(a, b Scheduler) int { return strings.Compare(a.ID, b.ID) })
	return live, nil
}

// Standing is how one plan stands: what `schedule list` and the dashboard show.
type Standing struct {
	Plan   Plan
	Paused *Pause
	Last   *Tick       // the latest tick that is remembered
	Next   []time.Time // in the plan's zone
}

// Standings tells how the plans stand, each with its next n ticks.
func (s *Store) Standings(ctx context.Context, plans []Plan, n int) ([]Standing, error) {
	paused, err := s.Paused(ctx)
	if err != nil {
		return nil, err
	}
	out := []Standing{}
	for _, p := range plans {
		st := Standing{Plan: p, Next: p.NextN(s.now(), n)}
		if by, ok := paused[p.Name]; ok {
			st.Paused = &by
		}
		last, err := s.Recent(ctx, p.Name, 1)
		if err != nil {
			return nil, err
		}
		if len(last) > 0 {
			st.Last = &last[0]
		}
		out = append(out, st)
	}
	return out, nil
}
