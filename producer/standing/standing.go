// Package standing puts how a run stands into words and numbers for people: the
// command line and the dashboard say the same.
package standing

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
)

// Span writes a length of time in its two leading units.
func Span(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	s := int64(d / time.Second)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s%86400/3600)
}

// Fraction is how much of the stage is done, 0 to 1; false where that is unknown.
func Fraction(r run.Record) (float64, bool) {
	if r.BytesDone == nil || r.BytesTotal == nil || *r.BytesTotal <= 0 {
		return 0, false
	}
	return min(1, max(0, float64(*r.BytesDone)/float64(*r.BytesTotal))), true
}

// Left is how long the stage will still take at its rate; false where that is unknown.
func Left(r run.Record) (time.Duration, bool) {
	if _, ok := Fraction(r); !ok || r.Rate == nil || *r.Rate <= 0 {
		return 0, false
	}
	s := float64(max(0, *r.BytesTotal-*r.BytesDone)) / float64(*r.Rate)
	const most = 1000 * 24 * 3600
	return time.Duration(min(s, most) * float64(time.Second)), s < most
}

// Progress puts bytes, percent, rate and ETA of the stage into words; "" where nothing is known.
func Progress(r run.Record) string {
	if r.BytesDone == nil {
		return ""
	}
	words := exit.Size(*r.BytesDone)
	if r.BytesTotal != nil {
		words += " of " + exit.Size(*r.BytesTotal)
	}
	if f, ok := Fraction(r); ok {
		words += fmt.Sprintf(" (%.0f%%)", 100*f)
	}
	if r.Rate != nil {
		words += ", " + exit.Size(*r.Rate) + "/s"
	}
	if d, ok := Left(r); ok {
		words += ", ETA " + Span(d)
	}
	return words
}

// State adds to the state what a person wants to know of it.
func State(r run.Record) string {
	s := string(r.State)
	switch {
	case r.State.Over():
	case r.Ending != "":
		s += ", cleaning up; it will end as " + string(r.Ending)
	case r.Cancel:
		s += ", a cancel was asked for"
	}
	return s
}

// Stages are the stages of a good run, and those that this run went through besides.
func Stages(r run.Record) []string {
	stages := slices.Clone(run.Stages)
	add := func(s string) {
		if s != "" && !slices.Contains(stages, s) {
			stages = append(stages, s)
		}
	}
	for _, a := range r.Attempts {
		add(a.Stage)
	}
	add(r.Stage)
	return stages
}

// passed tells whether the run is beyond a stage that it never began.
func passed(r run.Record, stage string) bool {
	return slices.Index(run.Stages, stage) < slices.Index(run.Stages, r.Stage)
}

// idle tells whether the stage's last attempt is over, so that nobody works on it.
func idle(r run.Record) bool {
	_, _, last := Stage(r, r.Stage)
	return last != nil && last.Ended != nil && !r.State.Over()
}

// Where says which stage a run is at and what it does there, without numbers that
// change all the time.
func Where(r run.Record, now time.Time) string {
	switch {
	case r.State == run.Queued && r.Attempt == 0:
		return r.Stage + ": waits for a worker"
	case r.Attempt == 0 && r.NotBefore == nil:
		return r.Stage + ": waits to begin"
	case r.NotBefore != nil && r.NotBefore.After(now):
		return fmt.Sprintf("%s: attempt %d ended badly, tries again", r.Stage, r.Attempt)
	case idle(r):
		return fmt.Sprintf("%s: attempt %d is over, waits for a worker", r.Stage, r.Attempt)
	case r.Node != "":
		return fmt.Sprintf("%s: attempt %d on %s", r.Stage, r.Attempt, r.Node)
	}
	return fmt.Sprintf("%s: attempt %d", r.Stage, r.Attempt)
}

// Line says in one line where a run is.
func Line(r run.Record, now time.Time) string {
	s := Where(r, now)
	if r.NotBefore != nil && r.NotBefore.After(now) {
		s += " in " + Span(r.NotBefore.Sub(now))
	} else if p := Progress(r); p != "" && r.Attempt > 0 {
		s += ", " + p
	}
	if extra := State(r)[len(r.State):]; extra != "" {
		s += extra
	}
	if r.Error != "" {
		s += "; last error: " + r.Error
	}
	return s
}

// Phase is where a stage of a run stands.
type Phase string

const (
	Done    Phase = "done"
	Current Phase = "current"
	Ended   Phase = "ended" // badly, and the run is not at it any more
	LeftOut Phase = "left out"
	Waiting Phase = "waiting"
)

// Stage tells where a stage of the run stands, and its first and last attempt, nil
// where there was none.
func Stage(r run.Record, stage string) (phase Phase, first, last *run.Attempt) {
	for i := range r.Attempts {
		if a := &r.Attempts[i]; a.Stage == stage {
			if first == nil {
				first = a
			}
			last = a
		}
	}
	switch {
	case last != nil && last.Ended != nil && last.Outcome != nil && *last.Outcome == run.Good:
		return Done, first, last
	case r.Stage == stage && !r.State.Over():
		return Current, first, last
	case last != nil:
		return Ended, first, last
	case r.State.Over() || r.Ending != "" || passed(r, stage):
		return LeftOut, nil, nil
	}
	return Waiting, nil, nil
}

// FindSet looks a set up. Where several nodes published it, the one that knows it best
// comes first: all archives there, then the later word.
func FindSet(nodes []run.Published, id string) (run.Published, set.Summary, bool) {
	var node run.Published
	var found set.Summary
	ok := false
	for _, n := range nodes {
		for _, s := range n.Sets {
			if s.Set != id {
				continue
			}
			better := len(s.Missing) < len(found.Missing) || len(s.Missing) == len(found.Missing) && n.At.After(node.At)
			if !ok || better {
				node, found, ok = n, s, true
			}
		}
	}
	return node, found, ok
}

// ProblemOf is what a node said of a set whose manifest it cannot read; "" if none did.
func ProblemOf(nodes []run.Published, id string) string {
	if _, err := set.ParseID(id); err != nil {
		return ""
	}
	for _, n := range nodes {
		for _, p := range n.Problems {
			if strings.Contains(p, set.ID(id).ManifestName()) {
				return fmt.Sprintf("node %s: %s", n.Node, p)
			}
		}
	}
	return ""
}

// Doubt says of a set that a newer proof found good what an earlier one found.
func Doubt(p set.Proof) string {
	return fmt.Sprintf("%s found damage at %s (%s), which a newer proof did not: make sure of the disk and the memory of that host",
		p.Kind, p.At.UTC().Format(time.RFC3339), p.First())
}
