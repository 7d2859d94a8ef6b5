package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"catalog-backup/shared/exit"
)

// completionLimit is how long a shell waits for us when somebody presses Tab.
const completionLimit = 2 * time.Second

// completeRun offers the ids of the latest runs.
func (a *app) completeRun(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *connection) []cobra.Completion {
		out := []cobra.Completion{}
		ids, _ := c.store.Recent(ctx, c.config.Instance, 10)
		for _, id := range ids {
			if r, err := c.store.Get(ctx, id); err == nil {
				out = append(out, cobra.CompletionWithDesc(id, string(r.State)))
			}
		}
		return out
	})
}

// completeNode offers the nodes that published their sets.
func (a *app) completeNode(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *connection) []cobra.Completion {
		out := []cobra.Completion{}
		nodes, _ := c.published(ctx)
		for _, n := range nodes {
			out = append(out, cobra.Completion(exit.Printable(n.Node)))
		}
		return out
	})
}

// completeSet offers the ids of the published sets.
func (a *app) completeSet(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *connection) []cobra.Completion {
		out := []cobra.Completion{}
		nodes, _ := c.published(ctx)
		for _, l := range linesOf(nodes) {
			out = append(out, cobra.CompletionWithDesc(exit.Printable(l.Set), string(l.Type)))
		}
		return out
	})
}

// complete asks Redis for the first argument. What goes wrong offers nothing:
// a shell that completes has no place for an error.
func (a *app) complete(cmd *cobra.Command, args []string, offer func(context.Context, *connection) []cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.close()
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, done := context.WithTimeout(ctx, completionLimit)
	defer done()
	return offer(ctx, c), cobra.ShellCompDirectiveNoFileComp
}
