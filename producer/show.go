package main

import (
	"fmt"
	"strings"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/spf13/cobra"
)

func (a *app) show(name string) *cobra.Command {
	return &cobra.Command{
		Use:   "show SET",
		Short: "Show one backup set",
		Long: `Show one backup set as the workers last published it: parts, archives, warnings and
the last proof. "worker verify SET" reads the set itself.`,
		Example: "  " + name + " show 202109232027_10-0-0-147420\n  " + name + " show 202109232027_10-0-0-147420 --json",
		Args:    exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			nodes, err := c.published(cmd.Context())
			if err != nil {
				return err
			}
			node, s, ok := standing.FindSet(nodes, args[0])
			if !ok {
				if problem := standing.ProblemOf(nodes, args[0]); problem != "" {
					return exit.Withf(exit.Damage, "show set %s: %s", args[0], problem)
				}
				return exit.Withf(exit.NotFound, "no set %q is published for instance %s; see `list` for those there are", args[0], c.config.Instance)
			}
			d := detailsOf(node, s)
			if a.json {
				return exit.JSON(a.out, d)
			}
			a.printDetails(d, c.now(cmd.Context()))
			return nil
		},
		ValidArgsFunction: a.completeSet,
	}
}

// details is what `show --json` prints: the line of `list` and more.
type details struct {
	set.Listed
	Instance  string       `json:"instance"`
	Node      string       `json:"node"`
	Dir       string       `json:"dir"`
	Published time.Time    `json:"published"`
	Parts     []string     `json:"parts"`
	Warnings  []string     `json:"warnings"`
	Missing   []string     `json:"missing"`
	Damage    []set.Damage `json:"damage"` // the first findings of the last proof
	// DamageTotal counts all findings of the last proof.
	DamageTotal int `json:"damage_total"`
	// DoubtedBy is the last proof that found damage, where a newer one found none.
	DoubtedBy    *set.Proof `json:"doubted_by,omitempty"`
	ProofProblem string     `json:"proof_problem,omitempty"`
}

func detailsOf(n run.Published, s set.Summary) details {
	d := details{Listed: s.Listed(), Instance: s.Instance, Node: n.Node, Dir: s.Dir, Published: n.At.UTC(),
		Parts: array(s.Parts), Warnings: array(s.Warnings), Missing: array(s.Missing), Damage: []set.Damage{}, DoubtedBy: s.DoubtedBy, ProofProblem: s.ProofProblem}
	if s.Proof != nil {
		d.Damage = append(d.Damage, s.Proof.Damage...)
		d.DamageTotal = s.Proof.Findings()
	}
	return d
}

func (a *app) printDetails(d details, now time.Time) {
	line := func(key, format string, args ...any) {
		fmt.Fprintf(a.out, "%-10s %s\n", key, exit.Printable(fmt.Sprintf(format, args...)))
	}
	line("set", "%s", d.Set)
	line("instance", "%s", d.Instance)
	line("type", "%s", d.Type)
	if d.Parent != nil {
		line("parent", "%s", *d.Parent)
	}
	line("created", "%s (%s ago)", d.Created.Format(time.RFC3339), standing.Span(now.Sub(d.Created)))
	if d.Size != nil {
		line("size", "%s (%d bytes)", exit.Size(*d.Size), *d.Size)
	}
	line("parts", "%s", strings.Join(d.Parts, ", "))
	for _, p := range d.Archives {
		line("archive", "%s", p)
	}
	for _, m := range d.Missing {
		line("MISSING", "%s is not there, or not of the size in the manifest", m)
	}
	switch {
	case d.Proof == nil:
		line("proof", "none yet; make one with `worker verify`")
	case d.Proof.Good:
		line("proof", "%s found it good at %s", d.Proof.Kind, d.Proof.At.Format(time.RFC3339))
	default:
		line("proof", "%s FOUND DAMAGE at %s", d.Proof.Kind, d.Proof.At.Format(time.RFC3339))
	}
	for _, x := range d.Damage {
		line("damage", "%s: %s", x.Entry, x.Problem)
	}
	if more := d.DamageTotal - len(d.Damage); more > 0 {
		line("damage", "and %d more: `worker verify %s` on node %s names them", more, d.Set, d.Node)
	}
	if p := d.DoubtedBy; p != nil {
		line("doubt", "%s", standing.Doubt(*p))
	}
	if d.ProofProblem != "" {
		line("PROBLEM", "%s", d.ProofProblem)
	}
	for _, w := range d.Warnings {
		line("warning", "%s", w)
	}
	line("published", "%s by node %s", d.Published.Format(time.RFC3339), d.Node)
}
