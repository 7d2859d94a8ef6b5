package eventbus

import (
	"context"
	"slices"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// What a hole in a partition's offsets means.
//
// Producers leave none: a broker takes only batches whose offsets are all in use,
// and gives the next batch the next offset. So a hole was deleted by retention
// (the log begins after it), taken by compaction, or lost by the broker. Compaction
// never lets a log begin later: the segment that it makes is named after the first
// of those that it takes, whatever is left in it.
//
// A topic whose policy compacts explains every hole. One that was compacted once
// and deletes now still has its holes. The cleaner goes from the log's beginning
// up to some offset, and a batch that it has rewritten (batch.cleaned) proves that
// it has been beyond everything below: those holes are compaction's too. For a
// hole above the last such batch there is no proof: batches of one record each
// vanish whole, as does a segment file that someone removed. It counts as lost.
//
// A partition that shows holes of compaction may have been compacted while it was
// read, whatever its policy says before and after. So it ends by catching up, as
// those whose policy compacts do.

// account explains the offsets from covered up to to, which no batch has.
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
	r.unsure = true
	r.misses(from, to)
	r.holes.Add(from, to)
	if !r.compacts {
		r.unproved.Add(from, to)
	}
	return nil
}

// misses notes where the cleaner has been at records that are newer than the first
// answer: it may have taken tombstones that the dump never saw.
func (r *reader) misses(from, to int64) {
	if r.renewed < 0 && to > r.first {
		r.renewed = max(from, r.first)
	}
}

// proved notes that compaction explains all holes so far.
func (r *reader) proved() {
	for _, h := range slices.Concat(r.between, r.holes) {
		r.p.CompactedAway.Add(h.From, h.To)
	}
	r.between, r.holes, r.unproved = nil, r.holes[:0], nil
	r.catchUp()
}

// catchUp makes the partition one that ends by catching up with its log.
func (r *reader) catchUp() {
	r.p.Compacted = true
	r.end = max(r.end, r.stable)
}

// listHoles lists the holes before a batch that begins a segment: only between the
// batches of one segment need they not be listed.
func (r *reader) listHoles() {
	to := &r.p.CompactedAway
	if len(r.unproved) > 0 {
		to = &r.between
	}
	for _, h := range r.holes {
		to.Add(h.From, h.To)
	}
}

// judge decides on the holes that nothing in the log explains, when all is read.
// The policy may have begun to compact since the survey.
func (r *reader) judge(ctx context.Context) error {
	if len(r.unproved) == 0 {
		return nil
	}
	configs, _, err := r.d.topicConfigs(ctx, []string{r.t.Name})
	if err != nil {
		return err
	}
	if c, ok := configs[r.t.Name]; ok && policyOf(c).compact() {
		r.compacts = true
		r.proved()
		return nil
	}
	for _, h := range r.unproved {
		if err := r.gap(h.From, h.To, "missing in the broker's log, and nothing in it shows that compaction took them"); err != nil {
			return err
		}
	}
	r.between, r.holes, r.unproved = nil, r.holes[:0], nil
	r.catchUp() // allowed, and it may have been compaction after all
	slices.SortFunc(r.p.Gaps, func(a, b set.Gap) int { return int(min(1, max(-1, a.From-b.From))) })
	return nil
}

// gap records lost offsets, or fails where gaps are not allowed.
func (r *reader) gap(from, to int64, reason string) error {
	if !r.d.o.allows(r.t.Name) {
		return stage.Permanentf("eventbus: topic %s partition %d: offsets %d to %d are %s; run the backup again, or set eventbus.allow_gaps_in to [%s] to take the set with a warning",
			r.t.Name, r.p.ID, from, to-1, reason, r.t.Name)
	}
	r.p.Gaps = append(r.p.Gaps, set.Gap{From: from, To: to, Reason: reason})
	r.d.warn("topic %s partition %d: offsets %d to %d are not in the set: %s", r.t.Name, r.p.ID, from, to-1, reason)
	return nil
}
