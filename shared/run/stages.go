package run

import (
	"context"
	"fmt"
)

// Prepare is the stage that every run begins with.
const Prepare = "prepare"

// Stages are the stages of a good run in their order, for people to read. What a
// run really does is in its record.
var Stages = []string{Prepare, "postgres", "eventbus", "archive"}

// Recent lists the ids of the instance's latest runs, newest first, at most n.
// Records that are no longer kept may be among them.
func (s *Store) Recent(ctx context.Context, instance string, n int64) ([]string, error) {
	ids, err := s.rdb.ZRevRange(ctx, runsKey(instance), 0, n-1).Result()
	if err != nil {
		return nil, fmt.Errorf("list the runs of instance %s: %w", instance, err)
	}
	return ids, nil
}
