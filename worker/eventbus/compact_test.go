package eventbus

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// while runs f when the n-th segment is stored whose entry has the word.
func while(s *store, word string, n int, f func()) {
	s.hook = func(entry string) {
		if strings.Contains(entry, word) {
			if n--; n == 0 {
				f()
			}
		}
	}
}

// Apache Kafka's cleaner runs while a topic is dumped: of every key the set has the
// value that it had at the partition's end.
func TestKafkaCompactsDuringDump(t *testing.T) {
	t.Parallel()
	b := newBus(t, lab.Kafka(t, lab.KafkaOptions{Extra: cleaning}))
	b.create("large", 1)
	b.produce(b.client(kgo.ProducerBatchMaxBytes(8<<10), kgo.ProducerBatchCompression(kgo.NoCompression())), recs("large", 1, 3000)...)
	keys := numbered("key", 60)
	options := func(topics ...string) Options {
		o := b.options()
		o.FetchBytes, o.SegmentBytes, o.Parallel, o.Include = 20_000, 40_000, 1, topics
		return o
	}

	t.Run("churned keys", func(t *testing.T) {
		for _, policy := range []string{"compact", "compact,delete"} {
			topic := strings.ReplaceAll("churn-"+policy, ",", "-")
			j := b.journal(topic, append(rolling, "cleanup.policy="+policy)...)
			j.put(10, keys...)
			s := newStore()
			while(s, "/large/", 2, func() { j.cleanUntil(keys, below(60)) })
			e, f, err := dumpInto(options("large", topic), s)
			require.NoError(t, err)
			require.Empty(t, f.Warnings)
			p := j.requireValues(e, s)
			require.Len(t, j.at(p.Cut), 60)
			require.Equal(t, set.ByCatchingUp, p.EndedBy)
			require.Equal(t, int64(60), p.Listed)
			require.Greater(t, p.Cut, p.Listed)
			for _, topic := range e.Topics {
				if topic.Name == "large" {
					require.Equal(t, set.ByCut, topic.Partitions[0].EndedBy)
				}
			}
		}
	})

	t.Run("a steady writer", func(t *testing.T) {
		j := b.journal("steady", append(rolling, "cleanup.policy=compact")...)
		j.put(10, keys...)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					j.put(3, keys...)
				}
			}
		})
		s := newStore()
		e, _, err := dumpInto(options("large", "steady"), s)
		close(stop)
		wg.Wait()
		require.NoError(t, err)
		j.requireValues(e, s)
	})

	t.Run("the policy becomes compact", func(t *testing.T) {
		policy := "compact"
		for topic, turn := range map[string]func(){
			"turned": func() { b.alter("turned", "cleanup.policy=compact") },
			"defaulted": func() {
				b.alterDefault(kadm.AlterConfig{Op: kadm.SetConfig, Name: "log.cleanup.policy", Value: &policy})
			},
		} {
			j := b.journal(topic, rolling...)
			j.put(1, keys...)
			s := newStore()
			while(s, "/large/", 2, func() {
				turn()
				j.cleanUntil(keys, below(60))
			})
			e, f, err := dumpInto(options("large", topic), s)
			require.NoError(t, err)
			require.Contains(t, strings.Join(f.Notes, "\n"), "topic "+topic+": its cleanup.policy was changed from delete to compact")
			p := j.requireValues(e, s)
			require.True(t, p.Compacted)
			require.Equal(t, set.ByCatchingUp, p.EndedBy)
		}
		b.alterDefault(kadm.AlterConfig{Op: kadm.DeleteConfig, Name: "log.cleanup.policy"})
	})

	t.Run("what delete takes of compact,delete is a gap", func(t *testing.T) {
		j := b.journal("both", append(rolling, "cleanup.policy=compact,delete")...)
		for _, allowed := range []bool{false, true} {
			j.put(10, numbered("many", 400)...)
			to := b.end("both") - 50
			s := newStore()
			while(s, "/both/", 1, func() {
				offsets := kadm.Offsets{}
				offsets.Add(kadm.Offset{Topic: "both", At: to})
				_, err := b.adm.DeleteRecords(bg, offsets)
				require.NoError(t, err)
			})
			o := options("both")
			if allowed {
				o.AllowGapsIn = []string{"both"}
			}
			e, f, err := dumpInto(o, s)
			if !allowed {
				require.ErrorContains(t, err, "deleted while the backup ran")
				require.ErrorContains(t, err, "eventbus.allow_gaps_in to [both]")
				require.True(t, stage.IsPermanent(err))
				continue
			}
			require.NoError(t, err)
			require.NotEmpty(t, f.Warnings)
			require.Empty(t, s.verify(t, e))
			gaps := e.Topics[0].Partitions[0].Gaps
			require.Len(t, gaps, 1)
			require.Equal(t, to, gaps[0].To)
		}
	})

	// Nothing tells afterwards: it fails, or has every key where that is allowed.
	t.Run("the policy becomes compact and delete again", func(t *testing.T) {
		for _, topic := range []string{"there-and-back", "there-and-back-allowed"} {
			j := b.journal(topic, append(rolling, "cleanup.policy=delete")...)
			j.put(1, keys...)
			s := newStore()
			while(s, "/large/", 2, func() {
				b.alter(topic, "cleanup.policy=compact")
				j.cleanUntil(keys, below(60))
				b.alter(topic, "cleanup.policy=delete")
			})
			o := options("large", topic)
			o.AllowGapsIn = []string{"*-allowed"}
			e, f, err := dumpInto(o, s)
			if topic == "there-and-back" {
				require.ErrorContains(t, err, "eventbus.allow_gaps_in to [there-and-back]")
				require.True(t, stage.IsPermanent(err))
				continue
			}
			require.NoError(t, err)
			require.Contains(t, strings.Join(f.Warnings, "\n"), "nothing in it shows that compaction took them")
			p := j.requireValues(e, s)
			require.Len(t, j.at(p.Cut), 60)
			require.NotEmpty(t, p.Gaps)
		}
	})

	t.Run("the policy becomes delete", func(t *testing.T) {
		j := b.journal("back", append(rolling, "cleanup.policy=compact")...)
		j.put(1, keys...)
		s := newStore()
		while(s, "/large/", 2, func() {
			j.cleanUntil(keys, below(60))
			b.alter("back", "cleanup.policy=delete")
		})
		e, _, err := dumpInto(options("large", "back"), s)
		require.NoError(t, err)
		j.requireValues(e, s)
	})

	t.Run("a deleted key stays deleted", func(t *testing.T) {
		many := numbered("many", 400)
		j := b.journal("tombs", append(rolling, "cleanup.policy=compact", "delete.retention.ms=100")...)
		j.put(10, many...)
		s := newStore()
		while(s, "/tombs/", 1, func() { // key many-0 is read, its tombstone comes and goes
			j.remove("many-0")
			at := j.log[len(j.log)-1].Offset
			j.cleanUntil(keys, func(list []*kgo.Record) bool {
				for _, r := range list {
					if r.Offset == at || string(r.Key) == "many-0" {
						return false
					}
				}
				return true
			})
		})
		e, f, err := dumpInto(options("tombs"), s)
		require.NoError(t, err)
		require.Empty(t, f.Warnings)
		p := j.requireValues(e, s)
		require.NotContains(t, j.at(p.Cut), "many-0")
		require.NotEmpty(t, e.Discarded)
		require.Contains(t, p.Segments[0].Entry, "eventbus/topics/tombs/0~2/")
	})
}

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
		resp := r.ResponseKind().(*kmsg.FetchResponse)
		resp.SetVersion(r.Version)
		rt := kmsg.NewFetchResponseTopic()
		rt.Topic, rt.TopicID = r.Topics[0].Topic, r.Topics[0].TopicID
		rp := kmsg.NewFetchResponseTopicPartition()
		rp.HighWatermark, rp.LastStableOffset = 2000, 2000
		rp.DivergingEpoch.Epoch, rp.DivergingEpoch.EndOffset = 0, 3
		rt.Partitions = append(rt.Partitions, rp)
		resp.Topics = append(resp.Topics, rt)
		return resp, nil, true
	})
	_, _, err := dumpInto(o, newStore())
	require.ErrorContains(t, err, "topic t partition 0: the log was cut back to offset 3")
	require.False(t, stage.IsPermanent(err))
	require.Positive(t, asked.Load(), "the broker was not told the epoch")
}

// The leader moves while a compacted partition is read, and the new one is behind
// for a moment: its stable offset is below what the old one had told.
func TestLeaderOfACompactedTopicMoves(t *testing.T) {
	t.Parallel()
	c, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(1, "other"))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	u := &bus{t: t, b: &lab.Broker{Brokers: c.ListenAddrs()}}
	u.Client = u.client()
	u.adm = kadm.NewClient(u.Client)
	many := numbered("key", 400)
	j := u.journal("t", "cleanup.policy=compact")
	j.put(10, many...)
	o := u.options()
	o.FetchBytes, o.SegmentBytes, o.Parallel, o.Include = 20_000, 40_000, 1, []string{"t"}

	// kfake's compaction lets the log begin later, which Apache Kafka's does not. What
	// the old leader told while the keys below were written anew and compacted.
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
		resp := r.ResponseKind().(*kmsg.FetchResponse)
		resp.SetVersion(r.Version)
		rt := kmsg.NewFetchResponseTopic()
		rt.Topic, rt.TopicID = r.Topics[0].Topic, r.Topics[0].TopicID
		rp := kmsg.NewFetchResponseTopicPartition()
		at := r.Topics[0].Partitions[0].FetchOffset
		rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = at, at, 0
		rt.Partitions = append(rt.Partitions, rp)
		resp.Topics = append(resp.Topics, rt)
		return resp, nil, true
	})
	e, _, err := dumpInto(o, s)
	require.NoError(t, err)
	p := j.requireValues(e, s)
	require.Len(t, j.at(p.Cut), 400)
	require.Equal(t, int64(800), p.Cut)
	require.Zero(t, behind.Load())
}
