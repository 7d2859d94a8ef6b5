package main

import (
	"context"
	"errors"
	"sync/atomic"

	service "catalog-backup/producer/schedule"
	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/health"
	"catalog-backup/shared/task"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
)

// health asks the services that this program hosts.
func (a *app) health(name string) *cobra.Command {
	return health.Command(name, a.out, func() bool { return a.json }, func() ([]health.Place, error) {
		c, err := config.Load(config.Path(a.configPath, a.getenv), a.getenv)
		if err != nil {
			return nil, err
		}
		return []health.Place{{Process: "scheduler", Key: "schedule.listen", Address: c.Listen.Schedule},
			{Process: "dashboard", Key: "dashboard.listen", Address: c.Dashboard.Listen[0], Encrypted: c.Dashboard.CertFile != ""}}, nil
	}, "scheduler", "dashboard")
}

// errStarting is what a scheduler says of its readiness while it waits for Redis.
var errStarting = errors.New("the scheduler is starting")

// vitals are what the scheduler tells of itself, from the beginning on.
type vitals struct {
	*health.Health
	service atomic.Pointer[service.Service]
}

// listenForHealth makes the vitals, and listens where the configuration says so.
func listenForHealth(c *config.Config, rdb *redis.Client) (*vitals, error) {
	v := &vitals{}
	whenStarted := func(ask func(*service.Service, context.Context) error, before error) func(context.Context) error {
		return func(ctx context.Context) error {
			if s := v.service.Load(); s != nil {
				return ask(s, ctx)
			}
			return before
		}
	}
	v.Health = health.New(health.Options{Program: "scheduler", Version: exit.Version, Redis: rdb, Where: task.Where(c), Mask: c.Mask,
		Live:  []health.Check{{Name: "main loop", Do: whenStarted((*service.Service).Alive, nil)}},
		Ready: []health.Check{{Name: "plans", Do: whenStarted((*service.Service).UpToDate, errStarting)}}})
	if c.Listen.Schedule == "" {
		return v, nil
	}
	if err := v.Start(c.Listen.Schedule, "schedule.listen"); err != nil {
		v.Shutdown()
		return nil, exit.With(exit.Usage, err)
	}
	return v, nil
}
