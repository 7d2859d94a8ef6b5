package main

import (
	"context"
	"os/signal"
	"strings"
	"syscall"

	"catalog-backup/producer/dashboard"
	"catalog-backup/producer/start"
	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/health"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// weakSecret is the length below which a password or token is called weak.
const weakSecret = 12

func (a *app) dashboard(name string) *cobra.Command {
	return &cobra.Command{
		Use:   "dashboard",
		Short: "Serve the web page with runs, sets and queues",
		Long: `Serve the web page: instances, the running run, sets, plans, failures, and the queues
in asynqmon. It listens on dashboard.listen (127.0.0.1:8980) and wants a log-in:
dashboard.password or dashboard.token must be set, or dashboard.auth be off. It only
shows; with dashboard.allow_actions it can start a backup and cancel a run. It runs
until SIGTERM. With --json the log is JSON, a line an event, on stderr.`,
		Example: "  " + name + " dashboard\n  CATALOG_BACKUP_DASHBOARD_AUTH=off " + name + " dashboard",
		Args:    exit.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			if err := c.config.ForDashboard(); err != nil {
				return err
			}
			return a.serve(cmd.Context(), c)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
}

// serve runs the dashboard until SIGTERM or SIGINT.
func (a *app) serve(ctx context.Context, c *connection) error {
	exit.OutliveReader()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := a.logger(c.config)
	o, err := a.dashboardOptions(c, log)
	if err != nil {
		return err
	}
	h := health.New(health.Options{Program: "dashboard", Version: exit.Version, Redis: c.rdb, Where: task.Where(c.config), Mask: c.config.Mask})
	defer h.Shutdown()
	o.Health, o.Ready, o.Metrics = h, h, h
	s, err := dashboard.New(o)
	if err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return err
	}
	warnOfExposure(c.config, log)
	log.WithFields(logrus.Fields{"instance": c.config.Instance, "version": exit.Version, "url": strings.Join(s.URLs(), " ")}).Info("the dashboard is ready")
	select {
	case err = <-s.Failed():
	case <-ctx.Done():
	}
	stop() // a second signal ends at once
	log.Info("stopping")
	end, done := context.WithTimeout(context.Background(), callLimit)
	defer done()
	if down := s.Shutdown(end); err == nil {
		err = down
	}
	return err
}

func (a *app) dashboardOptions(c *connection, log *logrus.Logger) (dashboard.Options, error) {
	queues, err := task.Connector(c.config)
	if err != nil {
		return dashboard.Options{}, err
	}
	d := c.config.Dashboard
	return dashboard.Options{Path: c.config.Path, Listen: d.Listen, Hosts: d.Hosts, Open: d.Auth == "off", Username: d.Username, Password: d.Password, Token: d.Token,
		CertFile: d.CertFile, KeyFile: d.KeyFile, AllowActions: d.AllowActions, MaxAge: d.MaxAge, Instance: c.config.Instance, Version: exit.Version,
		Store: c.store, Starter: start.New(c.rdb, c.store, a.now), Queues: queues, Now: a.now, Log: log,
		Ping:    func(ctx context.Context) error { return c.rdb.Ping(ctx).Err() },
		Plans:   a.plans(c),
		Explain: func(err error) error { return masked{c.config, c.explain(err)} },
	}, nil
}

// plans tells how the plans of an instance stand. Those of another instance than the
// configured one stand in a configuration that we do not have.
func (a *app) plans(c *connection) func(context.Context, string) (dashboard.Plans, error) {
	return func(ctx context.Context, instance string) (dashboard.Plans, error) {
		store := schedule.NewStore(c.rdb, instance, a.now)
		live, err := store.Schedulers(ctx)
		if err != nil || instance != c.config.Instance {
			return dashboard.Plans{Schedulers: len(live)}, err
		}
		configured := c.config
		fresh, refused := config.Load(c.config.Path, a.getenv)
		if refused == nil && fresh.Instance == instance {
			configured = fresh // as the scheduler, which reads a changed file again
		}
		standings, err := store.Standings(ctx, schedule.Plans(configured), 1)
		if err != nil {
			return dashboard.Plans{}, err
		}
		out := dashboard.Plans{Known: true, Schedulers: len(live), Refused: refused != nil}
		for _, s := range standings {
			out.Plans = append(out.Plans, planOf(s))
		}
		return out, nil
	}
}

func planOf(s schedule.Standing) dashboard.Plan {
	p := dashboard.Plan{Name: s.Plan.Name, Cron: s.Plan.Cron, Timezone: s.Plan.Timezone, Job: s.Plan.Job}
	if s.Plan.Job == schedule.Backup {
		p.Job = s.Plan.Type + " " + p.Job
	}
	if s.Paused != nil {
		p.PausedBy, p.Paused = s.Paused.By, true
	}
	if len(s.Next) > 0 {
		p.Next = s.Next[0]
	}
	if t := s.Last; t != nil {
		p.LastTick, p.LastResult = t.At, string(t.Result)
		if t.Run != nil {
			p.LastRun = *t.Run
		}
		if t.Reason != nil {
			p.LastReason = *t.Reason
		}
	}
	return p
}

// masked is an error whose text shows no secret.
type masked struct {
	config *config.Config
	err    error
}

func (m masked) Error() string { return m.config.Mask(m.err.Error()) }

// warnOfExposure says loudly what an administrator may not have meant.
func warnOfExposure(c *config.Config, log *logrus.Logger) {
	d := c.Dashboard
	for _, address := range d.Listen {
		switch {
		case config.Loopback(address):
		case d.CertFile == "":
			log.WithField("listen", address).Warn("the dashboard listens beyond this machine WITHOUT TLS: passwords and pages cross the network readable; set dashboard.tls.cert_file and dashboard.tls.key_file, or listen on 127.0.0.1 behind a reverse proxy with TLS")
		}
	}
	for key, secret := range map[string]string{"dashboard.password": d.Password, "dashboard.token": d.Token} {
		if d.Auth == "on" && secret != "" && len(secret) < weakSecret {
			log.Warnf("%s has fewer than %d characters; choose a longer one", key, weakSecret)
		}
	}
}

// logger is that of the verbs that run as a service.
func (a *app) logger(c *config.Config) *logrus.Logger {
	l := c.Log
	if a.json {
		l.Format = "json"
	}
	return l.Logger(a.err)
}
