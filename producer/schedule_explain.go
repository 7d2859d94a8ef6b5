package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"catalog-backup/shared/cron"
	"catalog-backup/shared/exit"

	"github.com/spf13/cobra"
)

func (a *app) scheduleExplain(name string) *cobra.Command {
	var timezone string
	cmd := &cobra.Command{
		Use:   "explain CRON",
		Short: "Say what a crontab expression means and when its next ten times are",
		Long: `Say what a crontab expression means, field by field, when its next ten times are, and
what the clocks of the zone do to its times within the next two years. Neither a
configuration nor Redis is needed. An expression or zone that cannot be used is
refused with exit code 2.`,
		Example: "  " + name + " schedule explain \"30 2 * * 1-5\" --timezone Europe/Berlin\n  " + name + " schedule explain @weekly --json",
		Args:    exit.Args(cobra.RangeArgs(1, 5)),
		RunE: func(_ *cobra.Command, args []string) error {
			e, err := cron.Parse(strings.Join(args, " "))
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			zone, err := cron.Zone(timezone)
			if err != nil {
				return exit.Withf(exit.Usage, "--timezone: %w", err)
			}
			x := explain(e, zone, a.now())
			if a.json {
				return exit.JSON(a.out, x)
			}
			a.printExplanation(x, zone)
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&timezone, "timezone", "UTC", "the zone whose clocks count, e.g. Europe/Berlin")
	return cmd
}

// explanation is what `schedule explain --json` prints.
type explanation struct {
	Cron     string       `json:"cron"`
	Timezone string       `json:"timezone"`
	Fields   []cron.Field `json:"fields"`
	Either   bool         `json:"either"` // a day that matches day of month or day of week is enough
	Next     []moment     `json:"next"`
	Shifts   []moment     `json:"shifts"` // times that the clocks skip or show twice
}

// moment is one tick. Shift is "skipped", "twice" or null.
type moment struct {
	Tick  time.Time `json:"tick"`
	Wall  string    `json:"wall"`
	Shift *string   `json:"shift"`
}

const (
	explained = 10
	// foresight is how far ahead shifts are looked for: two changes of each kind.
	foresight = 2 * 366 * 24 * time.Hour
	// mostShifts and mostLooked bound the search: a plan for every minute has many.
	mostShifts = 4
	mostLooked = 200_000
)

func explain(e cron.Expression, zone *time.Location, now time.Time) explanation {
	x := explanation{Cron: e.String(), Timezone: zone.String(), Fields: e.Fields(), Either: e.Either(), Next: []moment{}, Shifts: []moment{}}
	at := now
	for i := range mostLooked {
		t, ok := e.Next(at, zone)
		if !ok || i >= explained && (t.At.Sub(now) > foresight || len(x.Shifts) >= mostShifts) {
			break
		}
		m := moment{Tick: t.At.UTC(), Wall: t.Wall, Shift: optional(t.Shift)}
		if i < explained {
			x.Next = append(x.Next, m)
		}
		if t.Shift != "" && len(x.Shifts) < mostShifts {
			x.Shifts = append(x.Shifts, m)
		}
		at = t.At
	}
	return x
}

func (a *app) printExplanation(x explanation, zone *time.Location) {
	fmt.Fprintf(a.out, "%s in %s\n\n", x.Cron, x.Timezone)
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, f := range x.Fields {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", f.Name, f.Value, f.Means)
	}
	_ = w.Flush()
	if x.Either {
		fmt.Fprintln(a.out, "  day of month and day of week are both given: a day that matches one of them is enough")
	}
	fmt.Fprintln(a.out, "\nnext times")
	for _, m := range x.Next {
		fmt.Fprintf(a.out, "  %s  %s\n", m.Tick.In(zone).Format("Mon 2006-01-02 15:04 MST"), m.Tick.Format(time.RFC3339))
	}
	if len(x.Shifts) == 0 {
		fmt.Fprintln(a.out, "\nno change of the clocks touches its times within two years")
		return
	}
	fmt.Fprintln(a.out, "\nwhere the clocks change")
	for _, m := range x.Shifts {
		at := m.Tick.In(zone).Format("Mon 2006-01-02 15:04 MST")
		if *m.Shift == cron.Skipped {
			fmt.Fprintf(a.out, "  %s is skipped by the clocks: it happens right after, at %s\n", m.Wall, at)
		} else {
			fmt.Fprintf(a.out, "  %s is shown twice by the clocks: it happens the first time, at %s\n", m.Wall, at)
		}
	}
}
