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

// Result is what became of a tick.
type Result string

const (
	Missed    Result = "missed"    // not carried out: outside of the catch-up window, or a later tick stood in for it
	Paused    Result = "paused"    // the plan was paused
	Enqueued  Result = "enqueued"  // a task waits to be taken
	Waiting   Result = "waiting"   // overlap queue: it waits for the active run to end
	Verifying Result = "verifying" // a worker is to verify, or does so
	Opened    Result = "opened"    // a run was opened
	Skipped   Result = "skipped"   // overlap skip: another run was active
	Good      Result = "good"      // the verification found the set good
	Damage    Result = "damage"    // the verification found damage
	Failed    Result = "failed"    // it could not be done
)

// Final tells that the result stays as it is.
func (r Result) Final() bool { return r.rank() == 4 }

// Begun tells that somebody has taken the tick and is not done with it.
func (r Result) Begun() bool { return r.rank() == 3 }

// rank orders results: a tick's result is only replaced by one of the same rank or
// a higher one, and a final one never.
func (r Result) rank() int {
	switch r {
	case "":
		return 0
	case Missed, Paused:
		return 1
	case Enqueued:
		return 2
	case Waiting, Verifying:
		return 3
	}
	return 4
}

// Tick is what Redis remembers of one tick of a plan. Its JSON is the public one of
// `producer schedule list`.
type Tick struct {
	At     time.Time `json:"tick"`
	Result Result    `json:"result"`
	Run    *string   `json:"run"`    // opened: its id; skipped, waiting: the one that was active
	Set    *string   `json:"set"`    // verified: which
	Reason *string   `json:"reason"` // why it was missed, skipped or failed; what was found
	Noted  time.Time `json:"noted"`
}

// Pause says who paused a plan, and when.
type Pause struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// Store is what Redis remembers of the plans of one instance.
type Store struct {
	rdb      redis.UniversalClient
	instance string
	now      func() time.Time
}

// NewStore works on rdb for one instance.
func NewStore(rdb redis.UniversalClient, instance string, now func() time.Time) *Store {
	return &Store{rdb: rdb, instance: instance, now: now}
}

const (
	// keepTicks is how many ticks of a plan are remembered.
	keepTicks = 100
	// keepFor is how long, after the last one.
	keepFor = 400 * 24 * time.Hour
)

func (s *Store) key(parts ...string) string {
	return "catalog-backup:" + s.instance + ":schedule:" + strings.Join(parts, ":")
}

// noteScript: KEYS ticks of the plan; ARGV tick, record, rank, how many to keep,
// keep (s). A record holds its rank in front. → kept | noted
var noteScript = redis.NewScript(`
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local rank = tonumber(string.sub(old, 1, 1))
  if rank == 4 or rank > tonumber(ARGV[3]) then return 'kept' end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[5])
local surplus = redis.call('HLEN', KEYS[1]) - tonumber(ARGV[4])
if surplus > 0 then
  local all = redis.call('HKEYS', KEYS[1])
  table.sort(all)
  for i = 1, surplus do redis.call('HDEL', KEYS[1], all[i]) end
end
return 'noted'`)

// Note writes down what became of a tick. A final result is written once; noted
// tells whether this was the one.
func (s *Store) Note(ctx context.Context, plan string, t Tick) (noted bool, err error) {
	t.At, t.Noted = t.At.UTC(), s.now().UTC().Truncate(time.Second)
	b, err := json.Marshal(t)
	if err != nil {
		return false, err
	}
	out, err := noteScript.Run(ctx, s.rdb, []string{s.key("ticks", plan)}, stamp(t.At), b, t.Result.rank(), keepTicks, int64(keepFor/time.Second)).Text()
	if err != nil {
		return false, fmt.Errorf("note the tick %s of plan %s: %w", stamp(t.At), plan, err)
	}
	return out == "noted", nil
}

// Recent are the plan's last ticks, the latest first, at most n.
func (s *Store) Recent(ctx context.Context, plan string, n int) ([]Tick, error) {
	h, err := s.rdb.HGetAll(ctx, s.key("ticks", plan)).Result()
	if err != nil {
		return nil, fmt.Errorf("read the ticks of plan %s: %w", plan, err)
	}
	out := []Tick{}
	for at, v := range h {
		var t Tick
		if len(v) < 2 {
			return nil, fmt.Errorf("read the tick %s of plan %s: it is damaged", at, plan)
		}
		if err := json.Unmarshal([]byte(v[1:]), &t); err != nil {
			return nil, fmt.Errorf("read the tick %s of plan %s: %w", at, plan, err)
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Tick) int { return b.At.Compare(a.At) })
	return out[:min(n, len(out))], nil
}

// Tick is one tick of a plan; ok is false where nothing is remembered of it.
func (s *Store) Tick(ctx context.Context, plan string, at time.Time) (t Tick, ok bool, err error) {
	v, err := s.rdb.HGet(ctx, s.key("ticks", plan), stamp(at)).Result()
	if errors.Is(err, redis.Nil) {
		return Tick{}, false, nil
	}
	if err == nil && len(v) < 2 {
		err = errors.New("it is damaged")
	}
	if err == nil {
		err = json.Unmarshal([]byte(v[1:]), &t)
	}
	if err != nil {
		return Tick{}, false, fmt.Errorf("read the tick %s of plan %s: %w", stamp(at), plan, err)
	}
	return t, true, nil
}

// Seen is the instant up to which the plan's ticks have been dealt with. A plan
// that was not seen with these times since it came into force begins now (SignIn
// drops what is not in force).
func (s *Store) Seen(ctx context.Context, p Plan) (time.Time, error) {
	if err := s.rdb.HSetNX(ctx, s.key("seen"), p.times(), stamp(s.now())).Err(); err != nil {
		return time.Time{}, fmt.Errorf("read how far plan %s is: %w", p.Name, err)
	}
	v, err := s.rdb.HGet(ctx, s.key("seen"), p.times()).Result()
	if err != nil {
		return time.Time{}, fmt.Errorf("read how far plan %s is: %w", p.Name, err)
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return time.Time{}, fmt.Errorf("read how far plan %s is: %w", p.Name, err)
	}
	return t, nil
}

// seenScript: KEYS seen; ARGV plan, from, to. Another scheduler may have gone on.
var seenScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
return 1`)

// Advance says that the plan's ticks have been dealt with up to an instant, if they
// were up to from before.
func (s *Store) Advance(ctx context.Context, p Plan, from, to time.Time) error {
	if err := seenScript.Run(ctx, s.rdb, []string{s.key("seen")}, p.times(), stamp(from), stamp(to)).Err(); err != nil {
		return fmt.Errorf("note how far plan %s is: %w", p.Name, err)
	}
	return nil
}

// Pause stops the plan's ticks until Resume. A plan that is paused already stays as
// it is; the pause that holds is returned.
func (s *Store) Pause(ctx context.Context, plan, by string) (Pause, error) {
	b, err := json.Marshal(Pause{By: by, At: s.now().UTC().Truncate(time.Second)})
	if err != nil {
		return Pause{}, err
	}
	if err := s.rdb.HSetNX(ctx, s.key("paused"), plan, b).Err(); err != nil {
		return Pause{}, fmt.Errorf("pause plan %s: %w", plan, err)
	}
	p, err := s.Paused(ctx)
	return p[plan], err
}

// Resume lets the plan's ticks go on from now. was is the pause that it ended, nil
// if the plan was not paused. The ticks of the pause stay undone, even where no
// scheduler was there to see them: the time of the pause is kept.
func (s *Store) Resume(ctx context.Context, plan string) (was *Pause, err error) {
	all, err := s.Paused(ctx)
	if err != nil {
		return nil, err
	}
	p, ok := all[plan]
	if !ok {
		return nil, nil
	}
	_, err = s.rdb.TxPipelined(ctx, func(t redis.Pipeliner) error {
		t.HSet(ctx, s.key("resumed"), plan, stamp(p.At)+" "+stamp(s.now()))
		t.HDel(ctx, s.key("paused"), plan)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("resume plan %s: %w", plan, err)
	}
	return &p, nil
}

// PausedAt answers for which ticks that are due now the plan is paused: for all,
// while it is; for those of its last pause, once that is over.
func (s *Store) PausedAt(ctx context.Context, plan string) (func(time.Time) bool, error) {
	all, err := s.Paused(ctx)
	if err != nil {
		return nil, err
	}
	if _, ok := all[plan]; ok {
		return func(time.Time) bool { return true }, nil
	}
	v, err := s.rdb.HGet(ctx, s.key("resumed"), plan).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("read when plan %s was paused: %w", plan, err)
	}
	begin, end, _ := strings.Cut(v, " ")
	from, bad := time.Parse(time.RFC3339, begin)
	to, worse := time.Parse(time.RFC3339, end)
	if bad != nil || worse != nil {
		return func(time.Time) bool { return false }, nil
	}
	return func(t time.Time) bool { return t.After(from) && !t.After(to) }, nil
}

// Paused are the plans that are paused.
func (s *Store) Paused(ctx context.Context) (map[string]Pause, error) {
	h, err := s.rdb.HGetAll(ctx, s.key("paused")).Result()
	if err != nil {
		return nil, fmt.Errorf("read which plans are paused: %w", err)
	}
	out := map[string]Pause{}
	for plan, v := range h {
		var p Pause
		if err := json.Unmarshal([]byte(v), &p); err != nil {
			return nil, fmt.Errorf("read the pause of plan %s: %w", plan, err)
		}
		out[plan] = p
	}
	return out, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Begun counts one more try at the work of a tick and returns how many have begun
// and not ended in good order: the worker died in the others.
func (s *Store) Begun(ctx context.Context, plan string, at time.Time) (int, error) {
	key := s.key("begun", plan, stamp(at))
	n, err := s.rdb.Incr(ctx, key).Result()
	if err == nil {
		err = s.rdb.Expire(ctx, key, keepFor).Err()
	}
	if err != nil {
		return 0, fmt.Errorf("count a try at the tick %s of plan %s: %w", stamp(at), plan, err)
	}
	return int(n), nil
}

// HandedBack takes a try off the count: it ended in good order, to be made again.
func (s *Store) HandedBack(ctx context.Context, plan string, at time.Time) error {
	return s.rdb.Decr(ctx, s.key("begun", plan, stamp(at))).Err()
}
