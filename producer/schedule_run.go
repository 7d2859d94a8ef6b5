package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	service "catalog-backup/producer/schedule"
	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

func (a *app) scheduleRun(name string) *cobra.Command {
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "run",
		Short: "The service: carry out the plans",
		Long: `The service that carries out the plans. Any number of them may run for one instance:
each tick is done once. A tick that was missed is caught up within schedule.catch_up.
A changed configuration is noticed within seconds, or at once with SIGHUP; one that
cannot be used is refused in the log, and the old plans go on. SIGTERM ends the
service in good order. With --json the log is JSON, a line an event, on stderr.`,
		Example:           "  " + name + " schedule run --config /etc/catalog-backup/config.yaml",
		Args:              exit.Args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := config.Path(a.configPath, a.getenv)
			c, err := config.Load(path, a.getenv)
			if err != nil {
				return err
			}
			return a.serveSchedule(cmd.Context(), c, patience)
		},
	}
	cmd.Flags().DurationVar(&patience, "reconnect", reconnectLimit, "how long to wait for Redis at the start")
	return cmd
}

// serveSchedule runs the scheduler until SIGTERM or SIGINT.
func (a *app) serveSchedule(ctx context.Context, c *config.Config, patience time.Duration) error {
	exit.OutliveReader()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	log := a.logger(c)
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
	if err := awaitRedis(ctx, c, rdb, log, patience); err != nil {
		return err
	}
	s := service.New(service.Params{Config: c, Redis: rdb, Clock: service.System{}, Log: log, Who: whoSchedules(a.now()), FreshEpoch: func() string { return randomName(6) },
		Read:  func() ([]byte, error) { return os.ReadFile(c.Path) },
		Parse: func(text []byte) (*config.Config, error) { return config.Parse(c.Path, text, a.getenv) }})
	if err := s.Start(ctx); err != nil {
		return exit.Withf(exit.Unreachable, "start the scheduler: %s", c.Mask(err.Error()))
	}
	v.service.Store(s)
	log.WithFields(logrus.Fields{"instance": c.Instance, "version": exit.Version}).Info("the scheduler is ready")
	for {
		select {
		case <-hup:
			s.Reload()
			continue
		case <-ctx.Done():
		}
		stop() // a second signal ends at once
		log.Info("stopping")
		s.Shutdown()
		return nil
	}
}

// awaitRedis waits until Redis answers: after a reboot it may come up later.
func awaitRedis(ctx context.Context, c *config.Config, rdb *redis.Client, log *logrus.Logger, patience time.Duration) error {
	for began, said := time.Now(), false; ; said = true {
		err := rdb.Ping(ctx).Err()
		if err == nil {
			return nil
		}
		why := c.Mask(err.Error())
		switch {
		case ctx.Err() != nil:
			return exit.Withf(exit.Other, "interrupted while waiting for %s", task.Where(c))
		case strings.Contains(why, "WRONGPASS") || strings.Contains(why, "NOAUTH") || strings.Contains(why, "NOPERM"):
			return exit.Withf(exit.Unreachable, "log in at %s: %s; mend redis.username and redis.password", task.Where(c), why)
		case time.Since(began) >= patience:
			return exit.Withf(exit.Unreachable, "cannot use %s: %s; is it started? an embedded Redis comes with `worker run`", task.Where(c), why)
		case !said:
			log.WithField("error", why).Warnf("%s does not answer; waiting for it for %s", task.Where(c), patience)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

func randomName(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails, see crypto/rand
	return hex.EncodeToString(b)
}

func whoSchedules(now time.Time) schedule.Scheduler {
	host, _ := os.Hostname()
	return schedule.Scheduler{ID: fmt.Sprintf("%s-%d-%s", host, os.Getpid(), randomName(4)), Host: host, PID: os.Getpid(), Version: exit.Version, Started: now.UTC()}
}
