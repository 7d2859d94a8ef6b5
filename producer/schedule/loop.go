package schedule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/sirupsen/logrus"
)

const (
	// skew is how far ahead another scheduler's clock may be without being taken for
	// a clock that was wrong.
	skew = time.Minute
	// keepMissed is how many ticks of a long absence are recorded as missed, each.
	keepMissed = 20
	// awayInterval is how often a Redis that does not answer is asked again.
	awayInterval = time.Second
)

// loop looks at the plans until Shutdown.
func (s *Service) loop() {
	defer close(s.stopped)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-s.done; cancel() }()
	for {
		forced := false
		select {
		case <-s.done:
			return
		case <-s.reload:
			forced = true
		case <-s.p.Clock.After(s.pause()):
		}
		s.beat.Turn()
		s.reread(forced)
		err := s.turn(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !s.away {
			s.p.Log.WithError(err).Warn("could not look at the plans; trying on")
		}
		if err == nil && s.away {
			s.p.Log.Info("Redis answers again")
		}
		s.away = err != nil
	}
}

// pause is how long nothing can be due. It counts from the last look: a tick that
// came since then is due at once.
func (s *Service) pause() time.Duration {
	if s.away {
		return awayInterval
	}
	now, d := s.p.Clock.Now(), lookInterval
	for _, p := range s.current() {
		if next := p.Next(s.looked); !next.IsZero() {
			d = min(d, max(next.Sub(now), time.Millisecond))
		}
	}
	return d
}

func (s *Service) current() []schedule.Plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plans
}

// turn gives a sign of life and looks at every plan once.
func (s *Service) turn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	epoch, err := s.runs.Epoch(ctx, s.p.FreshEpoch())
	if err != nil {
		return err
	}
	s.takeEpoch(epoch)
	now := s.p.Clock.Now()
	s.looked = now
	if since := now.Sub(s.signed); since >= signInterval || since < 0 {
		if err := s.store.SignIn(ctx, s.p.Who, s.current()); err != nil {
			return fmt.Errorf("sign in: %w", err)
		}
		if err := task.Publish(ctx, s.p.Redis, task.ScheduleQueue(s.instance)); err != nil {
			return err
		}
		s.signed = now
	}
	var errs []error
	for _, p := range s.current() {
		errs = append(errs, s.look(ctx, p))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.mu.Lock()
	s.turned = now
	s.mu.Unlock()
	return nil
}

// takeEpoch notices that Redis lost its data, or that another one answers.
func (s *Service) takeEpoch(epoch string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != "" && s.epoch != epoch {
		s.p.Log.Warn("Redis was emptied or replaced: which plans were paused and what became of their ticks is forgotten; all plans begin from now")
		s.signed = time.Time{}
	}
	s.epoch = epoch
}

// look deals with the ticks of a plan that are due. The order matters for a
// scheduler that dies in it: what is noted twice is noted once, and a tick that is
// enqueued twice is a conflict; only then the plan is further.
func (s *Service) look(ctx context.Context, p schedule.Plan) error {
	seen, err := s.store.Seen(ctx, p)
	if err != nil {
		return err
	}
	now := s.p.Clock.Now()
	log := s.p.Log.WithField("plan", p.Name)
	if seen.After(now.Add(skew)) {
		log.WithField("until", seen.UTC().Format(time.RFC3339)).Warn("the plan was looked at in the future: the clock of a scheduler was set back, or had been wrong; it goes on from now")
		return s.store.Advance(ctx, p, seen, now)
	}
	ticks, more := p.Latest(seen, now, keepMissed)
	if len(ticks) == 0 {
		return nil
	}
	isPaused, err := s.store.PausedAt(ctx, p.Name)
	if err != nil {
		return err
	}
	if missed := len(ticks) - 1; missed > 0 {
		word := fmt.Sprint(missed)
		if more {
			word = "at least " + word
		}
		log.WithField("since", seen.UTC().Format(time.RFC3339)).Warnf("%s earlier ticks of the plan were missed", word)
	}
	for i, at := range ticks {
		if err := s.due(ctx, p, at, i == len(ticks)-1, now, isPaused(at)); err != nil {
			return err
		}
	}
	return s.store.Advance(ctx, p, seen, ticks[len(ticks)-1])
}

// due enqueues one tick, or notes why not. last tells that no later one is due.
func (s *Service) due(ctx context.Context, p schedule.Plan, at time.Time, last bool, now time.Time, paused bool) error {
	log := s.p.Log.WithFields(logrus.Fields{"plan": p.Name, "tick": at.UTC().Format(time.RFC3339)})
	t := schedule.Tick{At: at}
	switch late := now.Sub(at); {
	case paused:
		t.Result = schedule.Paused
		log.Info("the plan is paused")
	case late > p.CatchUp:
		t.Result, t.Reason = schedule.Missed, text("it was noticed %s late, after the catch-up window of %s: no scheduler ran, or Redis was away", late.Round(time.Second), p.CatchUp)
	case !last:
		t.Result, t.Reason = schedule.Missed, text("a later tick of the plan was due too: of several that were missed only the latest is caught up")
	default:
		fresh, err := s.enqueue(ctx, p, at)
		if err != nil {
			return err
		}
		t.Result = schedule.Enqueued
		if fresh {
			log.WithField("late", late.Round(time.Second).String()).Info("the tick is enqueued")
		}
	}
	_, err := s.store.Note(ctx, p.Name, t)
	return err
}

func (s *Service) enqueue(ctx context.Context, p schedule.Plan, at time.Time) (bool, error) {
	s.mu.Lock()
	epoch := s.epoch
	s.mu.Unlock()
	until := p.Next(at)
	if until.IsZero() {
		until = at.Add(p.CatchUp)
	}
	return s.starter.Queue.EnqueueTick(ctx, task.Tick{Install: epoch, Instance: s.instance, Plan: p.Name, At: at, Job: p.Job, Type: p.Type,
		Overlap: p.Overlap, Latest: at.Add(p.CatchUp), Until: until}, p.CatchUp)
}

func text(format string, args ...any) *string {
	t := fmt.Sprintf(format, args...)
	return &t
}
