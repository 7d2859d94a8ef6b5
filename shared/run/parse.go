package run

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"catalog-backup/shared/exit"
)

// reader reads the fields of a record. One of another shape is passed over, and told
// in odd: a run goes on and ends whatever an odd hand wrote into its record. The
// scripts read in the same way (prelude.go).
type reader struct {
	h   map[string]string
	odd []string
}

func (r *reader) tell(field, format string, args ...any) {
	r.odd = append(r.odd, exit.OneLine(field+": "+fmt.Sprintf(format, args...), 200))
}

func (r *reader) optional(f string) *int64 {
	v := r.h[f]
	if v == "" {
		return nil
	}
	n, ok := whole(v)
	if !ok {
		r.tell(f, "%q is no number", v)
		return nil
	}
	return &n
}

// whole is what the scripts take for a number.
func whole(v string) (int64, bool) {
	n, err := strconv.ParseUint(v, 10, 63)
	return int64(n), err == nil && len(v) <= 14
}

func (r *reader) num(f string) int64 {
	if n := r.optional(f); n != nil {
		return *n
	}
	return 0
}

func (r *reader) time(f string) *time.Time {
	if r.h[f] == "" {
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, r.h[f])
	if err != nil {
		r.tell(f, "%q is no time", r.h[f])
		return nil
	}
	return &t
}

func (r *reader) texts(f string) []string {
	out := []string{}
	if r.h[f] != "" {
		if err := json.Unmarshal([]byte(r.h[f]), &out); err != nil || out == nil {
			r.tell(f, "%q is no list of texts", r.h[f])
			return []string{}
		}
	}
	return out
}

func (r *reader) state() State {
	s := State(r.h["state"])
	if s == Queued || s == Running || s.Over() {
		return s
	}
	taken := Running
	if r.h["ended"] != "" {
		taken = Failed
	}
	r.tell("state", "%q is none; taken as %s", string(s), taken)
	return taken
}

// ending: an open run in its cleanup ends as failed or cancelled, and no other one is ending.
func (r *reader) ending(state State) State {
	s, taken := State(r.h["ending"]), State("")
	if r.h["stage"] == Cleanup && !state.Over() {
		if taken = Failed; s == Cancelled {
			taken = s
		}
	}
	if s != taken {
		r.tell("ending", "%q is wrong at stage %s of a run that is %s; taken as %q", string(s), r.h["stage"], state, string(taken))
	}
	return taken
}

// generation and what is claimed. A damaged generation counts as 0, which nobody has
// claimed, so that a task of it is made and taken.
func (r *reader) generation() (generation, claimed int64) {
	n := r.optional("generation")
	claimed = r.num("claimed")
	if n == nil {
		if r.h["generation"] == "" {
			r.tell("generation", "it is missing")
		}
		return 0, -1
	}
	return *n, claimed
}

// hold never falls: where the fence is damaged, it is that of the last attempt.
func (r *reader) hold() Hold {
	holder, ok := ParseHold(r.h["holder"])
	ok = ok && holder.String() == r.h["holder"]
	if !ok && r.h["holder"] != "" {
		r.tell("holder", "%q is none", r.h["holder"])
	}
	fence := r.optional("fence")
	if fence == nil {
		last := holder.Fence
		for f := range r.h {
			if n, ok := whole(strings.TrimPrefix(f, "attempt:")); ok {
				last = max(last, n)
			}
		}
		fence = &last
		if r.h["fence"] == "" {
			r.tell("fence", "it is missing")
		}
	}
	if !ok || holder.Fence != *fence {
		holder.Token = ""
	}
	return Hold{Fence: *fence, Token: holder.Token}
}

var resultRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// results are names of directories below the run's staging.
func (r *reader) results() map[string]string {
	out := map[string]string{}
	for f, v := range r.h {
		s, ok := strings.CutPrefix(f, "result:")
		switch {
		case !ok:
		case v != "" && !resultRE.MatchString(v):
			r.tell(f, "%q is no name of a directory in the staging", v)
		default:
			out[s] = v
		}
	}
	return out
}

func (r *reader) attempts() []Attempt {
	var out []Attempt
	for f, v := range r.h {
		s, ok := strings.CutPrefix(f, "attempt:")
		if !ok {
			continue
		}
		var a Attempt
		fence, ok := whole(s)
		if err := json.Unmarshal([]byte(v), &a); err != nil || !ok || a.Stage == "" {
			r.tell(f, "it is damaged, and left out: %s", v)
			continue
		}
		a.Fence = fence
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Fence < out[j].Fence })
	return out
}

// longestWait is longer than any wait before a retry, of 10 minutes at most (queue.backoff).
// One that is to last longer was written by a clock that was ahead and was set back.
const longestWait = 11 * time.Minute

func (r *reader) notBefore(now time.Time) *time.Time {
	t := r.time("not_before")
	if t != nil && t.Sub(now) > longestWait {
		r.tell("not_before", "%q is further away than any retry waits", r.h["not_before"])
		return nil
	}
	return t
}

// longestLimit is the longest limit of a run, in ms, that is believed: 31 years.
const longestLimit = "1000000000000"

func (r *reader) limit() time.Duration {
	n := r.num("limit")
	if most, _ := whole(longestLimit); n > most {
		r.tell("limit", "%d ms is longer than any", n)
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

// parse turns the hash, as it is now, into a Record.
func parse(id string, h map[string]string, now time.Time) (Record, error) {
	if h["state"] == "" {
		return Record{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	f := reader{h: h}
	hold, state := f.hold(), f.state()
	r := Record{ID: id, Instance: h["instance"], Requested: h["requested"], Tick: h["tick"], Type: h["type"], Set: h["set"],
		State: state, Stage: h["stage"], Ending: f.ending(state), Cancel: h["cancel"] == "1", Committed: h["committed"] == "1",
		Fence: hold.Fence, Token: hold.Token, Node: h["node"], Epoch: h["epoch"], Error: h["error"], Manifest: h["manifest"],
		Attempt: int(f.num("attempt")), Errors: int(f.num("errors")), Crashes: int(f.num("crashes")),
		Interruptions: int(f.num("interruptions")), Cleanups: int(f.num("cleanups")),
		Started: f.time("started"), Ended: f.time("ended"), NotBefore: f.notBefore(now), Deadline: f.time("deadline"), Limit: f.limit(),
		EndingSince: f.time("ending_since"), CancelSince: f.time("cancel_since"),
		BytesDone: f.optional("bytes_done"), BytesTotal: f.optional("bytes_total"), Rate: f.optional("rate"),
		Warnings: f.texts("warnings"), Notes: f.texts("notes"), Archives: f.texts("archives"),
		Results: f.results(), Attempts: f.attempts()}
	r.Generation, r.Claimed = f.generation()
	if t := f.time("created"); t != nil {
		r.Created = *t
	}
	if t := f.time("updated"); t != nil {
		r.Updated = *t
	}
	slices.Sort(f.odd)
	r.Odd = f.odd
	return r, nil
}

func jsonTexts(s []string) string {
	if len(s) == 0 {
		return "[]"
	}
	b, _ := json.Marshal(s)
	return string(b)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
