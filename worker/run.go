package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"os/user"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/backup"
	"catalog-backup/worker/dump"
	"catalog-backup/worker/keeper"
	"catalog-backup/worker/pipeline"
	"catalog-backup/worker/proof"
	"catalog-backup/worker/redisserver"

	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

func runCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "The daemon: take runs out of the queue and make sets",
		Long: `The daemon. It takes the runs of its instance out of the queue, makes the sets,
cleans up after failures, and with redis: embedded keeps the Redis server too.
SIGTERM, SIGINT and SIGHUP hand a stage that is under way on to the next worker; it
counts as no failure. Under nohup SIGHUP is ignored.
With --json the log is JSON, a line an event, on stderr.`,
		Example: "  worker run --config /etc/catalog-backup/config.yaml",
		Args:    exit.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(config.Path(g.config, os.Getenv), os.Getenv)
			if err != nil {
				return err
			}
			if err := c.ForWorker(); err != nil {
				return err
			}
			if g.json {
				c.Log.Format = "json"
			}
			return daemon(cmd.Context(), c)
		},
	}
}

// daemon runs until a signal ends it.
func daemon(ctx context.Context, c *config.Config) error {
	exit.OutliveReader()
	ctx, stop := signal.NotifyContext(ctx, exit.Ends()...)
	defer stop()
	log := c.Log.Logger(os.Stderr)
	limitMemory()
	if err := prepareStateDir(c); err != nil {
		return err
	}
	rdb, err := task.Connect(c)
	if err != nil {
		return err
	}
	defer rdb.Close()
	v, err := listenForHealth(c, rdb)
	if err != nil {
		return err
	}
	defer v.Shutdown()
	if c.Redis.Embedded {
		end, err := startRedis(ctx, c, log)
		if err != nil && ctx.Err() != nil {
			return nil // stopped before it began
		}
		if err != nil {
			return err
		}
		defer end()
	}
	if err := checkRedis(ctx, c, rdb, log); err != nil {
		return err
	}
	if err := priority(c).Apply(); err != nil {
		return fmt.Errorf("apply archive.nice and archive.io_class: %w", err)
	}
	warnOfMounts(c, log)
	w := pipeline.New(params(c, rdb, log), rdb, whoami(c))
	if err := w.Start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // stopped before it began
		}
		return fmt.Errorf("start the worker: %w", err)
	}
	v.worker.Store(w)
	log.WithFields(logrus.Fields{"instance": c.Instance, "node": c.Node, "version": exit.Version}).Info("the worker is ready")
	select {
	case <-ctx.Done():
	case err = <-w.Refused():
		err = fmt.Errorf("stop the worker, a stage under way is handed on: %w", err)
	}
	stop() // a second SIGTERM or SIGINT ends at once
	log.Info("stopping: a stage under way is handed on")
	w.Shutdown()
	return err
}

// startRedis starts this worker's part in the embedded Redis; end ends it.
func startRedis(ctx context.Context, c *config.Config, log *logrus.Logger) (end func(), err error) {
	server := redisserver.New(redisserver.Options{Dir: c.RedisDir(), Socket: c.RedisSocket(), Group: c.StateGroup, Version: exit.Version,
		Logf: func(f string, a ...any) { log.Infof(f, a...) }, Errorf: func(f string, a ...any) { log.Errorf(f, a...) }})
	err = server.Start(ctx)
	if errors.Is(err, redisserver.ErrSilent) {
		return nil, exit.With(exit.Unreachable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start the embedded Redis: %w", err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			log.WithError(err).Warn("stopping the embedded Redis")
		}
	}, nil
}

func params(c *config.Config, rdb *redis.Client, log *logrus.Logger) pipeline.Params {
	dir := &dump.Directory{Dump: c.Backup.DumpDir, Temp: c.Backup.TempDir, Instance: c.Instance, Node: c.Node, EndLeftover: keeper.EndLeftover, Hashing: &dump.Hashing{}}
	store := run.NewStore(rdb, nil, c.Queue.KeepRuns)
	logf := func(f string, a ...any) { log.Infof(f, a...) }
	return pipeline.Params{
		Store: store, Dir: dir, Instance: c.Instance, Node: c.Node, Now: time.Now, Log: log, Mask: c.Mask,
		Limits: pipeline.Limits{Errors: c.Queue.RetryErrors, Interruptions: c.Queue.RetryInterruptions, Crashes: c.Queue.RetryCrashes,
			Backoff: c.Queue.Backoff, Timeout: c.Backup.Timeout, NodeLostAfter: c.Queue.NodeLostAfter, RedisGrace: c.Queue.RedisGrace,
			CloseAfter: c.Queue.CloseAfter, Poll: c.Queue.Poll},
		Stages: backup.Stages(backup.Options{Config: c, Dir: dir, Store: store, Now: time.Now, Logf: logf,
			Program: set.Tool{Name: "catalog-backup", Version: exit.Version}}),
		Others: map[string]pipeline.Handler{task.VerifyType: proof.New(proof.Params{Runs: store, Store: schedule.NewStore(rdb, c.Instance, time.Now),
			Dir: c.Backup.DumpDir, Instance: c.Instance, Node: c.Node, Crashes: c.Queue.RetryCrashes, Now: time.Now, Log: log, Mask: c.Mask})},
	}
}

// prepareStateDir makes the state directory, 0750, for its group.
func prepareStateDir(c *config.Config) error {
	bad := func(err error) error {
		return exit.Withf(exit.Usage, "prepare state_dir %s: %w; give it to the worker's user, or set state_dir to another", c.StateDir, err)
	}
	if err := os.MkdirAll(c.StateDir, 0o750); err != nil {
		return bad(err)
	}
	if err := os.Chmod(c.StateDir, 0o750); err != nil { // whatever the umask, and whoever made it
		return bad(err)
	}
	if c.StateGroup == "" {
		return nil
	}
	gid, err := groupID(c.StateGroup)
	if err != nil {
		return &config.Error{File: c.Path, Key: "state_group", Problem: err.Error(), Remedy: "name a group that exists"}
	}
	if err := os.Chown(c.StateDir, -1, gid); err != nil {
		return bad(err)
	}
	return nil
}

// checkRedis waits for Redis, then refuses one that would lose or evict the queue.
func checkRedis(ctx context.Context, c *config.Config, rdb *redis.Client, log *logrus.Logger) error {
	var err error
	for tries := 0; tries < 30; tries++ {
		if err = rdb.Ping(ctx).Err(); err == nil || ctx.Err() != nil {
			break
		}
		if strings.Contains(err.Error(), "WRONGPASS") || strings.Contains(err.Error(), "NOAUTH") || strings.Contains(err.Error(), "NOPERM") {
			return exit.Withf(exit.Usage, "log in at %s: %s; mend redis.username and redis.password", task.Where(c), c.Mask(err.Error()))
		}
		if tries == 0 {
			log.WithField("error", c.Mask(err.Error())).Warnf("%s does not answer; waiting for it", task.Where(c))
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	if err != nil {
		return exit.Withf(exit.Unreachable, "reach %s: %s; start it, or mend redis.address", task.Where(c), c.Mask(err.Error()))
	}
	warnings, err := redisserver.Check(ctx, rdb)
	if err != nil {
		return exit.Withf(exit.Usage, "use %s: %w", task.Where(c), err)
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	return nil
}

// limitMemory keeps the worker small beside the catalog: it handles streams, and
// what it holds at a time is bounded. GOGC and GOMEMLIMIT win, as always.
func limitMemory() {
	const soft = 96 << 20 // bytes of Go's own memory, from which on it is collected eagerly
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(soft)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// priority is for this process and, since they inherit it, the tools it starts. The
// embedded Redis runs already and keeps its own.
func priority(c *config.Config) archive.Priority {
	p := archive.Priority{Nice: c.Archive.Nice}
	switch c.Archive.IOClass {
	case "idle":
		p.IOClass = archive.IOIdle
	case "best-effort":
		p.IOClass, p.IOLevel = archive.IOBestEffort, 4
	}
	return p
}

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

func whoami(c *config.Config) run.Worker {
	host, _ := os.Hostname()
	b := make([]byte, 4)
	_, _ = rand.Read(b)
	return run.Worker{ID: fmt.Sprintf("%s-%d-%s", c.Node, os.Getpid(), hex.EncodeToString(b)), Node: c.Node, Host: host, PID: os.Getpid(),
		Version: exit.Version, Started: time.Now().UTC()}
}
