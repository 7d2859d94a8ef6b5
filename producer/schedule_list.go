package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"

	"github.com/spf13/cobra"
)

func (a *app) scheduleList(name string) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the plans, what became of their last tick, and the next ones",
		Long: `Show the plans of the configuration: zone, expression, whether the plan is paused, what
became of its last tick, and its next five times. A note on stderr says that no live
scheduler serves the instance.`,
		Example:           "  " + name + " schedule list\n  " + name + " schedule list --json",
		Args:              exit.Args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.close()
			ctx, done := context.WithTimeout(cmd.Context(), callLimit)
			defer done()
			s := schedule.NewStore(c.rdb, c.config.Instance, a.now)
			plans, err := s.Standings(ctx, schedule.Plans(c.config), 5)
			if err != nil {
				return c.explain(err)
			}
			live, err := s.Schedulers(ctx)
			if err != nil {
				return c.explain(err)
			}
			runs, err := openedRuns(ctx, c.store, plans)
			if err != nil {
				return c.explain(err)
			}
			if len(live) == 0 {
				fmt.Fprintf(a.err, "note: no live scheduler serves instance %s: nothing happens by itself until one starts (`producer schedule run`)\n", c.config.Instance)
			}
			if a.json {
				return exit.JSON(a.out, planLines(plans, runs, len(live)))
			}
			a.printPlans(c.config.Path, plans, runs)
			return nil
		},
	}
}

// openedRuns reads the runs that the plans' last ticks opened, by their ids. One
// whose record is no longer kept is not among them.
func openedRuns(ctx context.Context, store *run.Store, plans []schedule.Standing) (map[string]run.Record, error) {
	out := map[string]run.Record{}
	for _, s := range plans {
		if s.Last == nil || s.Last.Result != schedule.Opened || s.Last.Run == nil {
			continue
		}
		r, err := store.Get(ctx, *s.Last.Run)
		if err != nil && !errors.Is(err, run.ErrNotFound) {
			return nil, err
		}
		if err == nil {
			out[r.ID] = r
		}
	}
	return out, nil
}

// planLine is one plan in `schedule list --json`. Others script against it.
type planLine struct {
	Plan       string          `json:"plan"`
	Cron       string          `json:"cron"`
	Timezone   string          `json:"timezone"`
	Job        string          `json:"job"`
	Type       *string         `json:"type"`
	Overlap    string          `json:"overlap"`
	CatchUp    int64           `json:"catch_up"` // s
	Paused     *schedule.Pause `json:"paused"`
	Last       *schedule.Tick  `json:"last"`
	RunState   *run.State      `json:"run_state"` // of the run that the last tick opened
	Next       []time.Time     `json:"next"`
	Schedulers int             `json:"schedulers"` // live ones of the instance
}

func planLines(plans []schedule.Standing, runs map[string]run.Record, live int) []planLine {
	out := []planLine{}
	for _, s := range plans {
		p := s.Plan
		l := planLine{Plan: p.Name, Cron: p.Cron, Timezone: p.Timezone, Job: p.Job, Overlap: p.Overlap, CatchUp: int64(p.CatchUp / time.Second),
			Paused: s.Paused, Last: s.Last, Next: []time.Time{}, Schedulers: live}
		if p.Job == schedule.Backup {
			l.Type = &p.Type
		}
		if r, ok := openedBy(s, runs); ok {
			l.RunState = &r.State
		}
		for _, t := range s.Next {
			l.Next = append(l.Next, t.UTC())
		}
		out = append(out, l)
	}
	return out
}

func openedBy(s schedule.Standing, runs map[string]run.Record) (run.Record, bool) {
	if s.Last == nil || s.Last.Run == nil {
		return run.Record{}, false
	}
	r, ok := runs[*s.Last.Run]
	return r, ok
}

func (a *app) printPlans(path string, plans []schedule.Standing, runs map[string]run.Record) {
	if len(plans) == 0 {
		fmt.Fprintf(a.out, "no plans: write some below schedules in %s, e.g. {name: nightly, cron: \"30 2 * * *\"}\n", path)
		return
	}
	line := func(key, format string, args ...any) {
		fmt.Fprintf(a.out, "  %-8s %s\n", key, exit.Printable(fmt.Sprintf(format, args...)))
	}
	now := a.now()
	for i, s := range plans {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		p := s.Plan
		fmt.Fprintln(a.out, p.Name)
		line("when", "%s, %s", p.Cron, p.Timezone)
		job := p.Job
		if p.Job == schedule.Backup {
			job += ", " + p.Type
		}
		line("job", "%s; catch-up %s, overlap %s", job, standing.Span(p.CatchUp), p.Overlap)
		if s.Paused != nil {
			line("PAUSED", "by %s at %s", s.Paused.By, s.Paused.At.UTC().Format(time.RFC3339))
		}
		if s.Last == nil {
			line("last", "none yet")
		} else {
			line("last", "%s (%s ago): %s", s.Last.At.UTC().Format(time.RFC3339), standing.Span(now.Sub(s.Last.At)), resultWords(*s.Last))
		}
		if r, ok := openedBy(s, runs); ok {
			words := string(r.State)
			if r.Error != "" && r.State != run.Succeeded {
				words += ": " + r.Error
			}
			line("run", "%s", words)
		}
		for i, t := range s.Next {
			key := ""
			if i == 0 {
				key = "next"
			}
			line(key, "%s (%s, in %s)", t.Format("Mon 2006-01-02 15:04 MST"), t.UTC().Format(time.RFC3339), standing.Span(t.Sub(now)))
		}
	}
}

// resultWords says what became of a tick.
func resultWords(t schedule.Tick) string {
	words := []string{string(t.Result)}
	if t.Result == schedule.Opened && t.Run != nil {
		words = append(words, "run "+*t.Run)
	}
	if t.Set != nil {
		words = append(words, "set "+*t.Set)
	}
	s := strings.Join(words, ", ")
	if t.Reason != nil {
		s += ": " + *t.Reason
	}
	return s
}
