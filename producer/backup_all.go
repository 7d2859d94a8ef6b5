package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/producer/start"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/spf13/cobra"
)

func (a *app) backupAll(name string) *cobra.Command {
	var full, incremental, wait bool
	var reconnect time.Duration
	cmd := &cobra.Command{
		Use:     "backup-all [--full|--incremental] [--wait] [--json]",
		Aliases: []string{"backup_all"},
		Short:   "Ask for a backup of everything",
		Long: `Ask for a backup of everything. The run id is printed at once; the workers do the
rest, so the shell may be closed. With --wait the command shows how it goes and
ends with the run: exit 0 good, 3 failed, 4 cancelled, 10 good with warnings.
Ctrl-C while waiting ends the waiting (exit 1), not the run.`,
		Example: "  " + name + " backup-all\n  " + name + " backup-all --full --wait\n  " + name + " backup-all --json --wait > result.json",
		Args:    exit.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if full && incremental {
				return exit.Withf(exit.Usage, "--full and --incremental exclude each other; give one, or none for a full backup")
			}
			requested := set.Full
			if incremental {
				requested = set.Incremental
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			patience := reconnect
			if !wait {
				patience = 0
			}
			var r run.Record
			err = a.patiently(cmd.Context(), patience, func() error {
				r, err = a.start(cmd.Context(), c, requested)
				return err
			})
			if err != nil {
				return err
			}
			if !wait {
				if a.json {
					return exit.JSON(a.out, resultOf(r))
				}
				return nil
			}
			return a.waitFor(cmd.Context(), c, r, reconnect)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&full, "full", false, "a full backup (the default)")
	cmd.Flags().BoolVar(&incremental, "incremental", false, "what changed since the last one; promoted to full until chains are built")
	cmd.Flags().BoolVar(&wait, "wait", false, "show the progress and end with the run")
	cmd.Flags().DurationVar(&reconnect, "reconnect", reconnectLimit, "with --wait: how long to try when Redis is away")
	return cmd
}

// start opens a run and hands its first stage to the workers. It says the run id
// as soon as there is a run.
func (a *app) start(ctx context.Context, c *connection, requested set.Type) (run.Record, error) {
	instance := c.config.Instance
	starter := start.New(c.rdb, c.store, a.now)
	r, err := starter.Open(ctx, start.Request{Instance: instance, Requested: requested})
	var busy *run.BusyError
	if errors.As(err, &busy) {
		b := busy.Run
		return r, exit.Withf(exit.Busy, "another run of instance %s is active: run %s, stage %s, asked for %s ago; follow it with `watch %s`, or stop it with `cancel %s`",
			instance, b.ID, b.Stage, standing.Span(b.Age(c.now(ctx))), b.ID, b.ID)
	}
	if err != nil {
		return r, c.uncertain(err, r.ID)
	}
	a.announce(r)
	a.handOver(ctx, c, starter, r)
	return r, nil
}

// uncertain explains a start that went wrong. Once something was sent, Redis may
// have opened the run though its answer did not arrive.
func (c *connection) uncertain(err error, id string) error {
	explained := c.explain(err)
	var dial *net.OpError
	if exit.Code(explained) != exit.Unreachable || errors.As(err, &dial) && dial.Op == "dial" {
		return explained
	}
	return exit.Withf(exit.Unreachable, "%w; whether the run began is not known, `status %s` tells later", explained, id)
}

// announce says the run id: on stdout for people, on stderr where stdout is for
// one JSON value.
func (a *app) announce(r run.Record) {
	if a.json {
		fmt.Fprintln(a.err, r.ID)
	} else {
		fmt.Fprintln(a.out, r.ID)
	}
	if r.Requested != r.Type {
		fmt.Fprintf(a.err, "note: promoted to %s: incremental backups are not built yet\n", r.Type)
	}
}

// handOver enqueues the first stage. What goes wrong here does not hurt the run:
// the workers' reconciler enqueues what is missing.
func (a *app) handOver(ctx context.Context, c *connection, starter start.Starter, r run.Record) {
	ctx, done := context.WithTimeout(ctx, callLimit)
	defer done()
	err := starter.HandOver(ctx, r)
	if err != nil {
		fmt.Fprintf(a.err, "note: %s; the run is recorded, a worker will take it up by itself\n", exit.Printable(err.Error()))
		return
	}
	workers, err := c.store.Workers(ctx, r.Instance)
	if err == nil && len(workers) == 0 {
		fmt.Fprintf(a.err, "note: no live worker serves instance %s: the run waits until one starts (`worker run`)\n", r.Instance)
	}
}

// result is what `backup-all --json` prints. Others script against it.
type result struct {
	Run      string    `json:"run"`
	Instance string    `json:"instance"`
	Type     string    `json:"type"`
	State    run.State `json:"state"`
}

func resultOf(r run.Record) result {
	return result{Run: r.ID, Instance: r.Instance, Type: r.Type, State: r.State}
}

// ending is what `backup-all --wait --json` and `watch --json` print.
type ending struct {
	result
	Set      *string  `json:"set"`
	Archives []string `json:"archives"`
	Manifest *string  `json:"manifest"`
	Warnings []string `json:"warnings"`
	Error    *string  `json:"error"`
}

// endingOf tells how r ended. Set, archives and manifest are there only if they
// were committed.
func endingOf(r run.Record) ending {
	e := ending{result: resultOf(r), Archives: []string{}, Warnings: array(r.Warnings), Error: optional(r.Error)}
	switch r.State {
	case run.Succeeded:
		e.Set, e.Archives, e.Manifest, e.Error = optional(r.Set), array(r.Archives), optional(r.Manifest), nil
	case run.Failed:
		if e.Error == nil {
			e.Error = optional("the run failed without saying why")
		}
	}
	return e
}
