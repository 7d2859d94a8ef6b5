package main

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/spf13/cobra"
)

func (a *app) list(name string) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the backup sets",
		Long: `List the backup sets as the workers last published them, oldest first, with the
time of that. Files of other origin in the dump directories are named too.
"worker list --dir DIR" reads a directory itself and needs no Redis.`,
		Example: "  " + name + " list\n  " + name + " list --json",
		Args:    exit.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			nodes, err := c.published(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				for _, n := range nodes { // as `worker list` has them
					for _, p := range n.Problems {
						fmt.Fprintf(a.err, "%s: node %s: %s\n", name, exit.Printable(n.Node), exit.Printable(p))
					}
				}
				return exit.JSON(a.out, linesOf(nodes))
			}
			a.printSets(c.config.Instance, nodes, c.now(cmd.Context()))
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
}

// published reads what the workers last said of their dump directories, by node.
func (c *connection) published(ctx context.Context) ([]run.Published, error) {
	ctx, done := context.WithTimeout(ctx, callLimit)
	defer done()
	nodes, err := c.store.Published(ctx, c.config.Instance)
	if err != nil {
		return nil, c.explain(err)
	}
	sort.Slice(nodes, func(i, j int) bool { return nodes[i].Node < nodes[j].Node })
	return nodes, nil
}

func linesOf(nodes []run.Published) []set.Listed {
	lines := []set.Listed{}
	for _, n := range nodes {
		for _, s := range n.Sets {
			lines = append(lines, s.Listed())
		}
	}
	sort.SliceStable(lines, func(i, j int) bool { return lines[i].Set < lines[j].Set })
	return lines
}

func (a *app) printSets(instance string, nodes []run.Published, now time.Time) {
	if len(nodes) == 0 {
		fmt.Fprintf(a.out, "no worker of instance %s has published its sets yet; start one with `worker run`\n", instance)
		return
	}
	for i, n := range nodes {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		fmt.Fprintf(a.out, "%s on node %s, as of %s (%s ago)\n", exit.Printable(n.Dir), exit.Printable(n.Node), n.At.UTC().Format(time.RFC3339), standing.Span(now.Sub(n.At)))
		if len(n.Sets) == 0 {
			fmt.Fprintln(a.out, "no sets")
		} else {
			a.printTable(n.Sets, now)
		}
		for _, f := range n.Foreign {
			fmt.Fprintf(a.out, "foreign: %s (not ours, never touched)\n", exit.Printable(f))
		}
		for _, p := range n.Problems {
			fmt.Fprintf(a.out, "problem: %s\n", exit.Printable(p))
		}
	}
}

func (a *app) printTable(sets []set.Summary, now time.Time) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SET\tTYPE\tSIZE\tAGE\tPARTS\tLAST PROOF")
	for _, s := range sets {
		bytes := "unknown"
		if s.Size != nil {
			bytes = exit.Size(*s.Size)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", exit.Printable(s.Set), exit.Printable(string(s.Type)), bytes,
			standing.Span(now.Sub(s.Created)), exit.Printable(strings.Join(s.Parts, ",")), soundness(s, now))
	}
	_ = w.Flush()
	for _, s := range sets {
		if s.Proof != nil && !s.Proof.Good {
			fmt.Fprintf(a.out, "damage: %s: %s\n", exit.Printable(s.Set), exit.Printable(s.Proof.First()))
		}
	}
}

// soundness says what is known of a set's health.
func soundness(s set.Summary, now time.Time) string {
	if len(s.Missing) > 0 {
		return "FILES MISSING OR OF WRONG SIZE: " + exit.Printable(strings.Join(s.Missing, ", "))
	}
	if s.Proof == nil {
		return "none"
	}
	verdict := "good"
	if !s.Proof.Good {
		verdict = "DAMAGED"
	}
	return fmt.Sprintf("%s %s, %s ago", exit.Printable(s.Proof.Kind), verdict, standing.Span(now.Sub(s.Proof.At)))
}
