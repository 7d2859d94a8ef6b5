package eventbus

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// reader reads one partition's batches up to its cut.
type reader struct {
	d      *dumper
	t      *topicWork
	p      *set.Partition
	seg    *segmenter
	leader int32

	off     int64      // to fetch from
	covered int64      // all offsets below are accounted for
	lost    int64      // offsets below, from covered on, were deleted while we read
	holes   set.Ranges // compacted away since the last batch stored
	empty   int        // answers without batches, in a row

	troubled time.Time // since when nothing came, zero if all is well
	tries    int
	badCRC   int
}

// readPartition reads a partition into the segmenter. A topic deleted meanwhile
// is no error: it is marked.
func (d *dumper) readPartition(ctx context.Context, t *topicWork, i int, seg *segmenter) error {
	p := &t.Partitions[i]
	r := &reader{d: d, t: t, p: p, seg: seg, leader: t.leaders[i], off: p.Start, covered: p.Start}
	seg.begin(t.Name, p)
	for r.off < p.Cut && !t.gone.Load() {
		if ctx.Err() != nil {
			return fmt.Errorf("eventbus: %w", context.Cause(ctx))
		}
		trouble, err := r.step(ctx)
		if err != nil {
			return err
		}
		if trouble == nil {
			r.troubled, r.tries = time.Time{}, 0
			continue
		}
		if err := r.wait(ctx, trouble); err != nil {
			return err
		}
	}
	if t.gone.Load() {
		return nil
	}
	if err := r.account(p.Cut); err != nil {
		return err
	}
	for _, h := range r.holes {
		p.CompactedAway.Add(h.From, h.To)
	}
	return seg.flush(ctx)
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
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = r.t.Name, r.t.id
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = r.p.ID, r.off, r.d.o.FetchBytes
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
	case start.Offset <= r.off:
		return fmt.Errorf("the log begins at %d and has no such offset: it was cut off behind, or the topic was made anew", start.Offset), nil
	}
	r.lost = min(start.Offset, r.p.Cut)
	r.off = r.lost
	return nil, nil
}

// take stores the batches of an answer, without control batches and aborted
// transactions. A batch that cannot be read is trouble only if none came before it.
func (r *reader) take(ctx context.Context, resp *kmsg.FetchResponseTopicPartition) (trouble, err error) {
	aborted := newAborted(resp.AbortedTransactions)
	in := resp.RecordBatches
	moved := false
	for len(in) > 0 && r.off < r.p.Cut {
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
		moved, r.empty, r.badCRC = true, 0, 0
		if err := r.account(min(b.base, r.p.Cut)); err != nil {
			return nil, err
		}
		if b.base >= r.p.Cut {
			r.off = r.p.Cut
			break
		}
		from := max(b.base, r.covered)
		r.off, r.covered = b.last()+1, b.last()+1
		if drop || b.count == 0 {
			r.p.Dropped.Add(from, min(r.covered, r.p.Cut))
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
		for _, h := range r.holes {
			r.p.CompactedAway.Add(h.From, h.To)
		}
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

// nothing judges an answer without any batch to take, below the cut.
func (r *reader) nothing(resp *kmsg.FetchResponseTopicPartition) (trouble, err error) {
	end := resp.LastStableOffset
	if end < 0 {
		end = resp.HighWatermark
	}
	if end < r.p.Cut {
		// A new leader may be behind for a moment.
		return fmt.Errorf("the log ends at %d, before the cut %d: data was lost", end, r.p.Cut), nil
	}
	// Nothing is left up to the end of the log. Once more, to be sure.
	if r.empty++; r.empty < 3 {
		return nil, nil
	}
	r.off = r.p.Cut
	return nil, nil
}

// account explains the offsets from covered up to to, which no batch has:
// deleted while we read, or compacted away, or missing.
func (r *reader) account(to int64) error {
	if r.covered >= to {
		return nil
	}
	from := r.covered
	r.covered = to
	if deleted := min(r.lost, to); deleted > from {
		if err := r.gap(from, deleted, "deleted while the backup ran (retention or DeleteRecords)"); err != nil {
			return err
		}
		from = deleted
	}
	if from >= to {
		return nil
	}
	if r.p.Compacted {
		r.holes.Add(from, to)
		return nil
	}
	return r.gap(from, to, "missing in the broker's log, though the topic is not compacted now")
}

// gap records lost offsets, or fails where gaps are not allowed.
func (r *reader) gap(from, to int64, reason string) error {
	if !r.d.o.AllowGaps {
		return stage.Permanentf("eventbus: topic %s partition %d: offsets %d to %d are %s; run the backup again, or set eventbus.allow_gaps to take the set with a warning",
			r.t.Name, r.p.ID, from, to-1, reason)
	}
	r.p.Gaps = append(r.p.Gaps, set.Gap{From: from, To: to, Reason: reason})
	r.d.warn("topic %s partition %d: offsets %d to %d are not in the set: %s", r.t.Name, r.p.ID, from, to-1, reason)
	return nil
}

// abortedTxns finds the batches of aborted transactions as Kafka's consumer
// does (org.apache.kafka.clients.consumer.internals.CompletedFetch): each
// answer lists those that reach into it.
type abortedTxns struct {
	list   []kmsg.FetchResponseTopicPartitionAbortedTransaction
	active map[int64]bool // producers within an aborted transaction
}

func newAborted(list []kmsg.FetchResponseTopicPartitionAbortedTransaction) *abortedTxns {
	sort.Slice(list, func(i, j int) bool { return list[i].FirstOffset < list[j].FirstOffset })
	return &abortedTxns{list, map[int64]bool{}}
}

// drops tells whether the answer's next batch is no data of a reader of committed
// records, and whether that is because its transaction was aborted.
func (a *abortedTxns) drops(b batch) (drop, aborted bool) {
	for len(a.list) > 0 && a.list[0].FirstOffset <= b.last() {
		a.active[a.list[0].ProducerID] = true
		a.list = a.list[1:]
	}
	switch {
	case b.control():
		if isAbortMarker(b) {
			delete(a.active, b.producerID)
		}
		return true, false
	case b.transactional() && a.active[b.producerID]:
		return true, true
	}
	return false, false
}
