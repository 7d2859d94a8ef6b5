package run

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// TookBounds are the upper bounds, in seconds, of the classes in which the
// durations of attempts are counted: from an empty bus to a night's work.
var TookBounds = []float64{1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400}

// counting is the part of the scripts' prelude that adds to the totals. It runs
// within the script that ends an attempt or a run, so each counts exactly once.
//
//	runs:<state>                      runs that ended so
//	retries:<stage>:<kind>            attempts after which the stage was tried again
//	took:<stage>:<outcome>:<bound>    attempts that took at most so many seconds, and more than the bound before; inf: longer
//	took:<stage>:<outcome>:ms         the sum of their durations, ms
//	last                              state of the run that ended last
//	last_ended                        when, as a record's times are written
var counting = `
-- Counting never stands in the way of the run: pcall, since an odd hand may have made the key of another type.
local totals = KEYS[4] or '` + keyPrefix + `' .. get('instance') .. ':totals'
local function count(field, n) redis.pcall('HINCRBY', totals, field, n) end
local function count_attempt(a)
  local from, to = seconds(a.started), seconds(a.ended)
  if not from or not to or not a.stage then return end
  local took = math.max(0, to - from)
  local class = 'inf'
  for _, bound in ipairs({` + bounds() + `}) do
    if took <= bound then class = tostring(bound); break end
  end
  local field = 'took:' .. a.stage .. ':' .. a.outcome .. ':'
  count(field .. class, 1)
  count(field .. 'ms', math.floor(took * 1000 + 0.5))
end
local function count_retry(stage, kind) count('retries:' .. stage .. ':' .. kind, 1) end
local function count_run(state)
  count('runs:' .. state, 1)
  redis.pcall('HSET', totals, 'last', state, 'last_ended', now)
end
`

func bounds() string {
	var out []string
	for _, b := range TookBounds {
		out = append(out, strconv.FormatFloat(b, 'f', -1, 64))
	}
	return strings.Join(out, ", ")
}

func totalsKey(instance string) string { return keyPrefix + instance + ":totals" }

// Totals are what an instance's runs came to since this Redis first had them.
// They only grow, and are gone with Redis's data.
type Totals struct {
	Runs    map[State]int64
	Retries map[Retried]int64
	Took    map[Ended]*Durations
	Last    State // how the last run ended; "" when none has
	LastEnd time.Time
}

// Retried is a kind of retry: of which stage, and why.
type Retried struct {
	Stage string
	Kind  Outcome // Erred, Interrupted or Crashed
}

// Ended is a kind of attempt: at which stage, and how it ended.
type Ended struct {
	Stage   string
	Outcome Outcome
}

// Durations are how long attempts took. A crashed one ends when it is found dead.
type Durations struct {
	Count   int64
	Sum     time.Duration
	Classes map[float64]int64 // by upper bound: how many took at most so long, all shorter ones included
}

// parseTotals passes over fields that it does not know: they are another version's.
func parseTotals(h map[string]string) Totals {
	t := Totals{Runs: map[State]int64{}, Retries: map[Retried]int64{}, Took: map[Ended]*Durations{}, Last: State(h["last"])}
	t.LastEnd, _ = time.Parse(time.RFC3339Nano, h["last_ended"])
	for field, text := range h {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			continue
		}
		switch parts := strings.Split(field, ":"); {
		case parts[0] == "runs" && len(parts) == 2:
			t.Runs[State(parts[1])] = n
		case parts[0] == "retries" && len(parts) == 3:
			t.Retries[Retried{parts[1], Outcome(parts[2])}] = n
		case parts[0] == "took" && len(parts) == 4:
			t.took(Ended{parts[1], Outcome(parts[2])}, parts[3], n)
		}
	}
	return t
}

func (t *Totals) took(e Ended, class string, n int64) {
	d := t.Took[e]
	if d == nil {
		d = &Durations{Classes: map[float64]int64{}}
		for _, b := range TookBounds {
			d.Classes[b] = 0
		}
		t.Took[e] = d
	}
	if class == "ms" {
		d.Sum = time.Duration(n) * time.Millisecond
		return
	}
	d.Count += n
	bound, err := strconv.ParseFloat(class, 64)
	if err != nil {
		return
	}
	// A version with other bounds may have counted: its class goes into the next wider one of ours.
	first, _ := slices.BinarySearch(TookBounds, bound)
	for _, b := range TookBounds[first:] {
		d.Classes[b] += n
	}
}
