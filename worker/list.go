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

// listed is one set as `list --json` prints it, as `producer list --json` does.
type listed struct {
	Set      string       `json:"set"`
	Type     set.Type     `json:"type"`
	Created  time.Time    `json:"created"`
	Size     *int64       `json:"size"`
	Archives []string     `json:"archives"`
	Parent   *string      `json:"parent"`
	Proof    *listedProof `json:"proof"`
}

type listedProof struct {
	Kind string    `json:"kind"`
	At   time.Time `json:"at"`
	Good bool      `json:"good"`
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
	lines := []listed{}
	for _, s := range l.Sets {
		x := listed{Set: s.Set, Type: s.Type, Created: s.Created.UTC(), Size: s.Size, Archives: s.Archives, Parent: s.Parent}
		if s.Proof != nil {
			x.Proof = &listedProof{s.Proof.Kind, s.Proof.At.UTC(), s.Proof.Good}
		}
		lines = append(lines, x)
	}
	for _, p := range l.Problems {
		fmt.Fprintf(os.Stderr, "worker: %s\n", printable(p))
	}
	return exit.JSON(os.Stdout, lines)
}

func printListing(out io.Writer, dir string, l set.Listing, now time.Time) {
	if len(l.Sets) == 0 {
		fmt.Fprintf(out, "no sets in %s\n", printable(dir))
	} else {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "SET\tTYPE\tSIZE\tCREATED\tAGE\tPARTS\tLAST PROOF")
		for _, s := range l.Sets {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Set, printable(string(s.Type)), size(*s.Size), s.Created.UTC().Format(time.RFC3339),
				max(0, now.Sub(s.Created)).Round(time.Second), strings.Join(s.Parts, ","), soundness(s))
		}
		w.Flush()
	}
	for _, f := range l.Foreign {
		fmt.Fprintf(out, "foreign: %s (no manifest of ours, never touched)\n", printable(f))
	}
	for _, p := range l.Problems {
		fmt.Fprintf(out, "problem: %s\n", printable(p))
	}
}

// soundness says what is known of a set's health.
func soundness(s set.Summary) string {
	switch {
	case len(s.Missing) > 0:
		return "ARCHIVES MISSING OR OF WRONG SIZE: " + printable(strings.Join(s.Missing, ", "))
	case s.Proof == nil:
		return "none"
	case !s.Proof.Good:
		return fmt.Sprintf("%s DAMAGED, %s", printable(s.Proof.Kind), s.Proof.At.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%s good, %s", printable(s.Proof.Kind), s.Proof.At.UTC().Format(time.RFC3339))
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
