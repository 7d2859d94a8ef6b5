package eventbus

import (
	"bytes"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/shared/lab"
	"catalog-backup/worker/stage"
)

// A dump that is slower than tombstones live, and one that is slower than the
// writers. The clock is the test's.
func TestSlowDumpOfACompactedTopic(t *testing.T) {
	t.Parallel()
	b := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	var now time.Time
	slow := func(topic string, step time.Duration, then func()) (Options, *store) {
		now = time.Now()
		o := b.options()
		o.FetchBytes, o.SegmentBytes, o.Parallel, o.Include = 20_000, 40_000, 1, []string{topic}
		o.Now = func() time.Time { return now }
		s := newStore()
		s.hook = func(string) { now = now.Add(step); then() }
		return o, s
	}

	j := b.journal("tombs", "cleanup.policy=compact")
	j.put(10, numbered("key", 400)...)
	o, s := slow("tombs", 13*time.Hour, func() {})
	_, _, err := dumpInto(o, s)
	require.ErrorContains(t, err, "topic tombs partition 0: reading it took")
	require.ErrorContains(t, err, "delete.retention.ms (24h0m0s)")
	require.ErrorContains(t, err, "eventbus.allow_gaps_in to [tombs]")
	require.True(t, stage.IsPermanent(err))
	require.Contains(t, strings.Join(s.order, "\n"), "/0~3/")

	o, s = slow("tombs", 13*time.Hour, func() {})
	o.AllowGapsIn = []string{"tom*"}
	e, f, err := dumpInto(o, s)
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "keys that were deleted meanwhile would come back")
	j.requireValues(e, s)

	// The retention of tombstones is lowered meanwhile: it counts.
	o, s = slow("tombs", time.Hour, func() {})
	while(s, "/0/", 1, func() { now = now.Add(time.Hour); b.alter("tombs", "delete.retention.ms=1000") })
	e, f, err = dumpInto(o, s)
	require.NoError(t, err)
	require.Empty(t, f.Warnings)
	require.Contains(t, j.requireValues(e, s).Segments[0].Entry, "/0~2/")

	// What comes in one answer is of one moment, however long tombstones live.
	k := b.journal("one", "cleanup.policy=compact", "delete.retention.ms=0")
	k.put(10, numbered("key", 30)...)
	o, s = slow("one", time.Hour, func() {})
	e, f, err = dumpInto(o, s)
	require.NoError(t, err)
	require.Empty(t, f.Warnings)
	require.Empty(t, e.Discarded)
	k.requireValues(e, s)

	k = b.journal("fast", "cleanup.policy=compact")
	k.put(10, numbered("key", 400)...)
	o, s = slow("fast", 3*time.Minute, func() { k.put(10, numbered("key", 200)...) })
	_, _, err = dumpInto(o, s)
	require.ErrorContains(t, err, "topic fast partition 0: it is compacted and written to faster than it can be read")
	require.False(t, stage.IsPermanent(err))
}

// instead is an answer to a fetch that the broker would not give.
func instead(r *kmsg.FetchRequest, p kmsg.FetchResponseTopicPartition) kmsg.Response {
	resp := r.ResponseKind().(*kmsg.FetchResponse)
	resp.SetVersion(r.Version)
	t := kmsg.NewFetchResponseTopic()
	t.Topic, t.TopicID = r.Topics[0].Topic, r.Topics[0].TopicID
	t.Partitions = append(t.Partitions, p)
	resp.Topics = append(resp.Topics, t)
	return resp
}

// Between taking the stable offset of an answer and reading its records the cleaner
// may have come: what replaced the missing ones lies beyond that offset. No test can
// make Apache Kafka do that at will.
func TestHolesInTheLastAnswer(t *testing.T) {
	t.Parallel()
	c, o := inside(t)
	u := &bus{t: t, b: &lab.Broker{Brokers: c.ListenAddrs()}}
	u.Client = u.client()
	u.adm = kadm.NewClient(u.Client)
	j := u.journal("race", "cleanup.policy=compact")
	j.put(10, numbered("key", 30)...)
	o.Include = []string{"race"}
	e, s, _ := dumpAll(t, o)
	log := s.content[e.Topics[0].Partitions[0].Segments[0].Entry]
	first, err := parseBatch(log)
	require.NoError(t, err)
	second, err := parseBatch(log[len(first.raw):])
	require.NoError(t, err)
	var done atomic.Bool
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		r := req.(*kmsg.FetchRequest)
		if len(r.Topics) == 0 || r.Topics[0].Partitions[0].FetchOffset != 0 || done.Swap(true) {
			return nil, nil, false
		}
		c.SleepControl(func() { j.put(10, numbered("key", 20)[10:]...) })
		rp := kmsg.NewFetchResponseTopicPartition()
		rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = 30, 30, 0
		rp.RecordBatches = append(bytes.Clone(first.raw), log[len(first.raw)+len(second.raw):]...)
		return instead(r, rp), nil, true
	})
	s = newStore()
	e, _, err = dumpInto(o, s)
	require.NoError(t, err)
	p := j.requireValues(e, s)
	require.Equal(t, int64(40), p.Cut)
	require.Len(t, j.at(p.Cut), 30)
}

// A leader that lost records answers where its log parts from what was read. What
// makes it do so, an unclean election, takes a cluster that the lab does not have.
func TestLogThatWasCutBack(t *testing.T) {
	t.Parallel()
	c, o := inside(t)
	var asked atomic.Int32
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		r := req.(*kmsg.FetchRequest)
		if len(r.Topics) == 0 || r.Topics[0].Partitions[0].FetchOffset == 0 {
			return nil, nil, false
		}
		asked.Store(1 + r.Topics[0].Partitions[0].LastFetchedEpoch)
		rp := kmsg.NewFetchResponseTopicPartition()
		rp.HighWatermark, rp.LastStableOffset = 2000, 2000
		rp.DivergingEpoch.Epoch, rp.DivergingEpoch.EndOffset = 0, 3
		return instead(r, rp), nil, true
	})
	_, _, err := dumpInto(o, newStore())
	require.ErrorContains(t, err, "topic t partition 0: the log was cut back to offset 3")
	require.False(t, stage.IsPermanent(err))
	require.Positive(t, asked.Load(), "the broker was not told the epoch")
}

// replicated is a topic of a kfake of three brokers, and options that read it in
// several answers.
func replicated(t *testing.T, configs ...string) (*kfake.Cluster, *journal, Options) {
	c, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(1, "other"))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	u := &bus{t: t, b: &lab.Broker{Brokers: c.ListenAddrs()}}
	u.Client = u.client()
	u.adm = kadm.NewClient(u.Client)
	o := u.options()
	o.FetchBytes, o.SegmentBytes, o.Parallel, o.Include = 20_000, 40_000, 1, []string{"t"}
	return c, u.journal("t", configs...), o
}

// The cleaner of one replica has removed old tombstones, that of the other has not
// come to the values below them. kfake's replicas share one log: it is compacted
// when the leader moves, and its tombstone is of two days ago.
func TestLeaderMovesToACleanerReplica(t *testing.T) {
	t.Parallel()
	c, j, o := replicated(t, "cleanup.policy=compact")
	many := numbered("key", 400)
	j.put(1, "anchor")
	j.put(10, many...)
	r := &kgo.Record{Topic: "t", Key: []byte(many[0]), Timestamp: time.Now().Add(-48 * time.Hour)}
	require.NoError(t, j.c.ProduceSync(bg, r).FirstErr())
	j.log = append(j.log, r)
	j.put(10, numbered("last", 20)...)

	move := func() { require.NoError(t, c.MoveTopicPartition("t", 0, (c.LeaderFor("t", 0)+1)%3)) }
	always := func() *store { // it moves in every try
		s := newStore()
		s.hook = func(string) { move() }
		return s
	}
	_, _, err := dumpInto(o, always())
	require.ErrorContains(t, err, "topic t partition 0: another broker became its leader")
	require.ErrorContains(t, err, "eventbus.allow_gaps_in to [t]")
	require.False(t, stage.IsPermanent(err))
	allowed := o
	allowed.AllowGaps = true
	_, f, err := dumpInto(allowed, always())
	require.NoError(t, err)
	require.Len(t, f.Warnings, 1)
	require.Contains(t, f.Warnings[0], "another broker became its leader")

	s := newStore()
	while(s, "/t/0/", 2, func() { move(); c.Compact() })
	e, f, err := dumpInto(o, s)
	require.NoError(t, err)
	require.Empty(t, f.Warnings)
	p := j.requireValues(e, s)
	require.NotContains(t, j.at(p.Cut), many[0])
	require.Contains(t, p.Segments[0].Entry, "/0~2/")
	require.NotEmpty(t, e.Discarded)
}

// A topic that was compacted once and deletes now: nothing cleans it, so nothing in
// it has to be read in a time.
func TestOnceCompactedMayTakeItsTime(t *testing.T) {
	t.Parallel()
	c, j, o := replicated(t, "cleanup.policy=compact", "delete.retention.ms=100")
	many := numbered("key", 400)
	j.put(1, "anchor")
	j.put(10, many...)
	j.put(10, many[:5]...)
	j.put(1, "last")
	c.Compact()
	j.u.alter("t", "cleanup.policy=delete")
	s, now := newStore(), time.Now()
	o.Now = func() time.Time { return now }
	s.hook = func(string) { now = now.Add(time.Hour) }
	e, f, err := dumpInto(o, s)
	require.NoError(t, err)
	require.Empty(t, f.Warnings)
	require.Empty(t, e.Discarded)
	require.True(t, j.requireValues(e, s).Compacted)
	j.u.alter("t", "cleanup.policy=compact")
	again := newStore()
	again.hook = s.hook
	_, _, err = dumpInto(o, again)
	require.ErrorContains(t, err, "delete.retention.ms (100ms)")
}

// The leader moves while a compacted partition is read, and the new one is behind
// for a moment: its stable offset is below what the old one had told.
func TestLeaderOfACompactedTopicMoves(t *testing.T) {
	t.Parallel()
	c, j, o := replicated(t, "cleanup.policy=compact")
	many := numbered("key", 400)
	j.put(1, "anchor") // else kfake's compaction would let the log begin later, which Apache Kafka's does not
	j.put(10, many...)

	// What the old leader told while the keys below were written anew and compacted.
	s := newStore()
	var behind atomic.Int32
	while(s, "/t/0/", 2, func() {
		j.put(10, many...)
		c.Compact()
	})
	second := s.hook
	s.hook = func(entry string) {
		second(entry)
		if len(s.order) == 2 {
			require.NoError(t, c.MoveTopicPartition("t", 0, (c.LeaderFor("t", 0)+1)%3))
			behind.Store(3)
		}
	}
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		r := req.(*kmsg.FetchRequest)
		if len(r.Topics) == 0 || behind.Load() == 0 || c.CurrentNode() != c.LeaderFor("t", 0) {
			return nil, nil, false
		}
		behind.Add(-1)
		rp := kmsg.NewFetchResponseTopicPartition()
		at := r.Topics[0].Partitions[0].FetchOffset
		rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = at, at, 0
		return instead(r, rp), nil, true
	})
	e, _, err := dumpInto(o, s)
	require.NoError(t, err)
	p := j.requireValues(e, s)
	require.Len(t, j.at(p.Cut), 401)
	require.Equal(t, int64(801), p.Cut)
	require.Zero(t, behind.Load())
}
