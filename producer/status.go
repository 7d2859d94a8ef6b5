package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"

	"github.com/spf13/cobra"
)

func (a *app) status(name string) *cobra.Command {
	return &cobra.Command{
		Use:   "status [RUN]",
		Short: "Show how a run stands",
		Long: `Show how a run stands: stage, attempt, bytes, rate, time left, node, last error and
all attempts. Without RUN the open run, else the last one. Exits 0 whatever the
run's state.`,
		Example: "  " + name + " status\n  " + name + " status 20261123t184702z-abcdefgh --json",
		Args:    exit.Args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			r, err := c.find(cmd.Context(), args)
			if err != nil {
				return err
			}
			if a.json {
				return exit.JSON(a.out, reportOf(r))
			}
			a.printStanding(r, c.now(cmd.Context()))
			return nil
		},
		ValidArgsFunction: a.completeRun,
	}
}

// report is what `status --json` prints. Others script against it.
type report struct {
	Run        string        `json:"run"`
	State      run.State     `json:"state"`
	Stage      *string       `json:"stage"` // the last one of a run that is over
	Attempt    int           `json:"attempt"`
	BytesDone  *int64        `json:"bytes_done"`
	BytesTotal *int64        `json:"bytes_total"`
	Node       *string       `json:"node"`
	Error      *string       `json:"error"`
	Attempts   []run.Attempt `json:"attempts"`
}

func reportOf(r run.Record) report {
	s := report{Run: r.ID, State: r.State, Stage: optional(r.Stage), Attempt: r.Attempt, BytesDone: r.BytesDone, BytesTotal: r.BytesTotal,
		Node: optional(r.Node), Error: optional(r.Error), Attempts: []run.Attempt{}}
	for _, a := range r.Attempts {
		a.Started = a.Started.UTC()
		if a.Ended != nil {
			t := a.Ended.UTC()
			a.Ended = &t
		}
		s.Attempts = append(s.Attempts, a)
	}
	return s
}

func (a *app) printStanding(r run.Record, now time.Time) {
	line := func(key, format string, args ...any) {
		fmt.Fprintf(a.out, "%-10s %s\n", key, exit.Printable(fmt.Sprintf(format, args...)))
	}
	line("run", "%s of instance %s, %s", r.ID, r.Instance, r.Type)
	if r.Requested != r.Type {
		line("", "promoted: %s was asked for", r.Requested)
	}
	line("state", "%s", standing.State(r))
	line("asked for", "%s (%s ago)", r.Created.UTC().Format(time.RFC3339), standing.Span(now.Sub(r.Created)))
	if r.Started != nil && r.Ended != nil {
		line("took", "%s", standing.Span(r.Ended.Sub(*r.Started)))
	}
	if r.Attempt > 0 {
		line("stage", "%s, attempt %d", r.Stage, r.Attempt)
	} else {
		line("stage", "%s, not begun", r.Stage)
	}
	if !r.State.Over() {
		if p := standing.Progress(r); p != "" {
			line("progress", "%s", p)
		}
		if r.NotBefore != nil && r.NotBefore.After(now) {
			line("retry", "in %s", standing.Span(r.NotBefore.Sub(now)))
		}
	}
	if r.Node != "" {
		line("node", "%s", r.Node)
	}
	if r.Set != "" {
		line("set", "%s", r.Set)
	}
	for _, n := range r.Notes {
		line("note", "%s", n)
	}
	for _, w := range r.Warnings {
		line("warning", "%s", w)
	}
	if r.Error != "" {
		line("error", "%s", r.Error)
	}
	for _, text := range r.Odd {
		line("damaged", "%s", text)
	}
	a.printAttempts(r.Attempts, now)
}

func (a *app) printAttempts(attempts []run.Attempt, now time.Time) {
	if len(attempts) == 0 {
		return
	}
	fmt.Fprintln(a.out)
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STAGE\tATTEMPT\tNODE\tSTARTED\tTOOK\tOUTCOME\tERROR")
	for _, t := range attempts {
		end, outcome, text := now, "running", ""
		if t.Ended != nil {
			end = *t.Ended
		}
		if t.Outcome != nil {
			outcome = string(*t.Outcome)
		}
		if t.Error != nil {
			text = *t.Error
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", exit.Printable(t.Stage), t.Attempt, exit.Printable(t.Node),
			t.Started.UTC().Format(time.RFC3339), standing.Span(end.Sub(t.Started)), outcome, exit.Printable(text))
	}
	_ = w.Flush()
}
