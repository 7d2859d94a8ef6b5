package health

import (
	"context"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
)

// asynq's own inspector samples the memory of tasks, asks queue after queue, and
// knows no context; so the keys are read as asynq v0.26 lays them out
// (internal/base). A test compares the numbers with the inspector's.
const allQueuesKey = "asynq:queues"

// wrongType begins the error for a key that an odd hand made of another type. It is
// none of the way to Redis, and hides nothing else.
const wrongType = "WRONGTYPE"

// queueStates are the states of asynq's tasks, and whether a state's key is a list
// (else a sorted set).
var queueStates = []struct {
	name string
	list bool
}{{"pending", true}, {"active", true}, {"scheduled", false}, {"retry", false}, {"archived", false}, {"completed", false}}

// depth is how many tasks of a state a queue has.
type depth struct {
	queue, state string
	tasks        int64
}

// depths reads all queues in two round trips.
func depths(ctx context.Context, rdb *redis.Client) ([]depth, error) {
	queues, err := rdb.SMembers(ctx, allQueuesKey).Result()
	if err != nil && !redis.HasErrorPrefix(err, wrongType) {
		return nil, fmt.Errorf("list the queues: %w", err)
	}
	slices.Sort(queues)
	var out []depth
	var cmds []*redis.IntCmd
	_, _ = rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, q := range queues {
			for _, s := range queueStates {
				key := "asynq:{" + q + "}:" + s.name
				out = append(out, depth{queue: q, state: s.name})
				if s.list {
					cmds = append(cmds, p.LLen(ctx, key))
				} else {
					cmds = append(cmds, p.ZCard(ctx, key))
				}
			}
		}
		return nil
	})
	for i, c := range cmds {
		if err := c.Err(); err != nil && !redis.HasErrorPrefix(err, wrongType) {
			return nil, fmt.Errorf("read the depth of the queues: %w", err)
		}
		out[i].tasks = c.Val()
	}
	return out, nil
}
