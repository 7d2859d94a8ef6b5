package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus"
)

// Every state of a run has a bound; docs/architecture.md has the table of them.

const (
	// boundGrace is how long a wish to cancel may go unheeded, and how much longer than a
	// worker of the run's node the others wait before they close it. Never longer than
	// Limits.CloseAfter.
	boundGrace = time.Minute
	// patientLook is how long a reconciler looks before it ends a run that nobody began or
	// closes one: workers that have just come back, or Redis, get their chance.
	patientLook = 10 * time.Second
	// nodeLook is how long a leader must have seen no sign of a node, nor of its run, before
	// the node counts as lost: three times as long as a worker's sign lasts.
	nodeLook = 36 * time.Second
	// closeLook is how long the look at the disk before a run is closed may take.
	closeLook = 10 * time.Second
)

func (l Limits) grace() time.Duration { return min(boundGrace, l.CloseAfter) }

// sight is what a reconciler has seen of a run, by its own clock, since Redis last
// failed to answer it: the silence of Redis counts for nobody.
type sight struct {
	first, moved time.Time // seen first; seen last with another sign of life
	updated      time.Time
	begun        time.Time // seen first to have begun
	cancel       time.Time // seen first with the wish to cancel it
	ending       time.Time // seen first to be ending
	generation   int64
	due          time.Time // since when its task of this generation is to be claimed
	node         time.Time // the last sign of its node
	nodeMoved    time.Time // seen first with that sign
}

// see notes what rec shows. at is Redis's time.
func (r *Reconciler) see(rec run.Record, at time.Time) *sight {
	now := r.e.p.Now()
	s := r.seen[rec.ID]
	if s == nil {
		s = &sight{first: now, moved: now, updated: rec.Updated, due: now, nodeMoved: now}
		r.seen[rec.ID] = s
	}
	for _, x := range []struct {
		is    bool
		since *time.Time
	}{{rec.Started != nil, &s.begun}, {rec.Cancel, &s.cancel}, {rec.Ending != "", &s.ending}} {
		if x.is && x.since.IsZero() {
			*x.since = now
		}
	}
	if !s.updated.Equal(rec.Updated) {
		s.moved, s.updated = now, rec.Updated
	}
	if s.generation != rec.Generation || rec.Claimed == rec.Generation || waits(rec, at) > 0 {
		s.generation, s.due = rec.Generation, now
	}
	return s
}

// quiet is how long the run has given no sign.
func (r *Reconciler) quiet(rec run.Record, now time.Time, s *sight) time.Duration {
	return max(age(rec.Updated, now), r.e.p.Now().Sub(s.moved))
}

// idle is how long nobody has claimed the run's task, which was to be claimed.
func (r *Reconciler) idle(s *sight) time.Duration { return r.e.p.Now().Sub(s.due) }

// late is how long the run's time has been over, by Redis's clock or by what was seen of
// it: the times of the record may be those of a clock that was ahead.
func (r *Reconciler) late(rec run.Record, now time.Time, s *sight) time.Duration {
	l, since := r.e.p.Limits, s.first
	if rec.Started != nil {
		since = s.begun
	}
	return max(now.Sub(l.deadline(rec, now)), r.e.p.Now().Sub(since)-l.of(rec))
}

func (r *Reconciler) settled(s *sight) bool {
	return r.e.p.Now().Sub(s.first) >= min(patientLook, r.e.p.Limits.CloseAfter)
}

// overdue tells how a run must end that has not begun to: "" is not yet. now is Redis's time.
func (r *Reconciler) overdue(rec run.Record, now time.Time, s *sight) (run.State, string) {
	l := r.e.p.Limits
	tooLong := fmt.Sprintf("the run took longer than alation.backup.chef_timeout (%s): raise it, or find out what was slow", l.of(rec))
	late := r.late(rec, now, s)
	if rec.Committed { // it is about to have its set, whatever was asked for
		if late > l.CloseAfter {
			return run.Failed, tooLong
		}
		// On another node it may be a machine that is starting again; then that goes on from there.
		// Where a clock that was ahead told the last sign, later ones are not to be seen.
		if rec.Node == r.e.p.Node && !rec.Updated.After(now) && r.e.p.Now().Sub(s.moved) > l.CloseAfter {
			return run.Failed, fmt.Sprintf("the attempt that makes the set final has given no sign for %s: its worker is frozen, or its disk hangs", l.CloseAfter)
		}
		return "", ""
	}
	if rec.Cancel {
		since := rec.Updated // by an earlier version
		if rec.CancelSince != nil {
			since = *rec.CancelSince
		}
		// Between two attempts, or waiting to retry, nobody else would; an attempt gets its chance.
		if rec.Claimed != rec.Generation || max(age(since, now), r.e.p.Now().Sub(s.cancel)) > l.grace() {
			return run.Cancelled, "cancelled"
		}
	}
	if late > deadlineGrace && (rec.Started != nil || r.settled(s)) {
		if rec.Started == nil {
			return run.Failed, fmt.Sprintf("no worker began the run within alation.backup.chef_timeout (%s): is its queue paused?", l.of(rec))
		}
		return run.Failed, tooLong
	}
	return "", ""
}

// endingSince is when the run began to end. An earlier version did not note it: then its
// last stage ended.
func endingSince(rec run.Record) time.Time {
	if rec.EndingSince != nil {
		return *rec.EndingSince
	}
	for i := len(rec.Attempts) - 1; i >= 0; i-- {
		if a := rec.Attempts[i]; a.Stage != run.Cleanup && a.Ended != nil {
			return *a.Ended
		}
	}
	return rec.Updated
}

// closeLate closes a run whose cleanup has not ended in time, over whatever lock is
// still held: no attempt can write to a path that a later run uses, and what is left is
// swept once the lock is free. A worker of the run's node looks first whether the set
// stands; the leader, somewhat later, closes without a look.
func (r *Reconciler) closeLate(ctx context.Context, rec run.Record, now time.Time, leader bool, s *sight) error {
	l := r.e.p.Limits
	// What it has seen itself counts too: a host that was ahead may have told the time.
	late := max(now.Sub(endingSince(rec)), r.e.p.Now().Sub(s.ending)) - l.CloseAfter
	own := rec.Node == r.e.p.Node
	if late < 0 || !r.settled(s) || !own && !(leader && late >= l.grace()) {
		return nil
	}
	found := lastLook{why: fmt.Sprintf("no worker of node %s closed it", rec.Node)}
	if rec.Node == "" {
		found.why = "no worker could begin it"
	}
	if own {
		if found = r.lookBeforeClosing(rec); found.set != nil {
			return r.closeStanding(ctx, rec, found.set)
		}
	}
	ending := rec.Ending
	if ending != run.Cancelled {
		ending = run.Failed
	}
	text := r.e.text(fmt.Errorf("closed, since its cleanup had not ended after %s (queue.close_after): %s. %s", l.CloseAfter, found.why, r.remains(rec, found.earlier)))
	n, err := r.e.p.Store.Stop(ctx, rec, rec.Generation, ending, text, true)
	if err != nil || n.Kind != "closed" {
		return err
	}
	r.e.p.Log.WithFields(logrus.Fields{"run": rec.ID, "ending": ending, "error": rec.Error}).Error("the run is " + text)
	r.e.ended(ctx)
	return nil
}

// remains says what a run that was closed leaves, and what to do about it. earlier is the
// staging of a worker of an earlier version.
func (r *Reconciler) remains(rec run.Record, earlier string) string {
	if rec.Node == "" {
		return "It left nothing that is in a later run's way"
	}
	if rec.Node != r.e.p.Node {
		return fmt.Sprintf("What it left on node %s is in no later run's way; a worker there removes it: see that one runs", rec.Node)
	}
	d := r.e.p.Dir
	if earlier != "" {
		return fmt.Sprintf("What it left (%s, the staging of a worker of an earlier version, and %s) refuses every later run until it is removed, as soon as the lock is free: end that worker (`fuser -v %s` names it), with kill -9 if need be",
			earlier, d.RunDir(rec.ID), d.RunDir(rec.ID))
	}
	return fmt.Sprintf("What it left (%s, and what has its id in its name in %s) is in no later run's way, and is removed as soon as the lock is free", d.RunDir(rec.ID), d.Dump)
}

// lastLook is what a reconciler sees of a run that it is about to close.
type lastLook struct {
	set     *set.Manifest // it stands
	why     string        // the cleanup did not end
	earlier string        // the staging of an earlier version's worker; "": none
}

// lookBeforeClosing finds the run's set, or else why its cleanup did not end. It does
// not wait long for the disk.
func (r *Reconciler) lookBeforeClosing(rec run.Record) lastLook {
	got := make(chan lastLook, 1)
	err := r.disk.at("close "+rec.ID, min(closeLook, r.e.p.Limits.CloseAfter), func() error {
		m, err := r.e.p.Dir.Standing(rec.ID, set.ID(rec.Set))
		if err != nil {
			got <- lastLook{why: err.Error()}
		} else {
			got <- lastLook{m, r.stuck(rec), r.e.p.Dir.EarlierStaging(rec.ID)}
		}
		return nil
	})
	if err != nil {
		return lastLook{why: fmt.Sprintf("look at %s and %s: %v; see what hangs there (a network file system, a dying disk)", r.e.p.Dir.Temp, r.e.p.Dir.Dump, err)}
	}
	return <-got
}

// stuck says why a cleanup does not end.
func (r *Reconciler) stuck(rec run.Record) string {
	dir := r.e.p.Dir.RunDir(rec.ID)
	lock, err := r.e.p.Dir.LockToClean(rec.ID)
	switch {
	case errors.Is(err, dump.ErrHeld):
		return fmt.Sprintf("a worker of node %s that is frozen or hangs holds the lock of %s (`fuser -v %s` names it): end it, with kill -9 if need be; until then, or until the next run ends it, its replication slot, if it has one, keeps PostgreSQL's WAL", rec.Node, dir, dir)
	case err != nil:
		return err.Error()
	}
	lock.Release()
	for i := len(rec.Attempts) - 1; i >= 0; i-- {
		if a := rec.Attempts[i]; a.Stage == run.Cleanup && a.Error != nil {
			return *a.Error
		}
	}
	return "no worker came to it"
}

// closeStanding ends a run whose set stands though its cleanup did not end.
func (r *Reconciler) closeStanding(ctx context.Context, rec run.Record, m *set.Manifest) error {
	if err := r.e.p.Store.Note(ctx, rec.ID, rec.Hold(), SetFacts(r.e.p.Dir, m)); err != nil {
		return err
	}
	if err := r.e.p.Store.Cleaned(ctx, rec, rec.Hold(), true); err != nil {
		return err
	}
	r.e.p.Log.WithFields(logrus.Fields{"run": rec.ID, "set": rec.Set}).Warn("the cleanup did not end, but the set is complete: the run succeeded")
	r.e.ended(ctx)
	return nil
}
