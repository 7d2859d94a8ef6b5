package eventbus

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

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
		t.Cleanup(func() { b.alterDefault(kadm.AlterConfig{Op: kadm.DeleteConfig, Name: "log.cleanup.policy"}) })
		// In this order: topics made after the brokers' default was changed are born compacted.
		for _, change := range []struct {
			topic string
			turn  func()
		}{
			{"turned", func() { b.alter("turned", "cleanup.policy=compact") }},
			{"defaulted", func() {
				b.alterDefault(kadm.AlterConfig{Op: kadm.SetConfig, Name: "log.cleanup.policy", Value: &policy})
			}},
		} {
			topic, turn := change.topic, change.turn
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

	t.Run("what is deleted between compact and compact is a gap", func(t *testing.T) {
		j := b.journal("between", append(rolling, "cleanup.policy=compact")...)
		for _, allowed := range []bool{false, true} {
			j.put(10, numbered("many", 400)...)
			to := b.end("between") - 50
			s := newStore()
			while(s, "/between/", 1, func() {
				b.alter("between", "cleanup.policy=delete")
				offsets := kadm.Offsets{}
				offsets.Add(kadm.Offset{Topic: "between", At: to})
				require.Eventually(t, func() bool { // refused until the broker knows the policy
					rs, err := b.adm.DeleteRecords(bg, offsets)
					return err == nil && rs.Error() == nil
				}, eventually, tick)
				b.alter("between", "cleanup.policy=compact")
			})
			o := options("between")
			o.AllowGaps = allowed
			e, f, err := dumpInto(o, s)
			if !allowed {
				require.ErrorContains(t, err, "deleted while the backup ran")
				continue
			}
			require.NoError(t, err)
			require.NotEmpty(t, f.Warnings)
			gaps := e.Topics[0].Partitions[0].Gaps
			require.Len(t, gaps, 1)
			require.Equal(t, to, gaps[0].To)
		}
	})

	t.Run("another default", b.keepsPolicies)

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
		for topic, keep := range map[string][]string{"tombs": {"100"}, "lowered": {"86400000", "0"}} { // the other is put back
			j := b.journal(topic, append(rolling, "cleanup.policy=compact", "delete.retention.ms="+keep[0])...)
			j.put(10, many...)
			s := newStore()
			while(s, "/"+topic+"/", 1, func() { // key many-0 is read, its tombstone comes and goes
				b.alter(topic, "delete.retention.ms="+keep[len(keep)-1])
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
				b.alter(topic, "delete.retention.ms="+keep[0])
			})
			e, f, err := dumpInto(options(topic), s)
			require.NoError(t, err)
			require.Empty(t, f.Warnings)
			p := j.requireValues(e, s)
			require.NotContains(t, j.at(p.Cut), "many-0")
			require.NotEmpty(t, e.Discarded)
			require.Contains(t, p.Segments[0].Entry, "eventbus/topics/"+topic+"/0~2/")
		}
	})
}
