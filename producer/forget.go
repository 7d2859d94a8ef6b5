package main

import (
	"context"
	"errors"
	"fmt"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"

	"github.com/spf13/cobra"
)

func (a *app) forget(name string) *cobra.Command {
	return &cobra.Command{
		Use:   "forget NODE",
		Short: "Forget what a node that is gone published",
		Long: `Forget what a node that is gone published: its sets are no longer listed, here, on the
dashboard and in the metrics. Its files are not touched, and when a worker of the node
starts again it publishes them anew. Refused while a worker of the node lives, or a run
is open there. What a node published is dropped by itself once it has given no sign for
7 days while another node did.`,
		Example: "  " + name + " forget host2\n  " + name + " forget host2 --json",
		Args:    exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			node := args[0]
			if !config.ValidName(node) {
				return exit.Withf(exit.Usage, "%q is no name of a node", node)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			ctx, done := context.WithTimeout(cmd.Context(), callLimit)
			defer done()
			known, err := c.store.Forget(ctx, c.config.Instance, node)
			var used *run.InUseError
			switch {
			case errors.As(err, &used):
				return exit.Withf(exit.Other, "node %s is not forgotten: %s", node, exit.Printable(used.By))
			case err != nil:
				return c.explain(err)
			case !known:
				return exit.Withf(exit.NotFound, "nothing is known of a node %s of instance %s; see `list` for those there are", node, c.config.Instance)
			}
			if a.json {
				return exit.JSON(a.out, forgotten{Node: node, Forgotten: true})
			}
			fmt.Fprintf(a.out, "node %s is forgotten; its files are not touched\n", node)
			return nil
		},
		ValidArgsFunction: a.completeNode,
	}
}

// forgotten is what `forget --json` prints.
type forgotten struct {
	Node      string `json:"node"`
	Forgotten bool   `json:"forgotten"`
}
