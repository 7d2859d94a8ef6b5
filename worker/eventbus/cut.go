package eventbus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// topicWork is a topic while it is dumped.
type topicWork struct {
	set.Topic
	id      kadm.TopicID
	policy  policy
	leaders []int32 // by index of Partitions
	newest  atomic.Int64
	gone    atomic.Bool // deleted meanwhile
	anew    atomic.Bool // … and made again under its name
}

// newTopicWork begins a topic from what the survey saw.
func newTopicWork(d kadm.TopicDetail, configs topicConfigs) *topicWork {
	t := &topicWork{id: d.ID, policy: policyOf(configs), Topic: set.Topic{Name: d.Topic, ID: d.ID.String(), Configs: configs.own, Defaults: inherited(configs), Partitions: []set.Partition{}}}
	if t.Configs == nil {
		t.Configs = map[string]*string{}
	}
	t.newest.Store(-1)
	for _, p := range d.Partitions.Sorted() {
		t.ReplicationFactor = max(t.ReplicationFactor, len(p.Replicas))
		t.leaders = append(t.leaders, p.Leader)
		t.Partitions = append(t.Partitions, newPartition(p.Partition, t.policy.compact()))
	}
	return t
}

func newPartition(id int32, compacted bool) set.Partition {
	return set.Partition{ID: id, Compacted: compacted, Dropped: set.Ranges{}, CompactedAway: set.Ranges{}, Gaps: []set.Gap{}, Segments: []set.Segment{}}
}

// saw notes the newest timestamp of the topic's batches.
func (t *topicWork) saw(ms int64) {
	for {
		old := t.newest.Load()
		if ms <= old || t.newest.CompareAndSwap(old, ms) {
			return
		}
	}
}

// maxLooks is how often the topics are looked at for a cut that has them all.
const maxLooks = 5

// cut looks at the topics and takes the cut, again if some were made in between:
// they would be missing without a word.
func (d *dumper) cut(ctx context.Context, pos *Positions) (*survey, []*topicWork, error) {
	for try := 1; ; try++ {
		d.f, d.anew = stage.Findings{}, map[string]bool{}
		s, f, err := d.look(ctx)
		d.f.Join(f)
		if err != nil {
			return nil, nil, err
		}
		if err := d.checkNotBlind(s, len(pos.Groups)); err != nil {
			return nil, nil, err
		}
		topics, err := d.begin(s, pos)
		if err != nil {
			return nil, nil, err
		}
		if err := d.takeCut(ctx, topics); err != nil {
			return nil, nil, err
		}
		d.cutAt = d.o.Now()
		md, err := d.metadata(ctx)
		if err != nil {
			return nil, nil, err
		}
		late := s.lacks(md, d.o)
		if len(late) > 0 && try < maxLooks {
			d.o.Logf("eventbus: topics or partitions were made while the cut was taken (%s); it is taken anew", names(late))
			continue
		}
		if len(late) > 0 {
			d.warn("topics or partitions were made while the cut was taken, at each of %d tries, and may not be in the set: %s; run the backup when none are made", maxLooks, names(late))
		}
		return s, topics, nil
	}
}

// lacks names the topics that the survey does not have, or not with all partitions.
func (s *survey) lacks(md kadm.Metadata, o Options) (late []string) {
	for _, now := range md.Topics.Sorted() {
		seen, ok := s.seen[now.Topic]
		if now.IsInternal || !o.wants(now.Topic) || errors.Is(now.Err, kerr.UnknownTopicOrPartition) || isDenied(now.Err) {
			continue
		}
		if !ok || seen.ID != now.ID || len(seen.Partitions) < len(now.Partitions) {
			late = append(late, now.Topic)
		}
	}
	return late
}

// takeCut lists where each partition begins, and its high watermark: what the
// set must have, unless it belongs to a transaction that is aborted in the end.
func (c *client) takeCut(ctx context.Context, topics []*topicWork) error {
	starts, err := c.offsets(ctx, topics, "start", c.adm.ListStartOffsets)
	if err != nil {
		return err
	}
	high, err := c.offsets(ctx, topics, "end", c.adm.ListEndOffsets)
	if err != nil {
		return err
	}
	for _, t := range topics {
		for i := range t.Partitions {
			if t.gone.Load() {
				break
			}
			p := &t.Partitions[i]
			p.Listed = high[t][p.ID]
			p.Start = min(starts[t][p.ID], p.Listed) // a new leader's watermark may be behind
			p.Cut, p.HighWatermark, p.EndedBy = p.Listed, p.Listed, set.ByCut
		}
	}
	return nil
}

type lister func(context.Context, ...string) (kadm.ListedOffsets, error)

// offsets lists one offset of every partition, and asks again for those that
// have no leader just now, for as long as the budget says. Topics that were
// deleted meanwhile are marked.
func (c *client) offsets(ctx context.Context, topics []*topicWork, what string, list lister) (map[*topicWork]map[int32]int64, error) {
	out := map[*topicWork]map[int32]int64{}
	began := time.Now()
	pending := topics
	for try := 1; ; try++ {
		var ask []string
		for _, t := range pending {
			if !t.gone.Load() {
				ask = append(ask, t.Name)
			}
		}
		if len(ask) == 0 {
			return out, nil
		}
		listed, err := list(ctx, ask...)
		if err = c.explain(err); stage.IsPermanent(err) {
			return nil, err
		}
		var again []*topicWork
		for _, t := range pending {
			got, terr := c.partitionOffsets(ctx, t, listed)
			if stage.IsPermanent(terr) {
				return nil, terr
			}
			if terr != nil && !t.gone.Load() {
				again = append(again, t)
				if err == nil {
					err = terr
				}
			}
			out[t] = got
		}
		if pending = again; len(pending) == 0 {
			return out, nil
		}
		if time.Since(began) > c.o.Budget {
			return nil, fmt.Errorf("eventbus: topic %s: its %s offsets could not be read within %s: %w; see to the brokers that lead its partitions", pending[0].Name, what, c.o.Budget, err)
		}
		if err := pause(ctx, try); err != nil {
			return nil, err
		}
	}
}

// partitionOffsets takes the offsets of one topic out of an answer.
func (c *client) partitionOffsets(ctx context.Context, t *topicWork, listed kadm.ListedOffsets) (map[int32]int64, error) {
	got := map[int32]int64{}
	for _, p := range t.Partitions {
		o, ok := listed.Lookup(t.Name, p.ID)
		if !ok {
			o.Err = errNoAnswer
			if whole, found := listed.Lookup(t.Name, -1); found && whole.Err != nil {
				o.Err = whole.Err
			}
		}
		if isUnknownTopic(o.Err) {
			if err := c.confirmGone(ctx, t); err != nil {
				return nil, err
			}
		}
		if o.Err != nil {
			return nil, fmt.Errorf("topic %s partition %d: %w", t.Name, p.ID, c.explain(o.Err))
		}
		got[p.ID] = o.Offset
	}
	return got, nil
}

func isUnknownTopic(err error) bool {
	return errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.InconsistentTopicID)
}

// goneAfter is how long a topic must be unknown without a break before it counts
// as deleted: a broker that has just started may not know it yet.
const goneAfter = 3 * time.Second

// confirmGone asks whether a topic that a broker did not know is really gone,
// and marks it then. It returns early if the topic is there. Made anew under the
// same name is a permanent error.
func (c *client) confirmGone(ctx context.Context, t *topicWork) error {
	began := time.Now()
	for try := 1; !t.gone.Load(); try++ {
		there, err := c.stillThere(ctx, t)
		if err != nil || there {
			return err
		}
		if time.Since(began) > goneAfter {
			t.gone.Store(true)
			return nil
		}
		if err := pause(ctx, 5); err != nil {
			return err
		}
	}
	return nil
}

// stillThere asks once. A topic of the same name with another id is a permanent error.
func (c *client) stillThere(ctx context.Context, t *topicWork) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	md, err := c.metadata(ctx, t.Name)
	if err != nil {
		return false, err
	}
	d, ok := md.Topics[t.Name]
	if !ok || isUnknownTopic(d.Err) {
		return false, nil
	}
	return true, c.same(t, d.ID)
}

// isAnew tells whether id is of another topic under the same name, where the
// broker has ids (Kafka 2.8).
func (t *topicWork) isAnew(id kadm.TopicID) bool {
	var none kadm.TopicID
	return t.id != none && id != none && t.id != id
}

// same refuses a topic made anew. Where gaps are allowed, the topic only leaves the set.
func (c *client) same(t *topicWork, id kadm.TopicID) error {
	if !t.isAnew(id) {
		return nil
	}
	if c.o.allows(t.Name) {
		t.anew.Store(true)
		t.gone.Store(true)
		return nil
	}
	return stage.Permanentf("eventbus: topic %s was deleted and created again while the backup ran: the set would not hold one or the other; run the backup again", t.Name)
}
