package main

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

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
				return exit.JSON(a.out, linesOf(nodes))
			}
			a.printSets(c.config.Instance, nodes)
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

// listed is one set as `list --json` prints it. Others script against it.
type listed struct {
	Set      string    `json:"set"`
	Type     set.Type  `json:"type"`
	Created  time.Time `json:"created"`
	Size     *int64    `json:"size"`
	Archives []string  `json:"archives"`
	Parent   *string   `json:"parent"`
	Proof    *proof    `json:"proof"`
}

type proof struct {
	Kind string    `json:"kind"`
	At   time.Time `json:"at"`
	Good bool      `json:"good"`
}

func listedOf(s set.Summary) listed {
	l := listed{Set: s.Set, Type: s.Type, Created: s.Created.UTC(), Size: s.Size, Archives: array(s.Archives), Parent: s.Parent}
	if s.Proof != nil {
		l.Proof = &proof{Kind: s.Proof.Kind, At: s.Proof.At.UTC(), Good: s.Proof.Good}
	}
	return l
}

func linesOf(nodes []run.Published) []listed {
	lines := []listed{}
	for _, n := range nodes {
		for _, s := range n.Sets {
			lines = append(lines, listedOf(s))
		}
	}
	sort.SliceStable(lines, func(i, j int) bool { return lines[i].Set < lines[j].Set })
	return lines
}

func (a *app) printSets(instance string, nodes []run.Published) {
	if len(nodes) == 0 {
		fmt.Fprintf(a.out, "no worker of instance %s has published its sets yet; start one with `worker run`\n", instance)
		return
	}
	for i, n := range nodes {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		fmt.Fprintf(a.out, "%s on node %s, as of %s (%s ago)\n", printable(n.Dir), printable(n.Node), n.At.UTC().Format(time.RFC3339), span(a.now().Sub(n.At)))
		if len(n.Sets) == 0 {
			fmt.Fprintln(a.out, "no sets")
		} else {
			a.printTable(n.Sets)
		}
		for _, f := range n.Foreign {
			fmt.Fprintf(a.out, "foreign: %s (not ours, never touched)\n", printable(f))
		}
		for _, p := range n.Problems {
			fmt.Fprintf(a.out, "problem: %s\n", printable(p))
		}
	}
}

func (a *app) printTable(sets []set.Summary) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SET\tTYPE\tSIZE\tAGE\tPARTS\tLAST PROOF")
	for _, s := range sets {
		bytes := "unknown"
		if s.Size != nil {
			bytes = size(*s.Size)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", printable(s.Set), printable(string(s.Type)), bytes,
			span(a.now().Sub(s.Created)), printable(strings.Join(s.Parts, ",")), a.soundness(s))
	}
	_ = w.Flush()
}

// soundness says what is known of a set's health.
func (a *app) soundness(s set.Summary) string {
	if len(s.Missing) > 0 {
		return "ARCHIVES MISSING OR OF WRONG SIZE: " + printable(strings.Join(s.Missing, ", "))
	}
	if s.Proof == nil {
		return "none"
	}
	verdict := "good"
	if !s.Proof.Good {
		verdict = "DAMAGED"
	}
	return fmt.Sprintf("%s %s, %s ago", printable(s.Proof.Kind), verdict, span(a.now().Sub(s.Proof.At)))
}
