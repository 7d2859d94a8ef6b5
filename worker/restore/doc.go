// Package restore is the offline half of the worker: it finds a set on disk,
// verifies it, and restores it into a directory. It needs no Redis and no
// configuration. It joins what the rooms (archive, postgres, eventbus) can do.
//
// What a set is found by: its manifest, one of its archives, or its id. An archive
// carries a copy of the manifest as its last entry; where the manifest itself is
// not beside the archive, the copy is used. It has to be read before anything can
// be checked, so an archive alone is read twice.
package restore

import "errors"

var (
	// ErrNotFound is wrapped by errors for a set, an archive or a part that is not there.
	ErrNotFound = errors.New("not found")
	// ErrUsage is wrapped by errors for a request that makes no sense.
	ErrUsage = errors.New("cannot be done")
)

// refusal is an error of one of the kinds above that speaks for itself.
type refusal struct {
	kind error
	text string
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.kind }

// DamagedError says that a set is damaged, by what was found.
type DamagedError struct {
	Set    string // id, as far as it is known
	Doing  string // what was refused for it
	Damage []Damage
	Total  int // findings, more than in Damage where there are very many
	Remedy string
}

func (e *DamagedError) Error() string {
	text := "it is damaged"
	if len(e.Damage) > 0 {
		text = e.Damage[0].String()
	}
	if e.Total > 1 {
		text += plural(", and ", int64(e.Total-1), " more finding")
	}
	if e.Remedy != "" {
		text += "; " + e.Remedy
	}
	return e.Doing + ": " + text
}
