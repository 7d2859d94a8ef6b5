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

// sign is a scheduler's sign of life, with what its plans go by. That of an earlier
// version does not say so.
type sign struct {
	Scheduler
	Times []string `json:"times"`
}

// signScript: KEYS live schedulers, seen; ARGV id, sign, how long it counts (ms), key
// of a sign without its id. How far a plan is ends with the plan: it is kept while
// nobody lives, and dropped where those who live all say what their plans go by and
// none has it. One that comes back, later, begins from then.
var signScript = redis.NewScript(`
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SET', ARGV[4] .. ARGV[1], ARGV[2], 'PX', ARGV[3])
local inForce = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local text = redis.call('GET', ARGV[4] .. id)
  if text then
    local ok, sign = pcall(cjson.decode, text)
    if not ok or type(sign) ~= 'table' or type(sign.times) ~= 'table' then return 0 end
    for _, times in ipairs(sign.times) do inForce[times] = true end
  end
end
local dropped = 0
for _, times in ipairs(redis.call('HKEYS', KEYS[2])) do
  if not inForce[times] then dropped = dropped + redis.call('HDEL', KEYS[2], times) end
end
return dropped`)

// SignIn shows the scheduler as live for PresenceTTL, with its plans; it is repeated,
// at once where the plans change, and before the first look at one.
func (s *Store) SignIn(ctx context.Context, who Scheduler, plans []Plan) error {
	x := sign{Scheduler: who, Times: []string{}}
	for _, p := range plans {
		x.Times = append(x.Times, p.times())
	}
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	return signScript.Run(ctx, s.rdb, []string{s.key("schedulers"), s.key("seen")}, who.ID, b, PresenceTTL.Milliseconds(), s.key("scheduler", "")).Err()
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
