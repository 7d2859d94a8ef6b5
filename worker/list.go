package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/set"

	"github.com/spf13/cobra"
)

func listCommand(g *globals) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the sets in a directory",
		Long: `List the backup sets in a directory, oldest first, as their manifests tell. Archives
without a manifest of ours are named as foreign, manifests that cannot be read as
problems. Nothing is verified; "worker verify" does that.`,
		Example: "  worker list --dir /data2/backup\n  worker list --json",
		Args:    exit.Args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return listSets(g, dir, time.Now())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	addDir(cmd, &dir)
	return cmd
}

func listSets(g *globals, dir string, now time.Time) error {
	var err error
	if dir == "" {
		if dir, err = dumpDir(g); err != nil {
			return exit.Withf(exit.Usage, "list sets: say where by --dir DIR (there is no configuration to take the dump directory from: %w)", err)
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	l, err := set.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return exit.With(exit.NotFound, err)
	}
	if err != nil {
		return err
	}
	if !g.json {
		printListing(os.Stdout, dir, l, now)
		return nil
	}
	lines := []set.Listed{}
	for _, s := range l.Sets {
		lines = append(lines, s.Listed())
	}
	for _, p := range l.Problems {
		fmt.Fprintf(os.Stderr, "worker: %s\n", exit.Printable(p))
	}
	return exit.JSON(os.Stdout, lines)
}

func printListing(out io.Writer, dir string, l set.Listing, now time.Time) {
	if len(l.Sets) == 0 {
		fmt.Fprintf(out, "no sets in %s\n", exit.Printable(dir))
	} else {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "SET\tTYPE\tSIZE\tCREATED\tAGE\tPARTS\tLAST PROOF")
		for _, s := range l.Sets {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Set, exit.Printable(string(s.Type)), exit.Size(*s.Size), s.Created.UTC().Format(time.RFC3339),
				max(0, now.Sub(s.Created)).Round(time.Second), strings.Join(s.Parts, ","), soundness(s))
		}
		w.Flush()
	}
	for _, s := range l.Sets {
		if s.Proof != nil && !s.Proof.Good {
			fmt.Fprintf(out, "damage: %s: %s\n", s.Set, exit.Printable(s.Proof.First()))
		}
	}
	for _, f := range l.Foreign {
		fmt.Fprintf(out, "foreign: %s (no manifest of ours, never touched)\n", exit.Printable(f))
	}
	for _, p := range l.Problems {
		fmt.Fprintf(out, "problem: %s\n", exit.Printable(p))
	}
}

// soundness says what is known of a set's health.
func soundness(s set.Summary) string {
	switch {
	case len(s.Missing) > 0:
		return "FILES MISSING OR OF WRONG SIZE: " + exit.Printable(strings.Join(s.Missing, ", "))
	case s.Proof == nil:
		return "none"
	case !s.Proof.Good:
		return fmt.Sprintf("%s DAMAGED, %s", exit.Printable(s.Proof.Kind), s.Proof.At.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%s good, %s", exit.Printable(s.Proof.Kind), s.Proof.At.UTC().Format(time.RFC3339))
}

// completeSets offers the ids in --dir, and files.
func completeSets(g *globals, dir *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		in := *dir
		if in == "" {
			in, _ = dumpDir(g)
		}
		out := []cobra.Completion{}
		if in != "" {
			l, _ := set.List(in)
			for _, s := range l.Sets {
				out = append(out, cobra.CompletionWithDesc(s.Set, string(s.Type)))
			}
		}
		return out, cobra.ShellCompDirectiveDefault
	}
}
