package health

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"
)

// Check is one question to the process.
type Check struct {
	Name  string
	Limit time.Duration // how long the answer may take; 0 is two seconds
	// Do returns nil, or in one line what is wrong and what to do. It may be called
	// from any goroutine, never twice at a time.
	Do func(ctx context.Context) error
}

// checked is a check with its last answer.
type checked struct {
	Check
	now func() time.Time

	mu      sync.Mutex
	asked   bool
	at      time.Time // of the last answer
	err     error
	running chan struct{} // closed when the call under way has answered; nil when there is none
	since   time.Time     // when that call began
}

func checks(list []Check, now func() time.Time) []*checked {
	var out []*checked
	for _, c := range list {
		if c.Limit <= 0 {
			c.Limit = defaultLimit
		}
		out = append(out, &checked{Check: c, now: now})
	}
	return out
}

// all asks all checks at the same time.
func all(ctx context.Context, list []*checked) []error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { errs[i] = c.ask(ctx) })
	}
	wg.Wait()
	return errs
}

// ask gives an answer that is at most hold old. A call that hangs beyond its
// limit goes on alone: no second one is begun beside it, so they do not pile up.
func (c *checked) ask(ctx context.Context) error {
	c.mu.Lock()
	if c.running == nil && c.asked && c.now().Sub(c.at) < hold && !c.now().Before(c.at) {
		defer c.mu.Unlock()
		return c.err
	}
	if c.running == nil {
		c.running, c.since = make(chan struct{}), c.now()
		go c.call(c.running)
	}
	running, since := c.running, c.since
	c.mu.Unlock()
	late := time.NewTimer(c.Limit)
	defer late.Stop()
	select {
	case <-running:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fmt.Errorf("no answer within %s (asked %s ago)", c.Limit, c.now().Sub(since).Round(time.Second))
	}
}

func (c *checked) call(running chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), c.Limit)
	defer cancel()
	err := safely(ctx, c.Do)
	c.mu.Lock()
	c.asked, c.at, c.err, c.running = true, c.now(), err, nil
	c.mu.Unlock()
	close(running)
}

// safely turns a panic into an error: a check must not end the process.
func safely(ctx context.Context, do func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the check panicked: %v; this is a bug, please report it", p)
		}
	}()
	return do(ctx)
}

// redisCheck asks whether Redis answers.
func redisCheck(rdb *redis.Client, where string) Check {
	return Check{Name: "redis", Do: func(ctx context.Context) error {
		if err := rdb.Ping(ctx).Err(); err != nil {
			return fmt.Errorf("%s does not answer: %w; start it, or mend the configuration", where, err)
		}
		return nil
	}}
}

// Directory asks whether files can be made in dir, which the configuration key
// names. It leaves nothing there and does not change the directory's times.
func Directory(name, dir, key string) Check {
	return Check{Name: name, Do: func(context.Context) error {
		if err := writable(dir); err != nil {
			return fmt.Errorf("%s (%s) cannot be written: %w; give it to the worker's user, and see that it is mounted", dir, key, err)
		}
		return nil
	}}
}

func writable(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return err
	}
	return accessible(dir)
}

// accessible is for a file system that knows no files without a name, such as NFS.
func accessible(dir string) error {
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	return nil
}

// Beat is what a loop leaves each time that it goes round, as the proof that it does.
type Beat struct {
	now  func() time.Time
	mu   sync.Mutex
	last time.Time
}

// NewBeat counts its making as the first turn.
func NewBeat(now func() time.Time) *Beat { return &Beat{now: now, last: now()} }

// Turn says that the loop goes round.
func (b *Beat) Turn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = b.now()
}

// Last is when the loop last went round.
func (b *Beat) Last() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// Check is bad when the last turn is longer ago than limit.
func (b *Beat) Check(name string, limit time.Duration) Check {
	return Check{Name: name, Do: func(context.Context) error {
		if age := b.now().Sub(b.Last()); age > limit {
			return fmt.Errorf("it has not gone round for %s (limit %s): the process hangs; end it and start it again", age.Round(time.Second), limit)
		}
		return nil
	}}
}
