package run

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Store reads and changes run records.
type Store struct {
	rdb  redis.UniversalClient
	now  func() time.Time
	keep time.Duration
}

// NewStore works on rdb. Records of ended runs are kept for keep. now nil, as in the
// programs, takes the time from Redis, since the hosts' clocks differ.
func NewStore(rdb redis.UniversalClient, now func() time.Time, keep time.Duration) *Store {
	return &Store{rdb: rdb, now: now, keep: keep}
}

const keyPrefix = "catalog-backup:"

const (
	epochKey     = keyPrefix + "epoch"
	instancesKey = keyPrefix + "instances"
)

func runKey(id string) string        { return keyPrefix + "run:" + id }
func lockKey(instance string) string { return keyPrefix + instance + ":lock" }
func openKey(instance string) string { return keyPrefix + instance + ":open" }
func runsKey(instance string) string { return keyPrefix + instance + ":runs" }
func tickKey(instance, tick string) string {
	return keyPrefix + instance + ":tick:" + tick
}

// ErrFenced means that the run went on without this attempt: it may touch
// nothing more.
var ErrFenced = errors.New("this attempt is no longer the current one")

// ErrCancel means that somebody asked to cancel the run.
var ErrCancel = errors.New("the run was cancelled")

// ErrEpoch means that Redis lost its data, or another Redis answers now.
var ErrEpoch = errors.New("the run records are gone from Redis (its epoch changed)")

// BusyError is returned when the instance has an open run.
type BusyError struct {
	Run   Record
	Known bool // false: the lock names a run without a record
}

func (e *BusyError) Error() string {
	return "run " + e.Run.ID + " of the instance is active"
}

func (s *Store) call(ctx context.Context, sc *redis.Script, keys []string, args ...any) ([]string, error) {
	at := ""
	if s.now != nil {
		at = stamp(s.now())
	}
	out, err := sc.Run(ctx, s.rdb, keys, append([]any{at}, args...)...).StringSlice()
	if err == nil && len(out) == 0 {
		err = errors.New("a script answered nothing")
	}
	return out, err
}

// Time is the time by which records are written and judged: Redis's own.
func (s *Store) Time(ctx context.Context) (time.Time, error) {
	if s.now != nil {
		return s.now(), nil
	}
	t, err := s.rdb.Time(ctx).Result()
	if err != nil {
		return t, fmt.Errorf("ask Redis for the time: %w", err)
	}
	return t, nil
}

func (s *Store) keepSeconds() int64 { return max(1, int64(s.keep/time.Second)) }

// Epoch is a name that Redis keeps as long as it keeps its data. It is made when missing.
func (s *Store) Epoch(ctx context.Context, fresh string) (string, error) {
	epoch, err := epochScript.Run(ctx, s.rdb, []string{epochKey}, fresh).Text()
	if err != nil {
		return "", fmt.Errorf("read Redis's epoch: %w", err)
	}
	return epoch, nil
}

// Request is what a new run needs.
type Request struct {
	ID, Instance, Requested, Type, FirstStage string
	Epoch                                     string // used only when Redis has none
	// Tick names the tick of a schedule that asks, "" is none. One tick opens one
	// run, however often it asks within the time that records are kept.
	Tick string
}

// Start takes the instance's lock and writes the record in one step. The error
// is *BusyError when another run is open. A record with another id than q's is
// the one that q's tick opened before.
func (s *Store) Start(ctx context.Context, q Request) (Record, error) {
	keys := []string{runKey(q.ID), lockKey(q.Instance), openKey(q.Instance), runsKey(q.Instance), epochKey,
		instancesKey, tickKey(q.Instance, q.Tick)}
	for range 3 {
		out, err := s.call(ctx, startScript, keys, q.ID, q.Instance, q.Requested, q.Type, q.FirstStage, q.Epoch, s.keepSeconds(), q.Tick)
		if err != nil {
			return Record{}, fmt.Errorf("start a run: %w", err)
		}
		switch out[0] {
		case "ok":
			return s.Get(ctx, q.ID)
		case "again":
			return s.Get(ctx, out[1])
		case "exists":
			return Record{}, fmt.Errorf("start a run: the run id %s is taken", q.ID)
		}
		if out[1] == q.ID {
			// The client sent the script a second time, since the first answer was lost on the way.
			return s.Get(ctx, q.ID)
		}
		holder, err := s.Get(ctx, out[1])
		if errors.Is(err, ErrNotFound) || err == nil && holder.State.Over() {
			if _, err := s.call(ctx, releaseScript, []string{runKey(out[1]), lockKey(q.Instance), openKey(q.Instance), runsKey(q.Instance)}, out[1]); err != nil {
				return Record{}, fmt.Errorf("start a run: %w", err)
			}
			continue
		}
		if err != nil {
			return Record{}, fmt.Errorf("start a run: %w", err)
		}
		return Record{}, &BusyError{Run: holder, Known: true}
	}
	return Record{}, errors.New("start a run: the instance's lock changes all the time; try again")
}

// Get reads one record.
func (s *Store) Get(ctx context.Context, id string) (Record, error) {
	if !ValidID(id) {
		return Record{}, fmt.Errorf("%w: %q is not a run id", ErrNotFound, id)
	}
	var h *redis.MapStringStringCmd
	var at *redis.TimeCmd
	_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		h, at = p.HGetAll(ctx, runKey(id)), p.Time(ctx)
		return nil
	})
	if redis.HasErrorPrefix(h.Err(), "WRONGTYPE") {
		return Record{}, fmt.Errorf("%w: what Redis has as the record of run %s is of another type", ErrNotFound, id)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read run %s: %w", id, err)
	}
	now := at.Val()
	if s.now != nil {
		now = s.now()
	}
	return parse(id, h.Val(), now)
}

// Current is the instance's open run, else its last one. ErrNotFound if it has none.
func (s *Store) Current(ctx context.Context, instance string) (Record, error) {
	id, err := s.Holder(ctx, instance)
	if err != nil {
		return Record{}, err
	}
	if r, err := s.Get(ctx, id); err == nil {
		return r, nil
	}
	ids, err := s.rdb.ZRevRange(ctx, runsKey(instance), 0, 20).Result()
	if err != nil {
		return Record{}, fmt.Errorf("read the last run: %w", err)
	}
	for _, id := range ids {
		if r, err := s.Get(ctx, id); err == nil {
			return r, nil
		}
	}
	return Record{}, fmt.Errorf("%w: instance %s has had no run", ErrNotFound, instance)
}

// Claim results.
type Claim struct {
	Kind string // ok, stale, elsewhere, claimed, cancel
	Hold Hold
	Node string // for elsewhere
}

// Claim makes the caller, who holds the flock on the run's staging, the holder of
// the stage's current generation, with token as the second half of its hold. The
// run's first claim sets its limit, and its deadline, limit from now.
func (s *Store) Claim(ctx context.Context, id, stage string, generation int64, node, token string, limit time.Duration) (Claim, error) {
	out, err := s.call(ctx, claimScript, []string{runKey(id)}, stage, generation, node, limit.Milliseconds(), token)
	if err != nil {
		return Claim{}, fmt.Errorf("claim stage %s of run %s: %w", stage, id, err)
	}
	c := Claim{Kind: out[0]}
	switch out[0] {
	case "ok":
		c.Hold.Token = token
		c.Hold.Fence, err = strconv.ParseInt(out[1], 10, 64)
	case "elsewhere":
		c.Node = out[1]
	}
	return c, err
}

func verdict(word string) error {
	switch word {
	case "ok", "done":
		return nil
	case "cancel":
		return ErrCancel
	case "epoch":
		return ErrEpoch
	default:
		return ErrFenced
	}
}

// Progress tells how far the attempt is, and learns whether to go on: ErrCancel,
// ErrFenced or ErrEpoch. Unknown numbers are nil.
func (s *Store) Progress(ctx context.Context, id string, h Hold, epoch string, done, total, rate *int64) error {
	out, err := s.call(ctx, progressScript, []string{runKey(id), epochKey}, h.Fence, h.Token, epoch, optional(done), optional(total), optional(rate))
	if err != nil {
		return err
	}
	return verdict(out[0])
}

func optional(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

// Holds asks whether the attempt may still act outside its staging. With commit,
// a cancel comes too late from here on.
func (s *Store) Holds(ctx context.Context, id string, h Hold, epoch string, commit bool) error {
	flag := ""
	if commit {
		flag = "1"
	}
	out, err := s.call(ctx, holdsScript, []string{runKey(id), epochKey}, h.Fence, h.Token, epoch, flag)
	if err != nil {
		return err
	}
	return verdict(out[0])
}

// Facts are what attempts find out about their run.
type Facts struct {
	Set, Type, Manifest       string
	Archives, Warnings, Notes []string // nil leaves them as they are
}

// Note writes facts into the record.
func (s *Store) Note(ctx context.Context, id string, h Hold, f Facts) error {
	args := []any{h.Fence, h.Token}
	for field, v := range map[string]string{"set": f.Set, "type": f.Type, "manifest": f.Manifest} {
		if v != "" {
			args = append(args, field, v)
		}
	}
	for field, v := range map[string][]string{"archives": f.Archives, "warnings": f.Warnings, "notes": f.Notes} {
		if v != nil {
			args = append(args, field, jsonTexts(v))
		}
	}
	out, err := s.call(ctx, noteScript, []string{runKey(id)}, args...)
	if err != nil {
		return fmt.Errorf("note facts of run %s: %w", id, err)
	}
	return verdict(out[0])
}

// Advance ends a stage well. next "" ends the run. It returns the generation of
// the next stage's task.
func (s *Store) Advance(ctx context.Context, r Record, stage string, h Hold, next, result string) (int64, error) {
	out, err := s.call(ctx, advanceScript, s.keys(r), stage, h.Fence, h.Token, next, result, s.keepSeconds())
	if err != nil {
		return 0, err
	}
	if err := verdict(out[0]); err != nil || out[0] == "done" {
		return 0, err
	}
	return strconv.ParseInt(out[1], 10, 64)
}

func (s *Store) keys(r Record) []string {
	return []string{runKey(r.ID), lockKey(r.Instance), openKey(r.Instance), totalsKey(r.Instance)}
}

// Next says what to do after Again, Stop or Anew.
type Next struct {
	Kind       string // again, cleanup, closed, cancel, stale
	Generation int64
}

func next(out []string, err error) (Next, error) {
	if err != nil {
		return Next{}, err
	}
	n := Next{Kind: out[0]}
	if len(out) > 1 {
		n.Generation, err = strconv.ParseInt(out[1], 10, 64)
	}
	return n, err
}

// Retry is one attempt's bad end.
type Retry struct {
	Kind      Outcome // Erred, Interrupted or Crashed
	Error     string
	Budget    int           // how many of this kind a stage may have
	Wait      time.Duration // before the next try
	Permanent bool
}

// Again ends the attempt of the generation badly: the stage is tried again, or,
// with the budget spent, the run goes to its cleanup. It is stale where another
// attempt has the run than when r was read.
func (s *Store) Again(ctx context.Context, r Record, stage string, generation int64, q Retry) (Next, error) {
	perm := ""
	if q.Permanent {
		perm = "1"
	}
	return next(s.call(ctx, againScript, s.keys(r), stage, generation, r.Fence, r.Token, string(q.Kind), q.Error, q.Budget, q.Wait.Milliseconds(), perm))
}

// Stop ends an open run as ending (Failed or Cancelled). With a generation it is stale
// where that is no longer the current one, or another attempt has the run than when r was
// read; 0 means whatever there is. force closes it without a cleanup, also in the
// middle of one: then why is added to the error that the run was ending for.
func (s *Store) Stop(ctx context.Context, r Record, generation int64, ending State, why string, force bool) (Next, error) {
	g, f := "", ""
	if generation > 0 {
		g = strconv.FormatInt(generation, 10)
	}
	if force {
		f = "1"
	}
	return next(s.call(ctx, stopScript, s.keys(r), g, r.Fence, r.Token, string(ending), why, s.keepSeconds(), f))
}

// Cleaned ends the run after its cleanup. stands says that the cleanup found the
// run's set complete, manifest and all: then the run has succeeded.
func (s *Store) Cleaned(ctx context.Context, r Record, h Hold, stands bool) error {
	flag := ""
	if stands {
		flag = "1"
	}
	out, err := s.call(ctx, cleanedScript, s.keys(r), h.Fence, h.Token, s.keepSeconds(), flag)
	if err != nil {
		return err
	}
	if out[0] != "closed" {
		return ErrFenced
	}
	return nil
}

// Anew makes a new task generation without counting a failure.
func (s *Store) Anew(ctx context.Context, r Record, generation int64) (Next, error) {
	return next(s.call(ctx, anewScript, []string{runKey(r.ID)}, generation))
}

// Cancel answers.
const (
	CancelClosed = "closed" // nobody had begun: cancelled at once
	CancelAsked  = "asked"  // the worker will stop it
	CancelLate   = "late"   // committed already
	CancelOver   = "over"   // the run had ended
)

// Cancel asks for the run to stop.
func (s *Store) Cancel(ctx context.Context, r Record) (string, error) {
	out, err := s.call(ctx, cancelScript, s.keys(r), s.keepSeconds())
	if err != nil {
		return "", fmt.Errorf("cancel run %s: %w", r.ID, err)
	}
	return out[0], nil
}
