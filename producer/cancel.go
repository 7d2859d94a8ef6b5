package main

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"

	"github.com/spf13/cobra"
)

func (a *app) cancel(name string) *cobra.Command {
	var wait bool
	var reconnect time.Duration
	cmd := &cobra.Command{
		Use:   "cancel [RUN]",
		Short: "Stop a run",
		Long: `Stop a run; without RUN the open one, else the last. The worker stops within seconds and restores
the state before the run; with --wait the command ends after that. Exits 0 when the
cancel was asked for or the run is cancelled, and 1 when it comes too late: a set
that is committed stays, and the run ends well.`,
		Example: "  " + name + " cancel\n  " + name + " cancel 20261123t184702z-abcdefgh --wait",
		Args:    exit.Args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			r, err := c.find(cmd.Context(), args)
			if err != nil {
				return err
			}
			return a.ask(cmd.Context(), c, r, wait, reconnect)
		},
		ValidArgsFunction: a.completeRun,
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "end when the run has ended and its staging is gone")
	cmd.Flags().DurationVar(&reconnect, "reconnect", reconnectLimit, "with --wait: how long to try when Redis is away")
	return cmd
}

// Answers of `cancel --json`.
const (
	answerAsked     = "asked"
	answerCancelled = "cancelled"
	answerTooLate   = "too late"
	answerOver      = "over" // it had ended before, otherwise than by a cancel
)

// cancelled is what `cancel --json` prints.
type cancelled struct {
	Run    string    `json:"run"`
	State  run.State `json:"state"`
	Answer string    `json:"answer"`
}

// ask asks for the end of the run and says what came of it.
func (a *app) ask(ctx context.Context, c *connection, r run.Record, wait bool, reconnect time.Duration) error {
	call, done := context.WithTimeout(ctx, callLimit)
	defer done()
	reply, err := c.store.Cancel(call, r)
	if err != nil {
		return c.explain(err)
	}
	if r, err = c.find(call, []string{r.ID}); err != nil {
		return err
	}
	if wait && !r.State.Over() {
		ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if r, err = a.follow(ctx, c, r, reconnect, silent{a}); err != nil {
			return err
		}
	}
	return a.answer(r, answerOf(reply, r))
}

// answerOf puts what the cancel script replied and where the run stands now into
// one word.
func answerOf(reply string, r run.Record) string {
	switch {
	case r.State == run.Cancelled:
		return answerCancelled
	case reply == run.CancelLate, r.State == run.Succeeded:
		return answerTooLate
	case r.State.Over():
		return answerOver
	}
	return answerAsked
}

func (a *app) answer(r run.Record, answer string) error {
	if a.json {
		if err := exit.JSON(a.out, cancelled{Run: r.ID, State: r.State, Answer: answer}); err != nil {
			return err
		}
	}
	switch answer {
	case answerTooLate:
		return exit.Withf(exit.Other, "too late: run %s is committing its set, or has done so; the set stays", r.ID)
	case answerOver:
		return exit.Withf(exit.Other, "run %s has ended already: %s", r.ID, r.State)
	}
	if a.json {
		return nil
	}
	if answer == answerCancelled {
		fmt.Fprintf(a.out, "run %s is cancelled\n", r.ID)
	} else {
		fmt.Fprintf(a.out, "run %s: cancel asked for; follow its end with `watch %s`\n", r.ID, r.ID)
	}
	return nil
}
