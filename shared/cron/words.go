package cron

import (
	"fmt"
	"strings"
	"time"
)

// Field is one field of an expression with its meaning.
type Field struct {
	Name  string `json:"field"`
	Value string `json:"value"`
	Means string `json:"means"`
}

// descriptors are the words that stand for five fields.
var descriptors = map[string]string{"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *"}

// Fields explains the five fields in words.
func (e Expression) Fields() []Field {
	text := e.text
	if full, ok := descriptors[text]; ok {
		text = full
	}
	bits := [5]uint64{e.spec.Minute, e.spec.Hour, e.spec.Dom, e.spec.Month, e.spec.Dow}
	out := []Field{}
	for i, value := range strings.Fields(text) {
		out = append(out, Field{Name: names[i], Value: value, Means: means(i, bits[i])})
	}
	return out
}

// Either tells that day of month and day of week are both restricted: then a day
// that matches one of them is enough.
func (e Expression) Either() bool { return e.spec.Dom&star == 0 && e.spec.Dow&star == 0 }

var bounds = [5][2]int{{0, 59}, {0, 23}, {1, 31}, {1, 12}, {0, 6}}

// means puts the values of a field into words, runs of three and more as "a to b".
func means(field int, bits uint64) string {
	low, high := bounds[field][0], bounds[field][1]
	var parts []string
	for v := low; v <= high; v++ {
		if bits&(1<<v) == 0 {
			continue
		}
		end := v
		for end < high && bits&(1<<(end+1)) != 0 {
			end++
		}
		switch {
		case v == low && end == high:
			return "every " + []string{"minute", "hour", "day", "month", "day"}[field]
		case end > v+1:
			parts = append(parts, one(field, v)+" to "+one(field, end))
			v = end
		default:
			parts = append(parts, one(field, v))
		}
	}
	list := strings.Join(parts, ", ")
	if n := len(parts); n > 1 {
		list = strings.Join(parts[:n-1], ", ") + " and " + parts[n-1]
	}
	switch field {
	case 0:
		return "at minute " + list
	case 1:
		return "in the hour " + list
	case 2:
		return "on day " + list
	case 3:
		return "in " + list
	}
	return "on " + list
}

func one(field, v int) string {
	switch field {
	case 3:
		return time.Month(v).String()
	case 4:
		return time.Weekday(v).String()
	}
	return fmt.Sprint(v)
}
