package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"catalog-backup/shared/run"

	"github.com/sirupsen/logrus"
)

// patience is how long an attempt works on, or waits to report, while Redis does not
// answer: until some time before workers of other nodes may take its node for lost.
func (l Limits) patience() time.Duration {
	margin := min(max(time.Minute, l.NodeLostAfter/4), 15*time.Minute, l.NodeLostAfter/2)
	return l.NodeLostAfter - margin
}

// age is how long ago t was. One later than now was told by a clock that was ahead, and
// says nothing: whoever judges by an age goes by what it has watched itself as well.
func age(t, now time.Time) time.Duration { return max(0, now.Sub(t)) }

// of is the time limit of the run: that of its first claim, so that workers with other
// limits do not end it, nor let it go on. A record without one has this worker's.
func (l Limits) of(r run.Record) time.Duration {
	if r.Limit > 0 {
		return r.Limit
	}
	return l.Timeout
}

// deadline is when the run's time is over. A record without a readable one, or with one
// that no claim has set, has that of its first claim, or else of its begin; none of them
// is later than now.
func (l Limits) deadline(r run.Record, now time.Time) time.Time {
	begin, limit := r.Created, l.of(r)
	switch {
	case r.Deadline != nil && r.Deadline.Sub(now) <= limit:
		return *r.Deadline
	case r.Started != nil:
		begin = *r.Started
	}
	return now.Add(limit - age(begin, now))
}

// longestWait is the most that a stage waits before it is tried again.
const longestWait = 10 * time.Minute

// waits is how long the run's next attempt is still to wait; below 0, how long ago the
// wait was over. A longer wait than any was told by a clock that was ahead.
func waits(r run.Record, now time.Time) time.Duration {
	if r.NotBefore == nil {
		return -longestWait
	}
	d := r.NotBefore.Sub(now)
	if d > longestWait {
		return -longestWait
	}
	return d
}

// silence is how long Redis has not answered somebody who goes on meanwhile. It goes
// by the process's own monotonic clock.
type silence struct {
	e     *Engine
	run   string
	since time.Time
	told  bool
}

func (e *Engine) listen(runID string) *silence { return &silence{e: e, run: runID, since: e.p.Now()} }

func (s *silence) answered(now time.Time) { s.since, s.told = now, false }

// tooLong tells whether to give up. After queue.redis_grace it is said aloud, once.
func (s *silence) tooLong(now time.Time, err error) bool {
	away, l := now.Sub(s.since), s.e.p.Limits
	if away > l.RedisGrace && !s.told {
		s.told = true
		s.e.p.Log.WithFields(logrus.Fields{"run": s.run, "error": s.e.text(err)}).Errorf(
			"Redis has not answered for %s; the stage works on for %s more, then it is handed on (queue.node_lost_after, less a margin): get Redis back",
			away.Round(time.Second), (l.patience() - away).Round(time.Second))
	}
	return away > l.patience()
}

// isAnswer tells a verdict of the record from trouble on the way to it.
func isAnswer(err error) bool {
	return err == nil || errors.Is(err, run.ErrFenced) || errors.Is(err, run.ErrCancel) || errors.Is(err, run.ErrEpoch) || errors.Is(err, run.ErrNotFound)
}

// untilAnswer repeats ask until Redis answers, ctx ends or the patience is over.
func (e *Engine) untilAnswer(ctx context.Context, runID string, ask func(context.Context) error) error {
	quiet, wait := e.listen(runID), 50*time.Millisecond
	for {
		err := ask(ctx)
		if isAnswer(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if quiet.tooLong(e.p.Now(), err) {
			return fmt.Errorf("%w: %w", errRedisAway, err)
		}
		if !e.sleep(ctx, wait) {
			return context.Cause(ctx)
		}
		wait = min(2*wait, time.Second)
	}
}

func (e *Engine) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
