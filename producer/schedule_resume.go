package main

import (
	"context"
	"fmt"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/schedule"

	"github.com/spf13/cobra"
)

func (a *app) scheduleResume(name string) *cobra.Command {
	return &cobra.Command{
		Use:   "resume PLAN",
		Short: "Let a paused plan go on",
		Long: `Let a paused plan go on from now. The ticks of the pause are not made up for.
Resuming a plan that is not paused changes nothing and exits 0.`,
		Example:           "  " + name + " schedule resume nightly",
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completePlan,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withPlan(cmd, args[0], func(ctx context.Context, p schedule.Plan, s *schedule.Store) (pausing, error) {
				was, err := s.Resume(ctx, p.Name)
				if err == nil && was != nil {
					fmt.Fprintf(a.err, "note: it was paused by %s at %s\n", exit.Printable(was.By), was.At.UTC().Format(time.RFC3339))
				}
				return pausing{Plan: p.Name, Changed: was != nil}, err
			})
		},
	}
}
