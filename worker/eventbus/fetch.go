package eventbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/worker/stage"
)

// fetch asks the leader once for what comes at r.off. The library's own retries
// would hide a dead leader for 20 s and more.
func (r *reader) fetch(ctx context.Context) (*kmsg.FetchResponseTopicPartition, error) {
	req := kmsg.NewPtrFetchRequest()
	// What is to be read is there, or does not come before a transaction ends.
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = 0, 1, r.d.o.FetchBytes, 1
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
			if r.source < 0 {
				r.source = r.leader
			}
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
			if !b.contiguous() {
				r.misses(b.base, b.last()+1)
			}
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
	if b.transactional() {
		r.p.Transactional++
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
	r.moved = r.moved || r.source >= 0 && r.source != r.leader
	r.lost = max(r.lost, resp.LogStartOffset)
	r.stable = max(r.stable, stableEnd(resp))
	if r.first < 0 {
		r.first = r.stable
	}
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
