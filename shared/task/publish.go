package task

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// published is asynq's set of the queues that its inspector and asynqmon know (its
// internal/base, AllQueues).
const published = "asynq:queues"

// Publish makes queues known to asynq's inspector. Whoever serves a queue repeats it:
// tasks may have come from an earlier version's client, which publishes a queue only
// once, or at the very moment at which Redis was emptied.
func Publish(ctx context.Context, rdb redis.UniversalClient, queues ...string) error {
	names := make([]any, len(queues))
	for i, q := range queues {
		names[i] = q
	}
	if err := rdb.SAdd(ctx, published, names...).Err(); err != nil {
		return fmt.Errorf("publish the queues: %w", err)
	}
	return nil
}
