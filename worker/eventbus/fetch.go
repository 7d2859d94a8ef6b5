package eventbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

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
	compacts bool // the topic's policy explains every hole

	off     int64 // to fetch from
	end     int64 // to read to; rises with stable while the partition is compacted
	stable  int64 // the highest last stable offset of any answer
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

func (d *dumper) newReader(t *topicWork, i int) *reader {
	p := &t.Partitions[i]
	return &reader{d: d, t: t, p: p, leader: t.leaders[i], compacts: t.policy.compact(), off: p.Start, covered: p.Start, end: p.Listed, epoch: -1, began: d.o.Now()}
}

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

// fetch asks the leader once for what comes at r.off. The library's own retries
// would hide a dead leader for 20 s and more.
func (r *reader) fetch(ctx context.Context) (*kmsg.FetchResponseTopicPartition, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = 500, 1, r.d.o.FetchBytes, 1
	if r.off >= r.end {
		req.MaxWaitMillis = 0 // nothing need come any more
	}
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = r.t.Name, r.t.id
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = r.p.ID, r.off, r.d.o.FetchBytes
	if r.off == r.covered {
		rp.LastFetchedEpoch = r.epoch // the broker compares it with its own log
	}
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	kresp, err := r.d.Broker(int(r.leader)).Request(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := kresp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, errNoAnswer
	}
	p := &resp.Topics[0].Partitions[0]
	return p, kerr.ErrorForCode(p.ErrorCode)
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

// step fetches once and takes what came. trouble may pass with time, err does not.
func (r *reader) step(ctx context.Context) (trouble, err error) {
	resp, ferr := r.fetch(ctx)
	switch {
	case ferr == nil:
		return r.take(ctx, resp)
	case errors.Is(ferr, kerr.OffsetOutOfRange):
		return r.outOfRange(ctx)
	case isUnknownTopic(ferr):
		if err := r.d.confirmGone(ctx, r.t); stage.IsPermanent(err) {
			return nil, err
		}
		return ferr, nil
	}
	if ferr = r.d.explain(ferr); stage.IsPermanent(ferr) {
		return nil, r.errorf("%w", ferr)
	}
	return ferr, nil
}

// outOfRange goes on where the log now begins. What was deleted is a gap, unless
// the batch that comes next reaches back over it.
func (r *reader) outOfRange(ctx context.Context) (trouble, err error) {
	lctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	listed, lerr := r.d.adm.ListStartOffsets(lctx, r.t.Name)
	start, ok := listed.Lookup(r.t.Name, r.p.ID)
	switch {
	case lerr != nil:
		return lerr, nil
	case !ok:
		return errNoAnswer, nil
	case start.Err != nil:
		return start.Err, nil
	case start.Offset == r.off && r.epoch >= 0:
		r.epoch = -1 // the broker has forgotten it with the records
		return nil, nil
	case start.Offset <= r.off:
		return fmt.Errorf("the log begins at %d and has no such offset: it was cut off behind, or the topic was made anew", start.Offset), nil
	}
	r.lost = start.Offset
	r.off = min(start.Offset, r.end)
	return nil, nil
}

// take stores the batches of an answer, without control batches and aborted
// transactions. A batch that cannot be read is trouble only if none came before it.
func (r *reader) take(ctx context.Context, resp *kmsg.FetchResponseTopicPartition) (trouble, err error) {
	aborted := newAborted(resp.AbortedTransactions)
	in := resp.RecordBatches
	moved := false
	if e := resp.DivergingEpoch; e.EndOffset >= 0 {
		return nil, fmt.Errorf("eventbus: topic %s partition %d: the log was cut back to offset %d by another leader (unclean election), and %d were read: what was read is not what is there now; run the backup again",
			r.t.Name, r.p.ID, e.EndOffset, r.off)
	}
	r.heard(resp)
	for len(in) > 0 && r.off < r.end {
		b, perr := parseBatch(in)
		if perr != nil {
			if moved {
				return nil, nil
			}
			return r.unreadable(perr)
		}
		in = in[len(b.raw):]
		drop, isAborted := aborted.drops(b)
		if b.last() < r.off {
			continue
		}
		if b.base < r.covered && r.covered > r.p.Start {
			return nil, r.errorf("the batch of offsets %d to %d overlaps the one before: the broker's log is damaged; check the topic", b.base, b.last())
		}
		if !moved {
			r.answers++
		}
		moved, r.empty, r.badCRC = true, 0, 0
		if err := r.account(min(b.base, r.end)); err != nil {
			return nil, err
		}
		if b.base >= r.end {
			r.off = r.end
			break
		}
		if b.cleaned() {
			r.unsure = true
			r.proved()
		}
		from := max(b.base, r.covered)
		r.off, r.covered, r.epoch = b.last()+1, b.last()+1, b.epoch
		if drop || b.count == 0 {
			r.p.Dropped.Add(from, min(r.covered, r.end))
			if b.control() {
				r.p.ControlBatches++
			} else if isAborted {
				r.p.AbortedRecords += int64(b.count)
			}
			continue
		}
		if err := r.store(ctx, b); err != nil {
			return nil, err
		}
	}
	if !moved {
		return r.nothing(resp)
	}
	return nil, nil
}

// unreadable judges a batch that could not be parsed.
func (r *reader) unreadable(perr error) (trouble, err error) {
	switch {
	case errors.Is(perr, errShort):
		return perr, nil // brokers since Kafka 0.10.1 send the first batch whole
	case errors.Is(perr, errOldMagic):
		return nil, r.errorf("%w cannot be backed up; let the topic's old segments be deleted or copy it into a new topic", perr)
	}
	// Damage on the way is gone at the next try, damage in the log is not.
	if r.badCRC++; r.badCRC < 3 {
		return perr, nil
	}
	return nil, r.errorf("%w: the broker's log is damaged; restore the partition from another replica", perr)
}

// store hands a batch to the segmenter and counts it.
func (r *reader) store(ctx context.Context, b batch) error {
	if r.seg.full(b) {
		r.listHoles()
	}
	r.holes = r.holes[:0]
	if err := r.seg.add(ctx, b); err != nil {
		return err
	}
	if !b.contiguous() {
		r.p.BatchesWithHoles++
	}
	r.p.Batches++
	r.p.Records += int64(b.count)
	r.p.Bytes += int64(len(b.raw))
	r.p.MaxBatch = max(r.p.MaxBatch, len(b.raw))
	r.t.saw(b.maxTime)
	r.d.progress.Add(int64(len(b.raw)))
	return nil
}

// heard takes note of how far the log goes. The last stable offset of an answer
// was taken before its records were read, so it says nothing about what the cleaner
// did to these: the next answer's does.
func (r *reader) heard(resp *kmsg.FetchResponseTopicPartition) {
	r.unsure = false
	r.lost = max(r.lost, resp.LogStartOffset)
	r.stable = max(r.stable, stableEnd(resp))
	if r.p.Compacted {
		r.end = max(r.end, r.stable)
	}
}

// stableEnd is the last stable offset, which brokers before Kafka 0.11 do not tell.
func stableEnd(resp *kmsg.FetchResponseTopicPartition) int64 {
	if resp.LastStableOffset < 0 {
		return resp.HighWatermark
	}
	return resp.LastStableOffset
}

// nothing judges an answer without any batch to take.
func (r *reader) nothing(resp *kmsg.FetchResponseTopicPartition) (trouble, err error) {
	stable := stableEnd(resp)
	switch {
	case r.off >= r.end:
		return nil, nil
	case stable > r.off:
		// Nothing is left up to there. Once more, to be sure.
		if r.empty++; r.empty >= 3 {
			r.off, r.empty = min(stable, r.end), 0
		}
		return nil, nil
	case resp.HighWatermark < r.p.Listed || stable < r.stable:
		// A new leader may be behind for a moment.
		return fmt.Errorf("the log ends at %d, before %d that was there: data was lost", stable, r.end), nil
	case r.giveUp:
		r.end = r.off
		r.d.warn("topic %s partition %d: an open transaction holds back offsets %d to %d; they are not in the set", r.t.Name, r.p.ID, r.end, r.p.Listed-1)
		return nil, nil
	}
	return errHeld, nil
}
