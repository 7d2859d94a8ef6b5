package dashboard

import (
	"fmt"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
)

// runView is a run as the pages show it.
type runView struct {
	run.Record
	URL   string
	Words string // state, with what a person wants to know of it
	Where string // stage and attempt, without numbers that change all the time
	Age   string
	Took  string
	Retry string // time until the next attempt, or ""

	Amount, Speed, Left string // of the stage; "" where unknown
	HasPercent          bool
	Percent             int

	Stages   []stageView
	Timeline []bar
	Tries    []tryView
	Cancels  *form // nil: no button
	Promoted bool
}

// Reason is why the run failed.
func (v runView) Reason() string {
	if v.Error == "" {
		return "no reason was recorded"
	}
	return v.Error
}

// FailedAt is the stage of the last attempt that ended badly.
func (v runView) FailedAt() string {
	at := v.Stage
	for _, a := range v.Attempts {
		if a.Stage != run.Cleanup && a.Outcome != nil && *a.Outcome != run.Good {
			at = a.Stage
		}
	}
	return at
}

// Class is the state for the eye; the word stands beside it.
func (v runView) Class() string {
	switch v.State {
	case run.Succeeded:
		if len(v.Warnings) > 0 {
			return "attention"
		}
		return "good"
	case run.Failed:
		return "bad"
	case run.Running, run.Queued:
		return "running"
	}
	return "neutral"
}

// stageView is one stage in the row of stages.
type stageView struct {
	Name   string
	Phase  standing.Phase
	Detail string
}

// Class is the phase for the eye.
func (v stageView) Class() string {
	switch v.Phase {
	case standing.Done:
		return "good"
	case standing.Current:
		return "running"
	case standing.Ended:
		return "bad"
	}
	return "neutral"
}

// bar is an attempt in the timeline, in thousandths of the run's time.
type bar struct {
	Y, X, Width int
	Class       string
}

// tryView is an attempt in the table.
type tryView struct {
	run.Attempt
	Took, Word, Class, Text string
}

func runViewOf(r run.Record, now time.Time) runView {
	v := runView{Record: r, URL: "/runs/" + r.ID, Words: standing.State(r), Where: standing.Where(r, now), Age: ago(now, r.Created), Promoted: r.Requested != r.Type}
	end := now
	if r.Ended != nil {
		end = *r.Ended
	}
	if r.Started != nil {
		v.Took = standing.Span(end.Sub(*r.Started))
	}
	if r.NotBefore != nil && r.NotBefore.After(now) {
		v.Retry = standing.Span(r.NotBefore.Sub(now))
	}
	if r.BytesDone != nil && !r.State.Over() {
		v.Amount = exit.Size(*r.BytesDone)
		if r.BytesTotal != nil {
			v.Amount += " of " + exit.Size(*r.BytesTotal)
		}
		if r.Rate != nil {
			v.Speed = exit.Size(*r.Rate) + "/s"
		}
		if d, ok := standing.Left(r); ok {
			v.Left = standing.Span(d)
		}
		if f, ok := standing.Fraction(r); ok {
			v.HasPercent, v.Percent = true, int(100*f)
		}
	}
	for _, name := range standing.Stages(r) {
		v.Stages = append(v.Stages, stageViewOf(r, name, now))
	}
	for _, a := range r.Attempts {
		v.Tries = append(v.Tries, tryViewOf(a, now, r.State.Over()))
	}
	v.Timeline = timeline(r, now)
	return v
}

func stageViewOf(r run.Record, name string, now time.Time) stageView {
	phase, first, last := standing.Stage(r, name)
	v := stageView{Name: name, Phase: phase}
	switch phase {
	case standing.Done:
		v.Detail = "done in " + standing.Span(last.Ended.Sub(first.Started))
	case standing.Current:
		v.Detail = "waits"
		if r.Attempt > 0 {
			v.Detail = fmt.Sprintf("attempt %d", r.Attempt)
		}
	case standing.Ended:
		v.Detail = "ended"
		if last.Outcome != nil {
			v.Detail += ": " + string(*last.Outcome)
		}
	default:
		v.Detail = string(phase)
	}
	return v
}

func tryViewOf(a run.Attempt, now time.Time, over bool) tryView {
	v := tryView{Attempt: a, Word: "running", Class: "running"}
	end := now
	if a.Ended != nil {
		end = *a.Ended
	}
	v.Took = standing.Span(end.Sub(a.Started))
	switch {
	case a.Outcome != nil:
		v.Word, v.Class = string(*a.Outcome), "attention"
		switch *a.Outcome {
		case run.Good:
			v.Class = "good"
		case run.Erred, run.Crashed:
			v.Class = "bad"
		}
	case over:
		v.Word, v.Class, v.Took = "unknown", "neutral", ""
	}
	if a.Error != nil {
		v.Text = *a.Error
	}
	return v
}

// timeline lays the attempts out between the run's asking and its end, or now.
func timeline(r run.Record, now time.Time) []bar {
	end := now
	if r.Ended != nil {
		end = *r.Ended
	}
	whole := end.Sub(r.Created)
	if whole <= 0 || len(r.Attempts) == 0 {
		return nil
	}
	at := func(t time.Time) int { return int(1000 * min(1, max(0, float64(t.Sub(r.Created))/float64(whole)))) }
	var out []bar
	for i, a := range r.Attempts {
		to := end
		if a.Ended != nil {
			to = *a.Ended
		}
		x := min(at(a.Started), 995)
		out = append(out, bar{Y: i * 20, X: x, Width: max(5, at(to)-x), Class: tryViewOf(a, now, r.State.Over()).Class})
	}
	return out
}

// TimelineHeight is the height of the drawing.
func (v runView) TimelineHeight() int { return 20 * len(v.Timeline) }
