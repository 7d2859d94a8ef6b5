package main

import (
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"

	"github.com/spf13/cobra"
)

func (a *app) watch(name string) *cobra.Command {
	var reconnect time.Duration
	cmd := &cobra.Command{
		Use:   "watch [RUN]",
		Short: "Follow a run until it ends",
		Long: `Follow a run until it ends: live bars on a terminal, plain lines elsewhere. Without
RUN the open run, else the last one. Ends like backup-all --wait: exit 0 good, 3
failed, 4 cancelled, 10 good with warnings, 6 when Redis stays away.`,
		Example: "  " + name + " watch\n  " + name + " watch 20261123t184702z-abcdefgh --json",
		Args:    exit.Args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			var r run.Record
			err = a.patiently(cmd.Context(), reconnect, func() error {
				r, err = c.find(cmd.Context(), args)
				return err
			})
			if err != nil {
				return err
			}
			return a.waitFor(cmd.Context(), c, r, reconnect)
		},
		ValidArgsFunction: a.completeRun,
	}
	cmd.Flags().DurationVar(&reconnect, "reconnect", reconnectLimit, "how long to try when Redis is away")
	return cmd
}
