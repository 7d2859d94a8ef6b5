package main

import (
	"context"
	"fmt"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/schedule"

	"github.com/spf13/cobra"
)

func (a *app) schedulePause(name string) *cobra.Command {
	return &cobra.Command{
		Use:   "pause PLAN",
		Short: "Stop a plan until it is resumed",
		Long: `Stop a plan until it is resumed. Its ticks are recorded as paused and not made up for
later; a run that is active goes on. Who paused the plan, and when, is recorded.
Pausing a plan that is paused already changes nothing and exits 0.`,
		Example:           "  " + name + " schedule pause nightly",
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completePlan,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withPlan(cmd, args[0], func(ctx context.Context, p schedule.Plan, s *schedule.Store) (pausing, error) {
				was, err := s.Paused(ctx)
				if err != nil {
					return pausing{}, err
				}
				_, already := was[p.Name]
				by, err := s.Pause(ctx, p.Name, a.caller())
				return pausing{Plan: p.Name, Paused: &by, Changed: !already}, err
			})
		},
	}
}

// pausing is what `schedule pause --json` and `schedule resume --json` print.
type pausing struct {
	Plan    string          `json:"plan"`
	Paused  *schedule.Pause `json:"paused"`
	Changed bool            `json:"changed"`
}

// withPlan does something to a plan and says how it stands then.
func (a *app) withPlan(cmd *cobra.Command, name string, do func(context.Context, schedule.Plan, *schedule.Store) (pausing, error)) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.close()
	p, err := plan(c.config, name)
	if err != nil {
		return err
	}
	ctx, done := context.WithTimeout(cmd.Context(), callLimit)
	defer done()
	result, err := do(ctx, p, schedule.NewStore(c.rdb, c.config.Instance, a.now))
	if err != nil {
		return c.explain(err)
	}
	if a.json {
		return exit.JSON(a.out, result)
	}
	switch {
	case result.Paused != nil && result.Changed:
		fmt.Fprintf(a.out, "plan %s is paused; `schedule resume %s` lets it go on\n", p.Name, p.Name)
	case result.Paused != nil:
		fmt.Fprintf(a.out, "plan %s was paused already, by %s at %s\n", p.Name, exit.Printable(result.Paused.By), result.Paused.At.UTC().Format(time.RFC3339))
	case result.Changed:
		fmt.Fprintf(a.out, "plan %s goes on; next at %s\n", p.Name, p.Next(a.now()).Format(time.RFC3339))
	default:
		fmt.Fprintf(a.out, "plan %s was not paused\n", p.Name)
	}
	return nil
}
