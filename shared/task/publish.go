package task

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// published is asynq's set of the queues that its inspector and asynqmon know (its
// internal/base, AllQueues).
const published = "asynq:queues"

// publishScript: KEYS the set of queues; ARGV queues. A key of asynq's that an odd hand
// made of another type is dropped: it would refuse every task for ever. Types and names
// are those of asynq's internal/base and internal/rdb.
var publishScript = redis.NewScript(`
local function typed(key, kind)
  local t = redis.call('TYPE', key).ok
  if t ~= 'none' and t ~= kind then redis.call('DEL', key) end
end
local kinds = {pending = 'list', active = 'list', lease = 'zset', scheduled = 'zset', retry = 'zset', archived = 'zset',
  completed = 'zset', paused = 'string', processed = 'string', failed = 'string'}
typed(KEYS[1], 'set')
for _, q in ipairs(ARGV) do
  redis.call('SADD', KEYS[1], q)
  for name, kind in pairs(kinds) do typed('asynq:{' .. q .. '}:' .. name, kind) end
end
return 'ok'`)

// Publish makes queues known to asynq's inspector, and usable where keys of them are of
// another type. Whoever serves a queue repeats it: tasks may have come from an earlier
// version's client, which publishes a queue only once, or at the very moment at which
// Redis was emptied.
func Publish(ctx context.Context, rdb redis.UniversalClient, queues ...string) error {
	names := make([]any, len(queues))
	for i, q := range queues {
		names[i] = q
	}
	if err := publishScript.Run(ctx, rdb, []string{published}, names...).Err(); err != nil {
		return fmt.Errorf("publish the queues: %w", err)
	}
	return nil
}
