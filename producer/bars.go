package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
)

// memory keeps what the record forgets when a stage is over: its bytes.
type memory struct {
	bytes map[string]int64
}

func newMemory() memory { return memory{bytes: map[string]int64{}} }

// bars draws one line for each stage and redraws them in place. A frame is
// written in one call and overwrites the one before, so that nothing flickers.
type bars struct {
	out    io.Writer
	width  func() int
	colour bool
	memory

	drawn int    // lines of the last frame
	note  string // what is to be said about the waiting
	last  run.Record
}

// Escape sequences of ECMA-48, which every terminal of today knows.
const (
	escClearLine = "\x1b[K"
	escClearDown = "\x1b[J"
	escReset     = "\x1b[0m"
	escGreen     = "\x1b[32m"
	escRed       = "\x1b[31m"
	escYellow    = "\x1b[33m"
)

func (b *bars) update(r run.Record, now time.Time) {
	b.last = r
	if r.BytesDone != nil {
		b.bytes[r.Stage] = *r.BytesDone
	}
	b.draw(now)
}

func (b *bars) away(why string, now time.Time) {
	b.note = why
	b.draw(now)
}

func (b *bars) back(now time.Time) {
	b.note = ""
	b.draw(now)
}

func (b *bars) end(r run.Record, now time.Time) {
	b.last, b.note = r, ""
	b.draw(now)
}

func (b *bars) draw(now time.Time) {
	width := b.width()
	rows := b.rows(b.last, now, width)
	if b.note != "" {
		rows = append(rows, row{text: b.note, colour: escYellow})
	}
	var f strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&f, "\x1b[%dA\r", b.drawn)
	}
	for _, r := range rows {
		text := fit(r.text, width-1) // a full last column would wrap on some terminals
		if b.colour && r.colour != "" {
			text = r.colour + text + escReset
		}
		f.WriteString(text + escClearLine + "\n")
	}
	f.WriteString(escClearDown)
	b.drawn = len(rows)
	_, _ = io.WriteString(b.out, f.String()) // a terminal that went away ends us by itself
}

type row struct{ text, colour string }

// rows are the lines of one frame.
func (b *bars) rows(r run.Record, now time.Time, width int) []row {
	took := now.Sub(r.Created)
	if r.Ended != nil {
		took = r.Ended.Sub(r.Created)
	}
	out := []row{{text: fmt.Sprintf("run %s of %s, %s: %s, %s", r.ID, r.Instance, r.Type, standing.State(r), standing.Span(took))}}
	for _, stage := range standing.Stages(r) {
		out = append(out, b.stageRow(r, stage, now, width))
	}
	if r.Error != "" {
		out = append(out, row{text: "last error: " + r.Error, colour: escRed})
	}
	for i := range out {
		out[i].text = exit.Printable(out[i].text)
	}
	return out
}

func (b *bars) stageRow(r run.Record, stage string, now time.Time, width int) row {
	phase, first, last := standing.Stage(r, stage)
	head := fmt.Sprintf("%-10s", stage)
	switch phase {
	case standing.Done:
		text := head + " done in " + standing.Span(last.Ended.Sub(first.Started))
		if n, ok := b.bytes[stage]; ok {
			text += ", " + exit.Size(n)
		}
		return row{text: text, colour: escGreen}
	case standing.Current:
		return b.currentRow(r, head, now, width)
	case standing.Ended:
		text := head + " ended"
		if last.Outcome != nil {
			text += ": " + string(*last.Outcome)
		}
		return row{text: text, colour: escRed}
	}
	return row{text: head + " " + string(phase)}
}

// currentRow is the line of the stage the run is at.
func (b *bars) currentRow(r run.Record, head string, now time.Time, width int) row {
	try := ""
	if r.Attempt > 1 {
		try = fmt.Sprintf(" (attempt %d)", r.Attempt)
	}
	switch {
	case r.NotBefore != nil && r.NotBefore.After(now):
		return row{text: head + try + " tries again in " + standing.Span(r.NotBefore.Sub(now)), colour: escYellow}
	case r.Attempt == 0 && r.State == run.Queued:
		return row{text: head + " waits for a worker"}
	}
	words := standing.Progress(r)
	if words == "" {
		words = "working"
	}
	text := head + try + " "
	if f, ok := standing.Fraction(r); ok {
		const most, least = 30, 8
		if n := min(most, width-1-utf8.RuneCountInString(text)-len(words)-3); n >= least {
			full := int(f * float64(n))
			text += "[" + strings.Repeat("#", full) + strings.Repeat("-", n-full) + "] "
		}
	}
	return row{text: text + words}
}

// fit cuts a text to at most n characters.
func fit(s string, n int) string {
	if n < 1 {
		n = 1
	}
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n])
}
