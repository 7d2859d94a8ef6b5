// Package run holds the run record in Redis: the one place that decides what a
// run is doing. It changes only by the compare-and-set scripts in scripts.go.
// asynq carries the work; this record decides.
package run

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// State is what a run looks like from outside.
type State string

const (
	Queued    State = "queued"
	Running   State = "running" // until cleanup is over
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Over tells whether the run has ended.
func (s State) Over() bool { return s == Succeeded || s == Failed || s == Cancelled }

// Cleanup is the stage every run that does not succeed ends with.
const Cleanup = "cleanup"

// Outcome is how an attempt ended.
type Outcome string

const (
	Good        Outcome = "good"
	Erred       Outcome = "error"
	Interrupted Outcome = "interrupted" // the worker was stopped in good order
	Crashed     Outcome = "crashed"     // the worker died, or the machine
	Stopped     Outcome = "cancelled"
)

// Attempt is one try at a stage. Its JSON is the public one of `status`.
type Attempt struct {
	Stage   string     `json:"stage"`
	Attempt int        `json:"attempt"`
	Node    string     `json:"node"`
	Started time.Time  `json:"started"`
	Ended   *time.Time `json:"ended"`
	Outcome *Outcome   `json:"outcome"`
	Error   *string    `json:"error"`

	Fence int64 `json:"-"`
}

// Record is a run as it stands in Redis.
type Record struct {
	ID        string
	Instance  string
	Requested string // full or incremental, as asked for
	Tick      string // the tick of a schedule that opened the run; "": somebody did
	Type      string // the effective type
	Set       string // set id, once reserved
	State     State
	Stage     string
	// Generation of the stage's task: only the current one counts.
	Generation int64
	// Claimed is the generation that an attempt has taken, 0 if none has yet.
	Claimed int64
	// Fence grows with every attempt; an older holder may touch nothing.
	Fence     int64
	Token     string // of the attempt that has the fence; empty: none has, or a worker of an earlier version
	Attempt   int    // number of the attempt at this stage, from 1
	Ending    State  // Failed or Cancelled while the cleanup runs, else empty
	Cancel    bool   // somebody asked to cancel
	Committed bool   // past the point where a cancel can stop it
	// EndingSince is when the run began to end, CancelSince when somebody asked to
	// cancel it. nil: not yet, or by an earlier version.
	EndingSince, CancelSince *time.Time
	Node                     string
	Epoch                    string

	Errors, Crashes, Interruptions int // of this stage

	Created, Updated time.Time
	Started, Ended   *time.Time
	NotBefore        *time.Time // next attempt, after an error
	Deadline         *time.Time
	Limit            time.Duration // from the first claim to the deadline; 0: not claimed yet, or by an earlier version
	Error            string
	BytesDone        *int64
	BytesTotal       *int64
	Rate             *int64 // bytes a second
	Warnings, Notes  []string
	Archives         []string // absolute paths
	Manifest         string
	Results          map[string]string // committed results of stages: directory below the run's staging
	Attempts         []Attempt
	Cleanups         int // how often a cleanup was finished: 0 or 1

	// Odd are the fields that an odd hand made of another shape, in words, one a line.
	// They count as missing.
	Odd []string
}

var idRE = regexp.MustCompile(`^[0-9]{8}t[0-9]{6}z-[a-z2-7]{8}$`)

// ValidID tells whether s has the form of a run id. It may become part of a path.
func ValidID(s string) bool { return idRE.MatchString(s) }

// Begun is the time that a run's id tells: when it was asked for, by the clock of who asked.
func Begun(id string) (time.Time, error) {
	if !ValidID(id) {
		return time.Time{}, fmt.Errorf("%q is no run id", id)
	}
	return time.Parse("20060102T150405Z", strings.ToUpper(id[:len("20060102T150405Z")]))
}

// NewID makes a run id from the time and at least five random bytes.
func NewID(now time.Time, random []byte) string {
	return strings.ToLower(now.UTC().Format("20060102T150405Z")) + "-" + base32(random[:5])
}

func base32(b []byte) string {
	const digits = "abcdefghijklmnopqrstuvwxyz234567"
	var n uint64
	for _, x := range b {
		n = n<<8 | uint64(x)
	}
	out := make([]byte, 8)
	for i := range out {
		out[7-i] = digits[n&31]
		n >>= 5
	}
	return string(out)
}

// Hold is the right of the attempt that has the run now.
func (r Record) Hold() Hold { return Hold{Fence: r.Fence, Token: r.Token} }

// Age is how long ago the run was asked for.
func (r Record) Age(now time.Time) time.Duration { return now.Sub(r.Created).Round(time.Second) }

// ErrNotFound is returned for a run that has no record.
var ErrNotFound = errors.New("no such run")
