package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/redisowner"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"

	"github.com/redis/go-redis/v9"
)

// callLimit is how long one answer of Redis may take.
const callLimit = 10 * time.Second

// connection is the configuration and the way to Redis.
type connection struct {
	config *config.Config
	rdb    *redis.Client
	store  *run.Store
	host   func() time.Time // this host's clock
	ahead  *time.Duration   // how much Redis's clock is ahead of it; nil: not asked yet
}

// connect reads the configuration. Redis is first spoken to when it is needed.
func (a *app) connect() (*connection, error) {
	c, err := config.Load(config.Path(a.configPath, a.getenv), a.getenv)
	if err != nil {
		return nil, err
	}
	rdb, err := task.Connect(c)
	if err != nil {
		return nil, err
	}
	rdb.Options().ContextTimeoutEnabled = true // a frozen Redis must not hold us longer than we want to wait
	return &connection{config: c, rdb: rdb, store: run.NewStore(rdb, nil, c.Queue.KeepRuns), host: a.now}, nil
}

func (c *connection) close() { _ = c.rdb.Close() }

// now is the time by Redis's clock, by which records are written; this host's while
// Redis has not told.
func (c *connection) now(ctx context.Context) time.Time {
	if c.ahead == nil {
		ctx, done := context.WithTimeout(ctx, time.Second)
		defer done()
		at, err := c.store.Time(ctx)
		if err != nil {
			return c.host()
		}
		d := at.Sub(c.host())
		c.ahead = &d
	}
	return c.host().Add(*c.ahead)
}

// find reads the named run, or without a name the open one, else the last.
func (c *connection) find(ctx context.Context, args []string) (run.Record, error) {
	ctx, done := context.WithTimeout(ctx, callLimit)
	defer done()
	if len(args) == 0 {
		r, err := c.store.Current(ctx, c.config.Instance)
		return r, c.explain(err)
	}
	r, err := c.store.Get(ctx, args[0])
	if err == nil && r.Instance != c.config.Instance {
		return r, exit.Withf(exit.NotFound, "run %s is one of instance %s, not of %s; use that instance's configuration", r.ID, r.Instance, c.config.Instance)
	}
	return r, c.explain(err)
}

// explain gives an error of the store its exit code and a remedy.
func (c *connection) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, run.ErrNotFound):
		return exit.Withf(exit.NotFound, "%w", err)
	case damaged(err):
		return err
	}
	return exit.Withf(exit.Unreachable, "cannot use %s: %w; %s", task.Where(c.config), err, c.remedy(err))
}

// damaged tells whether Redis was reached and what it said makes no sense to us.
// All other errors of the store are ones of the way to Redis.
func damaged(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var number *strconv.NumError
	var moment *time.ParseError
	if errors.As(err, &syntax) || errors.As(err, &kind) || errors.As(err, &number) || errors.As(err, &moment) {
		return true
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	text := reply.Error()
	return strings.HasPrefix(text, "ERR ") && !strings.HasPrefix(text, "ERR max number of clients") && !strings.HasPrefix(text, "ERR AUTH") ||
		strings.HasPrefix(text, "WRONGTYPE ")
}

func (c *connection) remedy(err error) string {
	var reply redis.Error
	if errors.As(err, &reply) {
		switch word, _, _ := strings.Cut(reply.Error(), " "); word {
		case "NOAUTH", "WRONGPASS", "NOPERM", "ERR":
			return "check redis.username and redis.password"
		}
		if place := redisowner.Place(c.ownerLock()); c.config.Redis.Embedded && place != "" {
			return place // it cannot write, or ends again and again
		}
		return "try again when it is ready"
	}
	if path := c.socket(); path != "" && errors.Is(err, fs.ErrPermission) {
		return fmt.Sprintf("use an account of the group %s, which may use the socket", c.group(path))
	}
	if c.config.Redis.Embedded {
		return redisowner.Remedy(c.ownerLock(), false)
	}
	return "check redis in " + c.config.Path + " and that the server runs"
}

// ownerLock is the lock file of the worker that owns the embedded Redis.
func (c *connection) ownerLock() string { return filepath.Join(c.config.RedisDir(), "lock") }

// socket is the unix socket of Redis, "" where it is reached by TCP.
func (c *connection) socket() string {
	if c.config.Redis.Embedded {
		return c.config.RedisSocket()
	}
	path, _ := strings.CutPrefix(c.config.Redis.Address, "unix:")
	if path == c.config.Redis.Address {
		return ""
	}
	return path
}

// group names the group that may use the socket: the configured one, else that
// of the innermost directory on the way that we may look at.
func (c *connection) group(path string) string {
	if c.config.Redis.Embedded && c.config.StateGroup != "" {
		return c.config.StateGroup
	}
	for ; ; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil && path != "/" {
			continue
		}
		if err != nil {
			return "of its directory"
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return "of " + path
		}
		gid := strconv.FormatUint(uint64(st.Gid), 10)
		if g, err := user.LookupGroupId(gid); err == nil {
			return g.Name
		}
		return gid
	}
}
