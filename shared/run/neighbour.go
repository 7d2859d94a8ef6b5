package run

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Neighbour is what a worker shows of itself, so that another worker of its node can
// prove that it sees its lock. One of an earlier version shows none of it.
type Neighbour struct {
	// Boot names the kernel that runs it, since that started: /proc/sys/kernel/random/boot_id.
	// Containers of one machine have it in common, whatever their host names are.
	Boot string `json:"boot,omitempty"`
	// Joined is when it came, in microseconds since 1970 by Redis, later than all who were there.
	Joined int64 `json:"joined,omitempty"`
	// TempLock and DumpLock are its lock files, as "device:inode" of that kernel; empty
	// while it has none there.
	TempLock string `json:"temp_lock,omitempty"`
	DumpLock string `json:"dump_lock,omitempty"`
}

// Before tells whether the worker came before another. One of an earlier version did.
func (w Worker) Before(other Worker) bool {
	if w.Joined != other.Joined {
		return w.Joined < other.Joined
	}
	return w.ID < other.ID
}

// Join shows a worker as live for the first time, and gives when it came: whoever came
// earlier is shown already, so of two workers the later one always sees the other.
func (s *Store) Join(ctx context.Context, instance string, w Worker) (int64, error) {
	w.Joined = 1 // what the script replaces; a quote within a string has a backslash before it
	b, err := json.Marshal(w)
	if err != nil {
		return 0, err
	}
	at, err := joinScript.Run(ctx, s.rdb, []string{workersKey(instance), workerKey(instance, w.ID)}, w.ID, b, presenceTTL.Milliseconds(), workerKey(instance, "")).Int64()
	if err != nil {
		return 0, fmt.Errorf("sign in at Redis: %w", err)
	}
	w.Joined = at
	return at, s.SignIn(ctx, instance, w)
}

// joinScript: KEYS workers, worker; ARGV id, text, ttl in ms, prefix of workers' keys.
var joinScript = redis.NewScript(typed + `
typed(KEYS[1], 'set')
local t = redis.call('TIME')
local at = tonumber(t[1]) * 1000000 + tonumber(t[2])
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  typed(ARGV[4] .. id, 'string')
  local joined = string.match(redis.call('GET', ARGV[4] .. id) or '', '"joined":(%d+)[,}]')
  if joined and tonumber(joined) >= at then at = tonumber(joined) + 1 end
end
local text = string.gsub(ARGV[2], '"joined":1([,}])', '"joined":' .. string.format('%.0f', at) .. '%1', 1)
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], text, 'PX', ARGV[3])
return string.format('%.0f', at)
`)

// Sign is for how long the worker counts as live if it gives no more sign; zero if it
// does not. It grows with each sign.
func (s *Store) Sign(ctx context.Context, instance, id string) (time.Duration, error) {
	left, err := lastsScript.Run(ctx, s.rdb, []string{workerKey(instance, id)}, presenceTTL.Milliseconds()).Int64()
	if err != nil {
		return 0, fmt.Errorf("look for the sign of worker %s: %w", id, err)
	}
	return time.Duration(left) * time.Millisecond, nil
}
