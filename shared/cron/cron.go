// Package cron reads crontab expressions and says when their ticks are. The syntax
// is robfig/cron's (five fields, or @hourly, @daily, @weekly, @monthly, @yearly);
// the calendar is our own, since a day on which the clocks change must neither
// swallow a tick nor give it twice:
//
// An expression is matched against the calendar on the wall: every minute that it
// names there is one tick. A tick happens at the first instant at which the clocks
// of the zone show its minute or a later one. So a minute that the clocks skip
// happens when they have jumped, one that they show twice happens the first time,
// and ticks that fall on one instant are one tick.
package cron

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	_ "time/tzdata" // a container need not have zoneinfo

	"github.com/robfig/cron/v3"
)

// Expression is a crontab expression that was read. The zero value has no ticks.
type Expression struct {
	text string
	spec cron.SpecSchedule
}

// star is the bit that robfig/cron's parser sets in a field that restricts nothing.
const star = 1 << 63

var parser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// fieldRE is the form of a field: the parser is more lenient, and takes "*-5" for "*".
var fieldRE = regexp.MustCompile(`^(?:(?:[*?]|\w+(?:-\w+)?)(?:/\d+)?)(?:,(?:(?:[*?]|\w+(?:-\w+)?)(?:/\d+)?))*$`)

// Parse reads an expression. An expression that no date ever matches, such as 30
// February, is refused. The errors say what is wrong and what to write.
func Parse(text string) (Expression, error) {
	text = strings.Join(strings.Fields(text), " ")
	e := Expression{text: text}
	switch word, _, _ := strings.Cut(text, " "); {
	case text == "":
		return e, errors.New("it is empty; write five fields: minute, hour, day of month, month, day of week")
	case len(text) > 500:
		return e, errors.New("it is longer than 500 characters")
	case strings.HasPrefix(word, "TZ=") || strings.HasPrefix(word, "CRON_TZ="):
		return e, errors.New("a zone stands in it; write the zone into timezone")
	case word == "@every":
		return e, errors.New("@every has no calendar: it would count from the start of the program; write five fields, such as */15 * * * *")
	case word == "@reboot":
		return e, errors.New("@reboot is no time; write five fields, or @daily")
	}
	if !strings.HasPrefix(text, "@") {
		if err := checkFields(text); err != nil {
			return e, err
		}
	}
	s, err := parser.Parse(text)
	if err != nil {
		return e, fmt.Errorf("%q is no crontab expression: %w; write five fields, such as 30 2 * * 1-5, or @daily", text, err)
	}
	spec, ok := s.(*cron.SpecSchedule)
	if !ok {
		return e, fmt.Errorf("%q has no calendar; write five fields", text)
	}
	e.spec = *spec
	if _, ok := e.nextWall(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(-time.Minute)); !ok {
		return e, fmt.Errorf("%q never happens: no date matches it; mend day of month and month", text)
	}
	return e, nil
}

func checkFields(text string) error {
	fields := strings.Fields(text)
	if len(fields) != 5 {
		return fmt.Errorf("%q has %d fields, not five; write minute, hour, day of month, month and day of week", text, len(fields))
	}
	for i, f := range fields {
		if !fieldRE.MatchString(f) {
			return fmt.Errorf("%s %q is not understood; write numbers, ranges such as 1-5, steps such as */15, lists with commas, or *", names[i], f)
		}
	}
	if d := fields[4]; regexp.MustCompile(`\b7\b`).MatchString(d) && !strings.Contains(d, "/7") {
		return fmt.Errorf("day of week %q holds 7; write 0 or sun for Sunday", d)
	}
	return nil
}

var names = [5]string{"minute", "hour", "day of month", "month", "day of week"}

// String is the expression, with single spaces.
func (e Expression) String() string { return e.text }

// horizon is how many days nextWall looks ahead: 29 February of a certain kind of
// year is the rarest date, and stays away for eight years around 2100.
const horizon = 9 * 366

// nextWall is the first minute after w that the fields name. w is a wall-clock time,
// written as if it were UTC.
func (e Expression) nextWall(w time.Time) (time.Time, bool) {
	w = w.Truncate(time.Minute).Add(time.Minute)
	day := w.Truncate(24 * time.Hour)
	from := int(w.Sub(day) / time.Minute)
	for range horizon {
		if e.onDay(day) {
			for m := from; m < 24*60; m++ {
				if e.spec.Hour&(1<<(m/60)) == 0 {
					m += 59 - m%60
					continue
				}
				if e.spec.Minute&(1<<(m%60)) != 0 {
					return day.Add(time.Duration(m) * time.Minute), true
				}
			}
		}
		day, from = day.AddDate(0, 0, 1), 0
	}
	return time.Time{}, false
}

// onDay applies cron's rule: where day of month and day of week are both
// restricted, either is enough.
func (e Expression) onDay(d time.Time) bool {
	if e.spec.Month&(1<<int(d.Month())) == 0 {
		return false
	}
	dom, dow := e.spec.Dom&(1<<d.Day()) != 0, e.spec.Dow&(1<<int(d.Weekday())) != 0
	if e.spec.Dom&star != 0 || e.spec.Dow&star != 0 {
		return dom && dow
	}
	return dom || dow
}

// Tick is one tick of an expression in a zone.
type Tick struct {
	At   time.Time // the instant, in the zone
	Wall string    // what the calendar says: 2006-01-02 15:04
	// Shift says what the clocks do to it: Skipped, Twice, or "".
	Shift string
}

// What the clocks of a zone do to a tick.
const (
	Skipped = "skipped" // the clocks jump over it: it happens right after the jump
	Twice   = "twice"   // the clocks show it twice: it happens the first time
)

// Next is the first tick after an instant. ok is false where there is none.
func (e Expression) Next(after time.Time, zone *time.Location) (Tick, bool) {
	w := asWall(after.In(zone))
	for {
		next, ok := e.nextWall(w)
		if !ok {
			return Tick{}, false
		}
		if at := first(next, zone); at.After(after) {
			return tickAt(next, at), true
		}
		w = next // the clocks show it a second time now
	}
}

const wallForm = "2006-01-02 15:04"

// asWall writes what the clocks show at t as if it were UTC.
func asWall(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// widest is more than any zone was ever away from UTC.
const widest = 26 * time.Hour

// first is the first instant at which the clocks of the zone show w or later. It
// never goes back where w goes on, so ticks keep their order.
func first(w time.Time, zone *time.Location) time.Time {
	t := w.Add(-widest).In(zone)
	for {
		_, offset := t.Zone()
		_, end := t.ZoneBounds()
		at := w.Add(-time.Duration(offset) * time.Second)
		if at.Before(t) {
			at = t // the clocks have just jumped over w
		}
		if end.IsZero() || at.Before(end) {
			return at.In(zone)
		}
		t = end.In(zone)
	}
}

func tickAt(w, at time.Time) Tick {
	t := Tick{At: at, Wall: w.Format(wallForm)}
	if asWall(at) != w {
		t.Shift = Skipped
		return t
	}
	if _, end := at.ZoneBounds(); !end.IsZero() {
		_, offset := end.Zone()
		if again := w.Add(-time.Duration(offset) * time.Second); !again.Before(end) && again.After(at) {
			if _, over := end.ZoneBounds(); over.IsZero() || again.Before(over) {
				t.Shift = Twice
			}
		}
	}
	return t
}
