// Package stage is the contract between a room that does the work (postgres,
// eventbus, archive) and the pipeline that drives it: how progress is told, and
// what kind of failure an error is. It knows neither asynq nor any room.
package stage

import (
	"errors"
	"fmt"
	"syscall"
)

// Progress receives how far a stage is. Both methods may be called from several
// goroutines and cost next to nothing.
type Progress interface {
	// Total sets the number of bytes the stage expects to handle.
	Total(bytes int64)
	// Done sets the number of bytes handled so far.
	Done(bytes int64)
	// Add adds to the number of bytes handled so far.
	Add(bytes int64)
}

// NoProgress drops what it is told.
type NoProgress struct{}

func (NoProgress) Total(int64) {}
func (NoProgress) Done(int64)  {}
func (NoProgress) Add(int64)   {}

// Findings are what a good stage has to say to people.
type Findings struct {
	Warnings []string `json:"warnings"` // the run ends with exit code 10
	Notes    []string `json:"notes"`    // said, nothing more
}

// Warn adds a warning.
func (f *Findings) Warn(format string, args ...any) {
	f.Warnings = append(f.Warnings, fmt.Sprintf(format, args...))
}

// Note adds a note.
func (f *Findings) Note(format string, args ...any) {
	f.Notes = append(f.Notes, fmt.Sprintf(format, args...))
}

// Join adds all of g.
func (f *Findings) Join(g Findings) {
	f.Warnings = append(f.Warnings, g.Warnings...)
	f.Notes = append(f.Notes, g.Notes...)
}

// permanent is an error that no retry can mend.
type permanent struct{ err error }

func (p permanent) Error() string { return p.err.Error() }
func (p permanent) Unwrap() error { return p.err }

// Permanent marks err as one that a retry cannot mend (no space, wrong
// configuration, bad credentials, a corrupt page). nil stays nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// Permanentf is Permanent(fmt.Errorf(…)).
func Permanentf(format string, args ...any) error { return permanent{fmt.Errorf(format, args...)} }

// IsPermanent tells whether err or one that it wraps was marked by Permanent.
func IsPermanent(err error) bool {
	var p permanent
	return errors.As(err, &p)
}

// IsFull tells whether err comes of a disk, or an owner's share of it, that has no room
// left. No retry mends that: it would fill it again.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
