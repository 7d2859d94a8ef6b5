package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"

	"golang.org/x/term"
)

// display shows a run while somebody waits for it.
type display interface {
	// update shows the record as it was read now.
	update(r run.Record, now time.Time)
	// away tells that Redis does not answer, and why; back that it does again.
	away(why string, now time.Time)
	back(now time.Time)
	// end leaves the display as the last word about r.
	end(r run.Record, now time.Time)
}

// newDisplay takes live bars where people look on, plain lines elsewhere, and
// nothing where stdout is for one JSON value.
func newDisplay(a *app) display {
	f, ok := a.out.(*os.File)
	switch {
	case a.json:
		return silent{a}
	case ok && term.IsTerminal(int(f.Fd())) && a.getenv("TERM") != "dumb":
		return &bars{out: f, width: func() int { return terminalWidth(f) }, colour: a.getenv("NO_COLOR") == "", memory: newMemory()}
	}
	return &lines{out: a.out, err: a.err}
}

// silent shows nothing of the run.
type silent struct{ app *app }

func (silent) update(run.Record, time.Time)   {}
func (silent) end(run.Record, time.Time)      {}
func (s silent) away(why string, _ time.Time) { fmt.Fprintln(s.app.err, "note: "+why) }
func (s silent) back(time.Time)               { fmt.Fprintln(s.app.err, "note: "+redisIsBack) }

const redisIsBack = "Redis is back"

// linePause is how often plain lines repeat the progress of a stage.
const linePause = 5 * time.Second

// lines prints a line for each change of state, stage or attempt, and one now and then.
type lines struct {
	out, err io.Writer
	last     string // what the last line was about
	at       time.Time
}

func (l *lines) update(r run.Record, now time.Time) {
	about := fmt.Sprint(r.State, r.Stage, r.Attempt, r.Ending, r.Cancel, r.Error)
	if r.State.Over() || about == l.last && now.Sub(l.at) < linePause {
		return
	}
	l.last, l.at = about, now
	fmt.Fprintf(l.out, "%s %s\n", now.UTC().Format(time.RFC3339), exit.Printable(standing.Line(r, now)))
}

func (l *lines) away(why string, _ time.Time) { fmt.Fprintln(l.err, "note: "+why) }
func (l *lines) back(time.Time)               { fmt.Fprintln(l.err, "note: "+redisIsBack) }
func (l *lines) end(run.Record, time.Time)    {}

// terminalWidth is the width of the terminal now, since people change it.
func terminalWidth(f *os.File) int {
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		return w
	}
	return 80
}
