package main

import (
	"context"
	"errors"
	"os"
	"sync/atomic"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/health"
	"catalog-backup/shared/task"
	"catalog-backup/worker/pipeline"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
)

func healthCommand(g *globals) *cobra.Command {
	return health.Command("worker", os.Stdout, func() bool { return g.json }, func() ([]health.Place, error) {
		c, err := config.Load(config.Path(g.config, os.Getenv), os.Getenv)
		if err != nil {
			return nil, err
		}
		return []health.Place{{Process: "worker", Key: "worker.listen", Address: c.Listen.Worker}}, nil
	}, "worker")
}

// errStarting is what a worker says of its readiness until it has signed in.
var errStarting = errors.New("the worker is starting")

// vitals are what the worker tells of itself. It answers from the beginning on, also
// while it waits for Redis.
type vitals struct {
	*health.Health
	worker atomic.Pointer[pipeline.Worker]
}

// listenForHealth makes the vitals, and listens where the configuration says so.
func listenForHealth(c *config.Config, rdb *redis.Client) (*vitals, error) {
	v := &vitals{}
	whenStarted := func(ask func(*pipeline.Worker, context.Context) error, before error) func(context.Context) error {
		return func(ctx context.Context) error {
			if w := v.worker.Load(); w != nil {
				return ask(w, ctx)
			}
			return before
		}
	}
	v.Health = health.New(health.Options{Program: "worker", Version: exit.Version, Redis: rdb, Where: task.Where(c), Mask: c.Mask,
		Live: []health.Check{{Name: "main loop", Do: whenStarted((*pipeline.Worker).Alive, nil)}},
		Ready: []health.Check{
			{Name: "signed in", Do: whenStarted((*pipeline.Worker).SignedIn, errStarting)},
			{Name: "configuration", Do: func(context.Context) error { _, err := c.CatalogVersion(); return err }},
			health.Directory("dump directory", c.Backup.DumpDir, "alation.backup.data_dump_dir"),
			health.Directory("temp directory", c.Backup.TempDir, "alation.backup.data_temp_dir"),
		}})
	if c.Listen.Worker == "" {
		return v, nil
	}
	if err := v.Start(c.Listen.Worker, "worker.listen"); err != nil {
		v.Shutdown()
		return nil, exit.With(exit.Usage, err)
	}
	return v, nil
}
