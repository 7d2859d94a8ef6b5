package eventbus

import (
	"encoding/hex"
	"fmt"

	"catalog-backup/shared/set"
)

// checkManifest reports what in the bus part of a manifest contradicts itself.
// What it passes can be used without fear: names are safe, partitions are
// numbered from 0, segments lie in order, and every offset of [Start, Cut) is in
// a segment, in a dropped range, compacted away, or in a gap.
func checkManifest(e *set.EventBus, report func(set.Damage)) {
	seen := map[string]bool{}
	cuts := map[string]map[int32]int64{}
	for i := range e.Topics {
		t := &e.Topics[i]
		where := "event bus topic " + t.Name
		if err := checkTopicName(t.Name); err != nil {
			report(set.Damage{Entry: "manifest", Problem: err.Error()})
			continue
		}
		if seen[t.Name] {
			report(set.Damage{Entry: where, Problem: "the manifest has the topic twice"})
			continue
		}
		seen[t.Name] = true
		if len(t.Partitions) == 0 || t.ReplicationFactor < 1 {
			report(set.Damage{Entry: where, Problem: "the manifest has no partition or no replica of the topic"})
		}
		cuts[t.Name] = map[int32]int64{}
		for j := range t.Partitions {
			p := &t.Partitions[j]
			cuts[t.Name][p.ID] = p.Cut
			if p.ID != int32(j) {
				report(set.Damage{Entry: where, Problem: fmt.Sprintf("partition %d stands where %d belongs", p.ID, j)})
				continue
			}
			for _, problem := range partitionProblems(t.Name, p) {
				report(set.Damage{Entry: fmt.Sprintf("%s partition %d", where, p.ID), Problem: problem})
			}
		}
	}
	checkPositions(e.Groups, cuts, report)
	for _, s := range e.Discarded {
		if !isSHA256(s.SHA256) || s.Bytes < batchHeader {
			report(set.Damage{Entry: s.Entry, Problem: "the manifest's size or SHA-256 of a discarded segment is impossible"})
		}
	}
}

// checkPositions wants every position up to its partition's cut, or flagged.
func checkPositions(groups []set.Group, cuts map[string]map[int32]int64, report func(set.Damage)) {
	seen := map[string]bool{}
	for _, g := range groups {
		where := fmt.Sprintf("event bus group %q", g.Name)
		if seen[g.Name] {
			report(set.Damage{Entry: where, Problem: "the manifest has the group twice"})
		}
		seen[g.Name] = true
		for _, o := range g.Offsets {
			cut, ok := cuts[o.Topic][o.Partition]
			if o.Offset < 0 || ok && (o.Offset > cut) != o.BeyondCut {
				report(set.Damage{Entry: where, Problem: fmt.Sprintf("position %d in %s/%d does not fit the cut %d", o.Offset, o.Topic, o.Partition, cut)})
			}
		}
	}
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}

// partitionProblems checks one partition's offsets, counts and segments.
func partitionProblems(topic string, p *set.Partition) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if p.Start < 0 || p.Cut < p.Start || p.HighWatermark < p.Cut {
		bad("start %d, cut %d and high watermark %d do not rise", p.Start, p.Cut, p.HighWatermark)
		return problems
	}
	if !endFits(p) {
		bad("its end %d does not fit %q and the watermark %d at the cut", p.Cut, p.EndedBy, p.Listed)
	}
	var batches, records, bytes int64
	last := int64(-1)
	for _, s := range p.Segments {
		batches, records, bytes = batches+s.Batches, records+s.Records, bytes+s.Bytes
		if try := tryOf(s, topic, p.ID); try == 0 || try != tryOf(p.Segments[0], topic, p.ID) {
			bad("segment %q is not named after its topic, partition and base offset %d", s.Entry, s.Base)
		}
		if s.Base <= last || s.Last < s.Base || s.Last < p.Start || s.Base >= p.Cut {
			bad("segment of offsets %d to %d does not fit after %d in [%d, %d)", s.Base, s.Last, last, p.Start, p.Cut)
		}
		if s.Batches < 1 || s.Records < 1 || s.Bytes < batchHeader || !isSHA256(s.SHA256) {
			bad("segment %d has impossible counts or SHA-256", s.Base)
		}
		last = max(last, s.Last)
	}
	if batches != p.Batches || records != p.Records || bytes != p.Bytes {
		bad("%d batches, %d records, %d bytes are stated, its segments sum up to %d, %d, %d", p.Batches, p.Records, p.Bytes, batches, records, bytes)
	}
	at := p.Start
	for _, g := range p.Gaps {
		if g.From < at || g.To <= g.From || g.To > p.Cut {
			bad("the gap %d to %d does not fit after %d in [%d, %d)", g.From, g.To-1, at, p.Start, p.Cut)
		}
		at = max(at, g.To)
	}
	if !p.Compacted && len(p.CompactedAway) > 0 {
		bad("offsets are said to be compacted away though the topic is not compacted")
	}
	if len(problems) == 0 {
		t := newTiling(p)
		for _, s := range p.Segments {
			if from, to, ok := t.hole(s.Base); ok {
				bad("offsets %d to %d are neither in a segment nor accounted for", from, to-1)
			}
			t.cover(s.Last + 1)
		}
		if from, to, ok := t.hole(p.Cut); ok {
			bad("offsets %d to %d are neither in a segment nor accounted for", from, to-1)
		}
	}
	return problems
}

// endFits compares a partition's end with the rule that it is said to end by.
// Sets made before that was noted name none.
func endFits(p *set.Partition) bool {
	switch p.EndedBy {
	case "":
		return p.Listed == 0
	case set.ByCut:
		return p.Cut == p.Listed
	case set.ByCatchingUp:
		return p.Compacted && p.Cut >= p.Listed
	case set.ByTransaction:
		return p.Cut < p.Listed
	}
	return true // a later version's
}

// tiling walks over a partition's offsets and tells which are not accounted for.
type tiling struct {
	at, cut       int64
	dropped, away []set.Range
	gaps          []set.Gap
	di, ai, gi    int // the first of each that does not end before at
}

func newTiling(p *set.Partition) *tiling {
	return &tiling{at: p.Start, dropped: p.Dropped, away: p.CompactedAway, gaps: p.Gaps, cut: p.Cut}
}

// cover says that all offsets below to are stored.
func (t *tiling) cover(to int64) { t.at = max(t.at, to) }

// hole moves up to offset to and returns the first range on the way that no list
// explains.
func (t *tiling) hole(to int64) (from, end int64, found bool) {
	to = min(to, t.cut)
	for t.at < to {
		next, ok := t.step()
		if !ok {
			from = t.at
			t.at = min(to, t.nextListed())
			return from, t.at, true
		}
		t.at = next
	}
	return 0, 0, false
}

// step finds the listed range that holds t.at and returns its end.
func (t *tiling) step() (int64, bool) {
	for t.di < len(t.dropped) && t.dropped[t.di].To <= t.at {
		t.di++
	}
	if t.di < len(t.dropped) && t.dropped[t.di].From <= t.at {
		return t.dropped[t.di].To, true
	}
	for t.ai < len(t.away) && t.away[t.ai].To <= t.at {
		t.ai++
	}
	if t.ai < len(t.away) && t.away[t.ai].From <= t.at {
		return t.away[t.ai].To, true
	}
	for t.gi < len(t.gaps) && t.gaps[t.gi].To <= t.at {
		t.gi++
	}
	if t.gi < len(t.gaps) && t.gaps[t.gi].From <= t.at {
		return t.gaps[t.gi].To, true
	}
	return 0, false
}

// nextListed is where the next listed range begins after t.at.
func (t *tiling) nextListed() int64 {
	next := t.cut
	if t.di < len(t.dropped) {
		next = min(next, t.dropped[t.di].From)
	}
	if t.ai < len(t.away) {
		next = min(next, t.away[t.ai].From)
	}
	if t.gi < len(t.gaps) {
		next = min(next, t.gaps[t.gi].From)
	}
	return next
}
