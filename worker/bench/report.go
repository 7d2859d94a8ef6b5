package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report collects what was measured, to print it as one table.
type report struct {
	head     string
	sections []section
	bars     []bar
}

type section struct {
	title string
	rows  []*contender
}

// bar is a promise and what was measured of it.
type bar struct {
	what, got string
	met       bool
}

func (r *report) begin(b *bench) {
	r.head = fmt.Sprintf("%s, %d cores, SIZE=%g GB, ROUNDS=%d, medians, one sync at the end of each", time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), b.size, b.rounds)
	say("%s", r.head)
}

// section adds contenders; ours is the first one.
func (r *report) section(title string, rows ...*contender) {
	r.sections = append(r.sections, section{title, rows})
}

func (r *report) bar(what string, met bool, got string, args ...any) {
	r.bars = append(r.bars, bar{what, fmt.Sprintf(got, args...), met})
}

func (r *report) show() error {
	fmt.Printf("\n%s\n", r.head)
	for _, s := range r.sections {
		fmt.Printf("\n%s\n", s.title)
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "seconds\tto ours\tCPU s\tMB out\tour peak MB\trounds\t\t")
		ours := s.rows[0].median(seconds)
		for _, c := range s.rows {
			var each []string
			for _, x := range c.samples {
				each = append(each, fmt.Sprintf("%.2f", x.seconds))
			}
			memory := "-"
			if m := c.peak(); m > 0 {
				memory = fmt.Sprintf("%.0f", float64(m)/1e6)
			}
			fmt.Fprintf(w, "%.2f\t%.2fx\t%.1f\t%.0f\t%s\t%s\t\t%s\n", c.median(seconds), c.median(seconds)/ours, c.median(cpu), c.median(size)/1e6, memory, strings.Join(each, " "), "  "+c.name)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if text := s.rows[0].stages(); text != "" {
			fmt.Printf("  our stages, seconds: %s\n", text)
		}
	}
	if len(r.bars) == 0 {
		return nil
	}
	fmt.Println("\nbars (set for SIZE=4)")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, b := range r.bars {
		verdict := "met"
		if !b.met {
			verdict = "NOT MET"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", verdict, b.what, b.got)
	}
	return w.Flush()
}

// stages gives the medians of the stages of our runs, the longest first.
func (c *contender) stages() string {
	names := map[string]bool{}
	for _, s := range c.samples {
		for name := range s.stages {
			names[name] = true
		}
	}
	took := func(name string) float64 {
		return c.median(func(s sample) float64 { return s.stages[name] })
	}
	sorted := slices.SortedFunc(maps.Keys(names), func(a, b string) int { return cmp.Or(cmp.Compare(took(b), took(a)), cmp.Compare(a, b)) })
	for i, name := range sorted {
		sorted[i] = fmt.Sprintf("%s %.2f", name, took(name))
	}
	return strings.Join(sorted, ", ")
}
