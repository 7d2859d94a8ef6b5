package eventbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// reader reads one partition's batches up to its end: the watermark listed at the
// cut, or of a compacted partition the point where it has caught up with the log
// (docs/set-format.md, "Where a partition ends").
type reader struct {
	d        *dumper
	t        *topicWork
	p        *set.Partition
	seg      *segmenter
	leader   int32
	source   int32 // who gave the first batch; -1 before
	moved    bool  // another broker answered after it
	compacts bool  // the topic's policy explains every hole

	off     int64 // to fetch from
	end     int64 // to read to; rises with stable while the partition is compacted
	stable  int64 // the highest last stable offset of any answer
	first   int64 // that of the first answer; -1 before it
	renewed int64 // the first offset that is missing though it was not yet stable then; -1: none
	covered int64 // all offsets below are accounted for
	lost    int64 // offsets below, from covered on, were deleted while we read
	epoch   int32 // of the leader that wrote what ends at covered; -1: unknown

	holes    set.Ranges // since the last batch stored
	unproved set.Ranges // not explained yet
	between  set.Ranges // of those, the ones before a batch that began a segment
	unsure   bool       // the last answer has holes: made, maybe, by records beyond its stable offset

	began   time.Time // of the first fetch
	reached time.Time // when all that was listed was read
	answers int       // that brought batches
	giveUp  bool      // take the end where a transaction is still open
	empty   int       // answers without batches, in a row

	troubled time.Time // since when nothing came, zero if all is well
	tries    int
	badCRC   int
}

// newReader begins a try. That the policy compacts, or did at an earlier try,
// explains the holes.
func (d *dumper) newReader(j *job) *reader {
	t, p := j.t, j.partition()
	j.compacts = j.compacts || t.policy.compact()
	return &reader{d: d, t: t, p: p, leader: t.leaders[j.i], compacts: j.compacts, off: p.Start, covered: p.Start, end: p.Listed, first: -1, renewed: -1, source: -1, epoch: -1, began: d.o.Now()}
}

// errMoved says that a reader stopped because another broker leads the partition.
var errMoved = errors.New("another broker leads the partition")

// errHeld says that only an open transaction keeps a reader from going on.
var errHeld = errors.New("a transaction is open")

// run reads a partition into the segmenter, to its end or, with errHeld, as far as
// an open transaction lets it. A topic deleted meanwhile is no error: it is marked.
func (r *reader) run(ctx context.Context, seg *segmenter, try int) error {
	r.seg = seg
	seg.begin(r.t.Name, r.p, try)
	for !r.t.gone.Load() {
		if ctx.Err() != nil {
			return fmt.Errorf("eventbus: %w", context.Cause(ctx))
		}
		if done, err := r.done(ctx); err != nil {
			return err
		} else if done {
			r.p.Cut, r.p.HighWatermark = r.end, max(r.p.Listed, r.end)
			return seg.flush(ctx)
		}
		trouble, err := r.step(ctx)
		switch {
		case err != nil:
			return err
		case r.moved && r.p.Compacted && try < maxTries:
			return errMoved // what is left need not be read
		case trouble == nil:
			r.troubled, r.tries = time.Time{}, 0
		case errors.Is(trouble, errHeld):
			r.troubled, r.tries = time.Time{}, 0
			if err := seg.flush(ctx); err != nil {
				return err
			}
			return errHeld
		default:
			if err := r.wait(ctx, trouble); err != nil {
				return err
			}
		}
	}
	return nil
}

// done tells whether the partition is read, and settles its holes.
func (r *reader) done(ctx context.Context) (bool, error) {
	if r.off < r.end || r.p.Compacted && r.unsure {
		return false, r.checkPace()
	}
	if err := r.account(r.end); err != nil {
		return false, err
	}
	if err := r.judge(ctx); err != nil {
		return false, err
	}
	if r.off < r.end || r.p.Compacted && r.unsure {
		return false, nil // holes of compaction: it goes on until it has caught up
	}
	for _, h := range r.holes {
		r.p.CompactedAway.Add(h.From, h.To)
	}
	r.holes = r.holes[:0]
	switch {
	case r.end < r.p.Listed:
		r.p.EndedBy = set.ByTransaction
	case r.p.Compacted:
		r.p.EndedBy = set.ByCatchingUp
	default:
		r.p.EndedBy = set.ByCut
	}
	return true, nil
}

// errorf is a permanent error at the place where the reader is.
func (r *reader) errorf(format string, args ...any) error {
	return stage.Permanentf("eventbus: topic %s partition %d offset %d: %w", r.t.Name, r.p.ID, r.off, fmt.Errorf(format, args...))
}

// wait lets some time pass after trouble and asks who leads the partition now.
func (r *reader) wait(ctx context.Context, trouble error) error {
	r.tries++
	if r.troubled.IsZero() {
		r.troubled = time.Now()
	}
	if lasted := time.Since(r.troubled); lasted > r.d.o.Budget {
		return fmt.Errorf("eventbus: topic %s partition %d offset %d: nothing could be read for %s: %w; see to the broker that leads the partition",
			r.t.Name, r.p.ID, r.off, lasted.Round(time.Second), trouble)
	}
	if err := pause(ctx, r.tries); err != nil {
		return fmt.Errorf("eventbus: %w", err)
	}
	mctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	md, err := r.d.metadata(mctx, r.t.Name)
	if err != nil {
		if stage.IsPermanent(err) {
			return err
		}
		return nil // the next fetch fails too and tells why
	}
	now := md.Topics[r.t.Name]
	if err := r.d.same(r.t, now.ID); err != nil {
		return err
	}
	if p, ok := now.Partitions[r.p.ID]; ok && p.Leader >= 0 {
		r.leader = p.Leader
	}
	return nil
}

// caughtUpIn is how long a reader may take to catch up with a partition's writers
// at least, after it has read what was listed.
const caughtUpIn = 10 * time.Minute

// checkPace ends the chase of writers that are faster than the dump. To catch up
// with writers half as fast takes as long as the reading before it.
func (r *reader) checkPace() error {
	now := r.d.o.Now()
	switch {
	case !r.p.Compacted || r.off < r.p.Listed:
	case r.reached.IsZero():
		r.reached = now
	case now.Sub(r.reached) > r.reached.Sub(r.began)+caughtUpIn:
		return fmt.Errorf("eventbus: topic %s partition %d: it is compacted and written to faster than it can be read: %d offsets are left after %s; run the backup when less is published, or raise the quota of its user",
			r.t.Name, r.p.ID, r.end-r.off, now.Sub(r.began).Round(time.Second))
	}
	return nil
}
