// Package schedule is what the scheduler, the command line and the dashboard know
// of plans: what the configuration says, when their ticks are, and what Redis
// remembers of them.
package schedule

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/cron"
)

// What a plan does at a tick.
const (
	Backup = "backup"
	Verify = "verify"
)

// What a tick does that finds another run active.
const (
	Skip  = "skip"
	Queue = "queue"
)

// Documented is the plan of alation.backup.scheduled_minute, _hour and _day.
const Documented = config.DocumentedPlan

// Plan is one plan of the configuration. Make it with Plans.
type Plan struct {
	Name     string
	Cron     string // five fields, or a word such as @daily
	Timezone string // IANA name
	Job      string // Backup or Verify
	Type     string // full or incremental, of a backup
	CatchUp  time.Duration
	Overlap  string // Skip or Queue

	expression cron.Expression
	zone       *time.Location
}

// Plans are the plans of a configuration, the documented one first, then in the
// order of the file. config.Load has refused what does not make a plan.
func Plans(c *config.Config) []Plan {
	out := []Plan{}
	if s := c.Scheduled; s.Set {
		days := "*"
		if s.Days != "" {
			days = s.Days
		}
		out = append(out, Plan{Name: Documented, Cron: fmt.Sprintf("%d %d * * %s", s.Minute, s.Hour, days), Timezone: "UTC",
			Job: Backup, Type: "full", CatchUp: c.Schedule.CatchUp, Overlap: c.Schedule.Overlap})
	}
	for _, p := range c.Schedules {
		out = append(out, Plan{Name: p.Name, Cron: p.Cron, Timezone: p.Timezone, Job: p.Job, Type: p.Type, CatchUp: p.CatchUp, Overlap: p.Overlap})
	}
	for i := range out {
		p := &out[i]
		var err error
		if p.expression, err = cron.Parse(p.Cron); err == nil {
			p.zone, err = cron.Zone(p.Timezone)
		}
		if err != nil { // a configuration that config.Load did not make
			p.expression, p.zone = cron.Expression{}, time.UTC
		}
	}
	return out
}

// Find finds a plan by its name.
func Find(plans []Plan, name string) (Plan, bool) {
	i := slices.IndexFunc(plans, func(p Plan) bool { return p.Name == name })
	if i < 0 {
		return Plan{}, false
	}
	return plans[i], true
}

// Next is the plan's first tick after an instant, in the plan's zone; zero where
// there is none.
func (p Plan) Next(after time.Time) time.Time {
	if p.zone == nil {
		return time.Time{}
	}
	t, _ := p.expression.Next(after, p.zone)
	return t.At
}

// NextN are the next n ticks after an instant.
func (p Plan) NextN(after time.Time, n int) []time.Time {
	out := []time.Time{}
	for range n {
		if after = p.Next(after); after.IsZero() {
			break
		}
		out = append(out, after)
	}
	return out
}

// Ticks are the plan's ticks t with from < t <= to.
func (p Plan) Ticks(from, to time.Time) []time.Time {
	out := []time.Time{}
	for t := p.Next(from); !t.IsZero() && !t.After(to); t = p.Next(t) {
		out = append(out, t)
	}
	return out
}

// longest is for how many years back ticks are looked for.
const longest = 10

// Latest are the last ticks t with from < t <= to, at least most of them where
// there are that many, without going over all the years before. more tells that
// there are earlier ones.
func (p Plan) Latest(from, to time.Time, most int) (ticks []time.Time, more bool) {
	if limit := to.AddDate(-longest, 0, 0); from.Before(limit) {
		from = limit
	}
	for back := time.Hour; ; back *= 8 {
		begin := to.Add(-back)
		if !begin.After(from) {
			ticks = p.Ticks(from, to)
			break
		}
		if ticks = p.Ticks(begin, to); len(ticks) >= most {
			more = true
			break
		}
	}
	if n := len(ticks); n > most {
		return ticks[n-most:], true
	}
	return ticks, more
}

// times names what the plan's ticks depend on. What Redis remembers of a plan's
// ticks counts only for the same times: a plan that was changed begins anew.
func (p Plan) times() string {
	sum := sha256.Sum256([]byte(p.Cron + "\n" + p.Timezone))
	return p.Name + "/" + hex.EncodeToString(sum[:6])
}
