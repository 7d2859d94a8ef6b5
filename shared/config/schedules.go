package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"catalog-backup/shared/cron"

	"gopkg.in/yaml.v3"
)

// Plan is one entry of schedules, with the defaults filled in.
type Plan struct {
	Name     string
	Cron     string
	Timezone string
	Job      string // backup or verify
	Type     string // full or incremental
	CatchUp  time.Duration
	Overlap  string // skip or queue
}

// Schedule holds what is common to all plans.
type Schedule struct {
	CatchUp time.Duration
	Overlap string
}

// Scheduled are the documented parameters of the nightly backup, in UTC.
type Scheduled struct {
	Set    bool // one of the three is given
	Minute int
	Hour   int
	Days   string // mon…sun with commas; "" is every day
}

// DocumentedPlan is the name of the plan that the documented parameters make.
const DocumentedPlan = "alation"

// Bounds of a catch-up window: below a minute a busy machine would miss ticks that
// are on time, and asynq must remember each tick for longer than the window.
const (
	minCatchUp = time.Minute
	maxCatchUp = 30 * 24 * time.Hour
)

var weekdays = []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}

func days(c *Config, v value) error {
	if v.list != nil {
		return errors.New("a list is given; write the days with commas, without spaces, such as mon,thu")
	}
	for _, d := range strings.Split(v.text, ",") {
		if !slices.Contains(weekdays, d) {
			return fmt.Errorf("%q is not one of %s", d, strings.Join(weekdays, ", "))
		}
	}
	c.Scheduled.Days, c.Scheduled.Set = v.text, true
	return nil
}

func scheduled(f func(*Config) *int, high int) func(*Config, value) error {
	set := integer(f, 0, high)
	return func(c *Config, v value) error { c.Scheduled.Set = true; return set(c, v) }
}

func catchUp(f func(*Config) *time.Duration) func(*Config, value) error {
	set := duration(f)
	return func(c *Config, v value) error {
		if err := set(c, v); err != nil {
			return err
		}
		if d := *f(c); d < minCatchUp || d > maxCatchUp {
			return fmt.Errorf("%s is not between 1m and 720h", v.text)
		}
		return nil
	}
}

// planEntry is one entry of schedules as it stands in the file.
type planEntry struct {
	line   int
	fields map[string]value
}

// planKeys are the keys of an entry.
var planKeys = []string{"name", "cron", "timezone", "job", "type", "catch_up", "overlap"}

// readPlans takes the entries of schedules out of the file.
func (s *source) readPlans(n *yaml.Node) error {
	v := value{file: s.file, line: n.Line, plans: []planEntry{}}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		s.values[plansKey] = v
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return &Error{File: s.file, Line: n.Line, Key: plansKey, Problem: "is no list", Remedy: planRemedy}
	}
	for i, e := range n.Content {
		if e.Kind == yaml.AliasNode {
			e = e.Alias
		}
		key := fmt.Sprintf("%s[%d]", plansKey, i)
		if e.Kind != yaml.MappingNode {
			return &Error{File: s.file, Line: e.Line, Key: key, Problem: "is no plan", Remedy: planRemedy}
		}
		p := planEntry{line: e.Line, fields: map[string]value{}}
		for j := 0; j+1 < len(e.Content); j += 2 {
			k, f := e.Content[j], e.Content[j+1]
			if f.Kind == yaml.AliasNode {
				f = f.Alias
			}
			name := key + "." + k.Value
			_, twice := p.fields[k.Value]
			switch {
			case !slices.Contains(planKeys, k.Value):
				return &Error{File: s.file, Line: k.Line, Key: name, Problem: "is not a key of a plan", Remedy: planRemedy}
			case twice:
				return &Error{File: s.file, Line: k.Line, Key: name, Problem: "stands twice", Remedy: "keep one"}
			case f.Kind != yaml.ScalarNode || f.Tag == "!!null":
				return &Error{File: s.file, Line: k.Line, Key: name, Problem: "has no plain value", Remedy: "give one, or leave the key out"}
			}
			p.fields[k.Value] = value{text: f.Value, file: s.file, line: f.Line}
		}
		v.plans = append(v.plans, p)
	}
	s.values[plansKey] = v
	return nil
}

const (
	plansKey   = "schedules"
	planRemedy = "write entries such as {name: nightly, cron: \"30 2 * * *\"}, with the keys name, cron, timezone, job, type, catch_up, overlap"
)

// plans checks the entries and takes them over.
func plans(c *Config, v value) error {
	if v.plans == nil {
		return errors.New("plans are given in the file only")
	}
	seen := map[string]int{}
	for i, e := range v.plans {
		p, err := c.plan(fmt.Sprintf("%s[%d]", plansKey, i), v.file, e)
		if err != nil {
			return err
		}
		if line, twice := seen[p.Name]; twice {
			return &Error{File: v.file, Line: e.line, Key: fmt.Sprintf("%s[%d].name", plansKey, i),
				Problem: fmt.Sprintf("the plan %s stands in line %d already", p.Name, line), Remedy: "give each plan a name of its own"}
		}
		seen[p.Name] = e.line
		if p.Name == DocumentedPlan {
			return &Error{File: v.file, Line: e.line, Key: fmt.Sprintf("%s[%d].name", plansKey, i),
				Problem: "the name is kept for the plan of alation.backup.scheduled_minute, _hour and _day", Remedy: "choose another name"}
		}
		c.Schedules = append(c.Schedules, p)
	}
	return nil
}

// plan reads one entry. schedule.catch_up and schedule.overlap have been read before.
func (c *Config) plan(key, file string, e planEntry) (Plan, error) {
	p := Plan{Timezone: "UTC", Job: "backup", Type: "full", CatchUp: c.Schedule.CatchUp, Overlap: c.Schedule.Overlap}
	on := func(k string, err error, remedy string) (Plan, error) {
		line := e.line
		if f, ok := e.fields[k]; ok {
			line = f.line
		}
		return p, &Error{File: file, Line: line, Key: key + "." + k, Problem: err.Error(), Remedy: remedy}
	}
	for _, k := range []string{"name", "cron"} {
		if _, ok := e.fields[k]; !ok {
			return on(k, errors.New("is missing"), planRemedy)
		}
	}
	for k, take := range map[string]func(string) error{
		"name": func(t string) error {
			if !nameRE.MatchString(t) {
				return fmt.Errorf("%q does not serve as a name", t)
			}
			p.Name = t
			return nil
		},
		"job":     word(&p.Job, "backup", "verify"),
		"type":    word(&p.Type, "full", "incremental"),
		"overlap": word(&p.Overlap, "skip", "queue"),
		"catch_up": func(t string) error {
			return catchUp(func(*Config) *time.Duration { return &p.CatchUp })(c, value{text: t})
		},
	} {
		if f, ok := e.fields[k]; ok {
			if err := take(f.text); err != nil {
				return on(k, err, "it takes "+planKinds[k])
			}
		}
	}
	if f, ok := e.fields["timezone"]; ok {
		p.Timezone = f.text
	}
	if _, err := cron.Zone(p.Timezone); err != nil {
		return on("timezone", err, "see docs/scheduling.md")
	}
	expression, err := cron.Parse(e.fields["cron"].text)
	if err != nil {
		return on("cron", err, "`producer schedule explain` tells what an expression means")
	}
	p.Cron = expression.String()
	if _, ok := e.fields["type"]; ok && p.Job != "backup" {
		return on("type", errors.New("a verification has no type"), "leave type out")
	}
	return p, nil
}

var planKinds = map[string]string{"name": kindName, "job": "backup or verify", "type": "full or incremental", "overlap": "skip or queue", "catch_up": kindTime}

func word(to *string, allowed ...string) func(string) error {
	return func(t string) error {
		if !slices.Contains(allowed, t) {
			return fmt.Errorf("%q is not one of %s", t, strings.Join(allowed, ", "))
		}
		*to = t
		return nil
	}
}
