// Package schedule is the scheduler: a service that enqueues the ticks of the plans,
// each once however many schedulers run, and opens the runs that they ask for.
//
// A loop on an injected clock looks which ticks are due and enqueues each as a task
// `<install>:<plan>:<tick-unix>`: the second scheduler's attempt to do so
// is a conflict of ids and no error. The scheduler is asynq's server of these tasks
// too: a tick opens its run with the task's id as idempotency key, so that a tick
// that is delivered twice opens one run.
package schedule

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"catalog-backup/producer/start"
	"catalog-backup/shared/config"
	"catalog-backup/shared/health"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
)

// Params are what a Service works with.
type Params struct {
	Config *config.Config
	// Read reads the configuration's text anew, Parse makes a configuration of it.
	Read  func() ([]byte, error)
	Parse func(text []byte) (*config.Config, error)
	Redis *redis.Client // closed by the caller
	Clock Clock
	// RunClock is what the records of runs are written by. nil, as in the program, is Redis's.
	RunClock func() time.Time
	Log      logrus.FieldLogger
	Who      schedule.Scheduler
	// FreshEpoch proposes a name for a Redis that has none.
	FreshEpoch func() string
	// Again is how often a tick that waits looks whether it can go on. Default 5 s.
	Again time.Duration
}

// Service is one scheduler of one instance.
type Service struct {
	p         Params
	instance  string
	runs      *run.Store
	store     *schedule.Store
	inspector *asynq.Inspector
	starter   start.Starter
	server    *asynq.Server

	mu     sync.Mutex // guards what follows
	plans  []schedule.Plan
	epoch  string
	turned time.Time // when the loop last looked at all plans

	beat     *health.Beat // of the loop, whatever it found
	stopping atomic.Bool

	// What follows is the loop's.
	away    bool   // the last look failed
	text    []byte // of the configuration as it was last read
	checked time.Time
	signed  time.Time
	looked  time.Time
	reload  chan struct{}
	done    chan struct{}
	stopped chan struct{}
}

const (
	// lookInterval bounds how long the loop sleeps: a clock that was set is noticed,
	// and so is a plan that was resumed.
	lookInterval = 5 * time.Second
	// signInterval is well below schedule.PresenceTTL.
	signInterval = 5 * time.Second
	// reloadInterval is how often the file is looked at.
	reloadInterval = 5 * time.Second
	// callLimit bounds what one look asks of Redis, in true time.
	callLimit = 15 * time.Second
)

// New makes a scheduler.
func New(p Params) *Service {
	if p.Again == 0 {
		p.Again = 5 * time.Second
	}
	now := p.Clock.Now
	runs := run.NewStore(p.Redis, p.RunClock, p.Config.Queue.KeepRuns)
	s := &Service{p: p, instance: p.Config.Instance, runs: runs, store: schedule.NewStore(p.Redis, p.Config.Instance, now),
		inspector: asynq.NewInspectorFromRedisClient(p.Redis), starter: start.New(p.Redis, runs, now), plans: schedule.Plans(p.Config),
		reload: make(chan struct{}, 1), done: make(chan struct{}), stopped: make(chan struct{})}
	s.beat = health.NewBeat(now)
	return s
}

// Start begins to work. Redis answers when it is called.
func (s *Service) Start(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.server = asynq.NewServerFromRedisClient(s.p.Redis, asynq.Config{
		Concurrency:              4,
		Queues:                   map[string]int{task.ScheduleQueue(s.instance): 1},
		TaskCheckInterval:        time.Second,
		DelayedTaskCheckInterval: time.Second,
		RetryDelayFunc:           func(int, error, *asynq.Task) time.Duration { return s.p.Again },
		IsFailure:                func(error) bool { return false }, // a tick ends by our own rules
		Logger:                   task.Quiet{Log: s.p.Log},
		LogLevel:                 asynq.WarnLevel,
		ShutdownTimeout:          3 * time.Second,
	})
	if err := s.server.Start(asynq.HandlerFunc(s.ProcessTask)); err != nil {
		return fmt.Errorf("start asynq's server: %w", err)
	}
	s.beat.Turn()
	go s.loop()
	return nil
}

// begin signs in and looks at the plans for the first time.
func (s *Service) begin(ctx context.Context) error {
	if s.p.Read != nil {
		s.text, _ = s.p.Read()
	}
	for _, p := range s.plans {
		s.p.Log.WithFields(logrus.Fields{"plan": p.Name, "cron": p.Cron, "timezone": p.Timezone, "job": p.Job, "next": p.Next(s.p.Clock.Now()).Format(time.RFC3339)}).Info("plan")
	}
	if len(s.plans) == 0 {
		s.p.Log.Warn("the configuration has no plans: write some below schedules; the file is read again when it changes")
	}
	return s.turn(ctx)
}

// Shutdown takes no new tick, ends and signs out. What is under way is delivered
// again to the next scheduler.
func (s *Service) Shutdown() {
	s.stopping.Store(true)
	close(s.done)
	<-s.stopped
	s.server.Shutdown()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := s.store.SignOut(ctx, s.p.Who.ID); err != nil {
		s.p.Log.WithError(err).Debug("could not sign out")
	}
}

// Reload reads the configuration anew, soon.
func (s *Service) Reload() {
	select {
	case s.reload <- struct{}{}:
	default:
	}
}

// Turned is when the loop last looked at all plans with success.
func (s *Service) Turned() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turned
}
