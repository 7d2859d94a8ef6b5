package eventbus

import (
	"fmt"
	"time"

	"catalog-backup/worker/stage"
)

// What was read of a compacted partition is one state of one log only under
// conditions (docs/set-format.md, "Where a partition ends"). Where they did not
// hold, it is read anew.

// maxTries is how often a partition is read before the dump fails.
const maxTries = 3

// doubt is why what was read of a partition may not be what its log held at
// one time.
type doubt struct {
	what   string // happened
	remedy string
	grade  grade
}

// grade is what becomes of a doubt at the last try.
type grade int

const (
	passes grade = iota // the dump fails; another may do better
	lasts               // the dump fails for good
	warns               // it may be nothing: a busy cleaner looks like it
)

// doubt tells why a partition must be read anew. That it took long is nothing where
// no policy compacts: then only holes tell of a cleaner.
func (j *job) doubt(p policy) *doubt {
	compacts := j.r.compacts || p.compact()
	switch {
	case !j.partition().Compacted:
		return nil // without compaction each replica holds every record, at any time
	case j.r.moved:
		return &doubt{grade: passes, remedy: "run the backup again when the brokers are at rest",
			what: "another broker became its leader while it was read: of the two copies of its log the cleaner may have taken other records, so that keys deleted before would come back"}
	case compacts && j.took > 0 && j.took >= p.keep:
		return &doubt{grade: lasts, remedy: "raise delete.retention.ms of the topic",
			what: fmt.Sprintf("reading it took %s, longer than the topic's delete.retention.ms (%s): keys that were deleted meanwhile would come back", j.took.Round(time.Millisecond), p.keep)}
	case j.r.renewed >= 0:
		return &doubt{grade: warns,
			what: fmt.Sprintf("records from offset %d on were written and compacted away while it was read: if delete.retention.ms or cleanup.policy was changed meanwhile, keys that were deleted then would come back", j.r.renewed)}
	}
	return nil
}

// readAnew gives up what was read of a partition, so that it is read once more. At the
// last try it fails or, where gaps are allowed, leaves it at a warning.
func (d *dumper) readAnew(j *job, b *doubt) (again bool, err error) {
	what := fmt.Sprintf("topic %s partition %d: %s", j.t.Name, j.partition().ID, b.what)
	if j.try == maxTries {
		if b.grade == warns || d.o.allows(j.t.Name) {
			d.warn("%s, at each of %d tries", what, maxTries)
			j.settled = true
			return false, nil
		}
		err := fmt.Errorf("eventbus: %s, at each of %d tries; %s, or set eventbus.allow_gaps_in to [%s] to take the set with a warning", what, maxTries, b.remedy, j.t.Name)
		if b.grade == lasts {
			err = stage.Permanent(err)
		}
		return false, err
	}
	d.o.Logf("eventbus: %s; it is read anew", what)
	d.mu.Lock()
	d.f.Note("eventbus: %s; it was read anew", what)
	d.mu.Unlock()
	j.compacts = j.r.compacts
	j.try++
	j.r = nil
	old := *j.partition()
	d.mu.Lock()
	d.discarded = append(d.discarded, old.Segments...)
	d.mu.Unlock()
	*j.partition() = newPartition(old.ID, old.Compacted)
	j.partition().Start, j.partition().Listed = old.Start, old.Listed
	return true, nil
}
