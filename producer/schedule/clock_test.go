package schedule

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"sync"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

var ctx = context.Background()

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// handClock is a clock that the test turns by hand.
type handClock struct {
	mu    sync.Mutex
	now   time.Time
	sleep []sleeper
	added chan struct{} // somebody went to sleep
}

type sleeper struct {
	until time.Time
	wake  chan time.Time
}

func newClock(at string) *handClock {
	t, err := time.Parse(time.RFC3339, at)
	if err != nil {
		panic(err)
	}
	return &handClock{now: t, added: make(chan struct{}, 1000)}
}

func (c *handClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := sleeper{until: c.now.Add(d), wake: make(chan time.Time, 1)}
	c.sleep = append(c.sleep, w)
	c.added <- struct{}{}
	return w.wake
}

// set turns the clock and wakes everybody: those who slept and those who would have,
// had the clock not gone back.
func (c *handClock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
	for _, w := range c.sleep {
		w.wake <- t
	}
	c.sleep = nil
}

// yard is a Redis, a clock, a file with plans and the schedulers on them.
type yard struct {
	t     *testing.T
	redis *lab.RedisServer
	rdb   *redis.Client // the test's own
	clock *handClock
	log   *lab.Buffer
	store *schedule.Store
	runs  *run.Store

	mu   sync.Mutex
	text string
}

func newYard(t *testing.T, at, text string) *yard {
	y := &yard{t: t, redis: lab.Redis(t), clock: newClock(at), log: &lab.Buffer{}}
	y.rdb = y.redis.Client()
	t.Cleanup(func() { _ = y.rdb.Close() })
	y.write(text)
	y.store = schedule.NewStore(y.rdb, "catalog", y.clock.Now)
	y.runs = run.NewStore(y.rdb, y.clock.Now, 24*time.Hour)
	return y
}

func (y *yard) write(text string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.text = "instance: catalog\nredis: {address: 'unix:/r.sock'}\n" + text
}

func (y *yard) read() ([]byte, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.text == "" {
		return nil, errors.New("no such file")
	}
	return []byte(y.text), nil
}

func parse(text []byte) (*config.Config, error) {
	return config.Parse("/etc/c.yaml", text, func(string) string { return "" })
}

// hand is one scheduler in the hand of a test: its loop, without asynq's server.
type hand struct {
	*Service
	y    *yard
	rdb  *redis.Client
	fate *fate
}

// scheduler makes one, whose loop does not run yet.
func (y *yard) scheduler(name string) *hand {
	y.t.Helper()
	text, err := y.read()
	require.NoError(y.t, err)
	c, err := parse(text)
	require.NoError(y.t, err)
	h := &hand{y: y, rdb: y.redis.Client(), fate: &fate{}}
	h.rdb.AddHook(h.fate)
	log := logrus.New()
	log.SetOutput(y.log)
	h.Service = New(Params{Config: c, Read: y.read, Parse: parse, Redis: h.rdb, Clock: y.clock, RunClock: y.clock.Now, Log: log,
		Who: schedule.Scheduler{ID: name}, FreshEpoch: func() string { return fmt.Sprintf("epoch%d", rand.Int63()) }})
	y.t.Cleanup(func() { _ = h.rdb.Close() })
	return h
}

// run starts the loop and waits until it has looked and sleeps.
func (h *hand) run() *hand {
	_ = h.begin(ctx)
	go h.loop()
	h.y.asleep(1)
	return h
}

func (h *hand) end() {
	close(h.done)
	<-h.stopped
}

// asleep waits until n loops went to sleep.
func (y *yard) asleep(n int) {
	y.t.Helper()
	for range n {
		select {
		case <-y.clock.added:
		case <-time.After(patience):
			y.t.Fatal("a loop does not come to rest")
		}
	}
}

// at turns the clock and waits until n loops have looked.
func (y *yard) at(text string, n int) {
	y.t.Helper()
	t, err := time.Parse(time.RFC3339, text)
	require.NoError(y.t, err)
	y.clock.set(t)
	y.asleep(n)
}

// enqueued are the ticks whose tasks wait in the queue, by plan and time.
func (y *yard) enqueued() []string {
	y.t.Helper()
	out := []string{}
	for _, x := range y.tasks() {
		out = append(out, x.Plan+" "+x.At.Format(time.RFC3339))
	}
	return out
}

func (y *yard) tasks() []task.Tick {
	y.t.Helper()
	list, err := asynq.NewInspectorFromRedisClient(y.rdb).ListPendingTasks(task.ScheduleQueue("catalog"), asynq.PageSize(100000))
	if errors.Is(err, asynq.ErrQueueNotFound) {
		return nil
	}
	require.NoError(y.t, err)
	out := []task.Tick{}
	for _, i := range list {
		x, err := task.ReadTick(asynq.NewTask(i.Type, i.Payload))
		require.NoError(y.t, err)
		require.Equal(y.t, i.ID, task.TickID(x))
		require.GreaterOrEqual(y.t, i.Retention, 14*24*time.Hour)
		out = append(out, x)
	}
	return out
}

// results are what is remembered of a plan's ticks, the latest first.
func (y *yard) results(plan string) []string {
	y.t.Helper()
	list, err := y.store.Recent(ctx, plan, 1000)
	require.NoError(y.t, err)
	out := []string{}
	for _, x := range list {
		out = append(out, x.At.Format(time.RFC3339)+" "+string(x.Result))
	}
	return out
}

// fate lets the way to Redis end at a certain command, as a kill would: before it is
// sent, or before its answer arrives.
type fate struct {
	mu      sync.Mutex
	left    int // commands until then; 0 = never
	sent    bool
	reached bool
}

var errKilled = errors.New("killed")

func (f *fate) arm(after int, sent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.sent = after, sent
}

// next tells whether the command is sent, and whether its answer arrives.
func (f *fate) next() (send, answer bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reached {
		return false, false
	}
	if f.left > 0 {
		if f.left--; f.left == 0 {
			f.reached = true
			return f.sent, false
		}
	}
	return true, true
}

func (f *fate) dead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reached
}

func (f *fate) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (f *fate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		send, answer := f.next()
		if send {
			if err := next(ctx, cmd); answer {
				return err
			}
		}
		cmd.SetErr(errKilled)
		return errKilled
	}
}

func (f *fate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		send, answer := f.next()
		if send {
			if err := next(ctx, cmds); answer {
				return err
			}
		}
		for _, c := range cmds {
			c.SetErr(errKilled)
		}
		return errKilled
	}
}
