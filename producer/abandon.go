package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) abandon(name string) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "abandon RUN",
		Short: "Close a run that does not end, whatever its worker does",
		Long: `Close a run that does not end, whatever its worker does: it fails at once, and the
instance's lock is free. Try "cancel" first, which stops a run in good order. Nothing is
removed here; what the run leaves is named, and a worker of its node removes it as soon
as nobody holds it. Tools of it that still run, and its replication slot, are ended by the
next run at the latest. An attempt that still lives may touch nothing more, and a set that
was committed stands. Asks on a terminal; elsewhere it wants --yes. Exits 1 when the run
has ended already.`,
		Example: "  " + name + " abandon 20261123t184702z-abcdefgh\n  " + name + " abandon 20261123t184702z-abcdefgh --yes --json",
		Args:    exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			r, err := c.abandonable(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !r.State.Over() {
				a.hintAtCancel(cmd.Context(), c, r)
				if err := a.confirm(c, r, yes); err != nil {
					return err
				}
			}
			return a.close(cmd.Context(), c, r)
		},
		ValidArgsFunction: a.completeRun,
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// abandoned is what `abandon --json` prints.
type abandoned struct {
	Run    string     `json:"run"`
	State  *run.State `json:"state"`  // null where the run has no record that can be read
	Answer string     `json:"answer"` // abandoned or over
	Node   *string    `json:"node"`
	Left   []string   `json:"left"` // patterns of paths on the node that may be there still
}

const answerAbandoned = "abandoned"

// abandonable finds the run. One that has the instance's lock is ours whatever its
// record says, and also without a record that can be read: then it has no state.
func (c *connection) abandonable(ctx context.Context, id string) (run.Record, error) {
	ctx, done := context.WithTimeout(ctx, callLimit)
	defer done()
	holder, err := c.store.Holder(ctx, c.config.Instance)
	if err != nil {
		return run.Record{}, c.explain(err)
	}
	if holder != id || !run.ValidID(id) {
		return c.find(ctx, []string{id})
	}
	r, err := c.store.Get(ctx, id)
	if err != nil && !errors.Is(err, run.ErrNotFound) {
		return r, c.explain(err)
	}
	r.ID, r.Instance = id, c.config.Instance
	return r, nil
}

// confirm asks the person at the terminal.
func (a *app) confirm(c *connection, r run.Record, yes bool) error {
	if yes {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return exit.Withf(exit.Usage, "abandon run %s: nobody can be asked without a terminal; say --yes if you mean it", r.ID)
	}
	fmt.Fprintf(a.err, "run %s will be closed as failed, and the lock of instance %s will be free.\n", r.ID, c.config.Instance)
	fmt.Fprint(a.err, "Type the run's id to abandon it: ")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if strings.TrimSpace(line) == r.ID {
		return nil
	}
	if err != nil {
		fmt.Fprintln(a.err)
	}
	return exit.Withf(exit.Other, "run %s is not abandoned: its id was not typed", r.ID)
}

// hintAtCancel says where a cancel would do: a worker that can obey it lives.
func (a *app) hintAtCancel(ctx context.Context, c *connection, r run.Record) {
	ctx, done := context.WithTimeout(ctx, callLimit)
	defer done()
	workers, err := c.store.Workers(ctx, c.config.Instance)
	if err != nil || r.State == "" {
		return
	}
	for _, w := range workers {
		if r.Node == "" || w.Node == r.Node {
			fmt.Fprintf(a.err, "note: a worker of node %s lives: `cancel %s` stops the run in good order and removes what it made; abandon only what that does not end\n", exit.Printable(w.Node), r.ID)
			return
		}
	}
}

// close closes the run and says what came of it.
func (a *app) close(ctx context.Context, c *connection, r run.Record) error {
	ctx, done := context.WithTimeout(ctx, callLimit)
	defer done()
	out := abandoned{Run: r.ID, Answer: answerAbandoned, Node: optional(r.Node), Left: c.left(ctx, r)}
	if r.State == "" {
		if err := c.store.ReleaseLock(ctx, c.config.Instance); err != nil {
			return c.explain(err)
		}
		return a.sayAbandoned(c, out)
	}
	next, err := c.store.Stop(ctx, r, 0, run.Failed, "abandoned by "+exit.OneLine(a.caller(), 200), true)
	if err != nil {
		return c.explain(err)
	}
	if r, err = c.store.Get(ctx, r.ID); err != nil {
		return c.explain(err)
	}
	out.State = &r.State
	if next.Kind == "closed" {
		return a.sayAbandoned(c, out)
	}
	out.Answer, out.Left = answerOver, []string{}
	if a.json {
		if err := exit.JSON(a.out, out); err != nil {
			return err
		}
	}
	return exit.Withf(exit.Other, "run %s has ended already: %s", r.ID, r.State)
}

// left are the patterns of what a run may leave on its node.
func (c *connection) left(ctx context.Context, r run.Record) []string {
	if r.Node == "" && r.State != "" {
		return []string{} // nobody had begun it
	}
	dump := c.config.Backup.DumpDir
	if nodes, err := c.store.Published(ctx, c.config.Instance); err == nil {
		for _, n := range nodes {
			if n.Node == r.Node && filepath.IsAbs(n.Dir) {
				dump = n.Dir
			}
		}
	}
	return []string{filepath.Join(c.config.Backup.TempDir, r.ID), filepath.Join(c.config.Backup.TempDir, "."+r.ID+".lock"),
		filepath.Join(dump, "pgbackrest", r.ID+".*"),
		filepath.Join(dump, ".*."+r.ID+".*.part"), filepath.Join(dump, "."+r.ID+".intent")}
}

func (a *app) sayAbandoned(c *connection, x abandoned) error {
	if a.json {
		return exit.JSON(a.out, x)
	}
	fmt.Fprintf(a.out, "run %s is abandoned, and the lock of instance %s is free\n", x.Run, c.config.Instance)
	if len(x.Left) == 0 {
		fmt.Fprintln(a.out, "nobody had begun it: it leaves nothing")
		return nil
	}
	node := "its node"
	if x.Node != nil {
		node = "node " + exit.Printable(*x.Node)
	}
	fmt.Fprintf(a.out, "What may be left of it on %s:\n", node)
	for _, p := range x.Left {
		fmt.Fprintf(a.out, "  %s\n", exit.Printable(p))
	}
	fmt.Fprintf(a.out, `A worker of %s removes that as soon as nobody holds it. An attempt that still lives may
touch nothing more, and no later run uses these paths. pgBackRest, if it still runs for it
there, and its replication slot are ended by the next run at the latest; what cannot be
ended is a warning of that run. A set that the run had committed stands: see %s.
`, node, "`list`")
	return nil
}
