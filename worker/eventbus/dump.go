package eventbus

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// dumper is one dump under way.
type dumper struct {
	*client
	progress stage.Progress
	anew     map[string]bool // topics made anew since their positions were read
	turn     sync.Mutex      // of the sink
	cutAt    time.Time
	told     time.Time // when the log was last told what is waited for

	mu        sync.Mutex // of what follows
	f         stage.Findings
	discarded []set.Segment // of tries that were given up
}

// Dump writes the bus up to the cut, taken now, into the sink. Positions must
// have been read before. It fails for good on a gap, a hidden topic, a topic
// made anew meanwhile, a transaction that stays open and old record formats; a bus
// that is away is waited for, partition by partition, as long as the budget says.
//
// A topic deleted while it is read leaves the set, with a warning; what the sink
// has of it is listed in Discarded. One deleted after it was read stays in the
// set, as it was at the cut, with a warning.
func Dump(ctx context.Context, o Options, pos *Positions, sink Sink, p stage.Progress) (*set.EventBus, stage.Findings, error) {
	if pos == nil {
		return nil, stage.Findings{}, stage.Permanentf("eventbus: the consumers' positions were not read before the dump; run the backup again")
	}
	o = o.withDefaults()
	c, err := connect(ctx, o, o.Budget)
	if err != nil {
		return nil, stage.Findings{}, err
	}
	defer c.Close()
	d := &dumper{client: c, progress: p, anew: map[string]bool{}}
	e, err := d.dump(ctx, pos, sink)
	if err != nil {
		return nil, d.f, err
	}
	return e, d.f, nil
}

func (d *dumper) dump(ctx context.Context, pos *Positions, sink Sink) (*set.EventBus, error) {
	s, topics, err := d.cut(ctx, pos)
	if err != nil {
		return nil, err
	}
	e := &set.EventBus{
		Tool: set.Tool{Name: "franz-go", Version: libraryVersion()}, ClusterID: s.cluster, BrokerVersion: d.brokerVersion(ctx), CutAt: d.cutAt.UTC(),
		PositionsAt: pos.At, Topics: []set.Topic{}, Groups: []set.Group{}, Discarded: []set.Segment{},
	}
	e.ACLs = d.acls(ctx, &d.f)
	if n := s.bytes(); n > 0 {
		d.progress.Total(n)
	}
	if err := d.readAll(ctx, topics, s, sink); err != nil {
		return nil, err
	}
	if err := d.settle(ctx, topics, e); err != nil {
		return nil, err
	}
	e.Discarded = append(e.Discarded, d.discarded...)
	e.Groups = d.flagPositions(pos.Groups, e.Topics)
	e.DoneAt = d.o.Now().UTC()
	return e, nil
}

// begin makes the work list, and compares the topics with those that the
// positions were read of.
func (d *dumper) begin(s *survey, pos *Positions) ([]*topicWork, error) {
	var topics []*topicWork
	now := map[string]bool{}
	for _, td := range s.topics {
		t := newTopicWork(td, s.configs[td.Topic])
		now[td.Topic] = true
		if old := pos.Topics[td.Topic]; old != "" && old != t.ID && d.o.allows(td.Topic) {
			d.warn("topic %s was deleted and created again since the run began; the set has the new one, without positions of consumers", td.Topic)
			d.anew[td.Topic] = true
		} else if old != "" && old != t.ID {
			return nil, stage.Permanentf("eventbus: topic %s was deleted and created again since the run began: the consumers' positions are of the old one; run the backup again", td.Topic)
		}
		topics = append(topics, t)
	}
	for old := range pos.Topics {
		if !now[old] && d.o.wants(old) {
			d.warn("topic %s was deleted while the run went on; it is not in the set", old)
		}
	}
	if len(topics) == 0 {
		d.f.Note("eventbus: the bus has no topics")
	}
	return topics, nil
}

func (d *dumper) warn(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.f.Warn("eventbus: "+format, args...)
}

// eachAtOnce lets n workers take the items in turn. The first error cancels the
// others and is returned.
func eachAtOnce[T any](ctx context.Context, n int, items []T, work func(ctx context.Context, next func() (T, bool)) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var first error
	next := func() (item T, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(items) == 0 || first != nil || ctx.Err() != nil {
			return item, false
		}
		item, items = items[0], items[1:]
		return item, true
	}
	var wg sync.WaitGroup
	for range min(n, len(items)) {
		wg.Go(func() {
			if err := work(ctx, next); err != nil {
				mu.Lock()
				if first == nil {
					first = err
					cancel(err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if first == nil && ctx.Err() != nil {
		return fmt.Errorf("eventbus: %w", context.Cause(ctx))
	}
	return first
}

// settle looks at the topics once more and moves them into the set.
func (d *dumper) settle(ctx context.Context, topics []*topicWork, e *set.EventBus) error {
	for _, t := range topics {
		if t.gone.Load() {
			what := "deleted"
			if t.anew.Load() {
				what = "deleted and created again"
			}
			d.warn("topic %s was %s while it was read; it is not in the set", t.Name, what)
			for _, p := range t.Partitions {
				e.Discarded = append(e.Discarded, p.Segments...)
			}
			continue
		}
		if ms := t.newest.Load(); ms >= 0 {
			at := time.UnixMilli(ms).UTC()
			t.NewestTimestamp = &at
		}
		e.Topics = append(e.Topics, t.Topic)
	}
	if len(topics) == 0 {
		return nil
	}
	md, err := d.metadata(ctx)
	if err != nil {
		return err
	}
	for _, t := range topics {
		now, ok := md.Topics[t.Name]
		ok = ok && !isUnknownTopic(now.Err)
		if t.anew.Load() || t.gone.Load() && !ok {
			continue
		}
		if !ok {
			if err := d.confirmGone(ctx, t); err != nil {
				return err
			}
			if t.gone.Load() {
				d.warn("topic %s was deleted while the backup ran, after it had been read; the set has it as it was at the cut", t.Name)
			}
			continue
		}
		left := t.gone.Load() // the set already, with a warning
		if err := d.same(t, now.ID); err != nil {
			return err
		}
		if t.anew.Load() && !left {
			d.warn("topic %s was deleted and created again while the backup ran, after it had been read; the set has the old one as it was at the cut", t.Name)
		}
	}
	return nil
}

// flagPositions marks positions after the cut: their readers read uncommitted records.
func (d *dumper) flagPositions(groups []set.Group, topics []set.Topic) []set.Group {
	cuts := map[string]map[int32]int64{}
	for _, t := range topics {
		cuts[t.Name] = map[int32]int64{}
		for _, p := range t.Partitions {
			cuts[t.Name][p.ID] = p.Cut
		}
	}
	out := make([]set.Group, 0, len(groups))
	for _, g := range groups {
		offsets := make([]set.GroupOffset, 0, len(g.Offsets))
		for _, o := range g.Offsets {
			if d.anew[o.Topic] {
				continue
			}
			cut, ok := cuts[o.Topic][o.Partition]
			if o.BeyondCut = ok && o.Offset > cut; o.BeyondCut {
				d.f.Note("eventbus: group %q stands at %d in %s/%d, after the cut %d; it will go on at the end", g.Name, o.Offset, o.Topic, o.Partition, cut)
			}
			offsets = append(offsets, o)
		}
		g.Offsets = offsets
		out = append(out, g)
	}
	return out
}

// libraryVersion is franz-go's version as it was built in.
func libraryVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/twmb/franz-go" {
				return m.Version
			}
		}
	}
	return "unknown"
}
