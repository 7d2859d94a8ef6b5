package eventbus

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// Each server is seeded and loads what the other one holds, while publishing goes on.
func TestRoundTripBothWays(t *testing.T) {
	kafka := newBus(t, lab.Kafka(t, lab.KafkaOptions{Extra: []string{"log.cleaner.backoff.ms=300"}}))
	fake := newBus(t, lab.Kfake(t, lab.KfakeOptions{Config: map[string]string{"message.max.bytes": "9000000"}}))
	var wg sync.WaitGroup
	wg.Go(func() { kafka.seed("k."); kafka.seedCompacted("k.compacted") })
	wg.Go(func() { fake.seed("f.") })
	wg.Wait()
	t.Run("Kafka to kfake", func(t *testing.T) { roundTrip(t, "k.", kafka, fake) })
	t.Run("kfake to Kafka", func(t *testing.T) { roundTrip(t, "f.", fake, kafka) })
}

func roundTrip(t *testing.T, pre string, from, to *bus) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		c := from.client()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				c.ProduceSync(bg, rec(pre+"none", int32(i%3), i), rec(pre+"zstd", int32(i%3), i))
			}
		}
	})
	o := from.options()
	o.Include, o.SegmentBytes, o.FetchBytes, o.AllowGapsIn = []string{pre + "*"}, 100_000, 60_000, []string{pre + "txn"}
	info, _, err := Probe(bg, o)
	require.NoError(t, err)
	require.True(t, info.Checked)
	e, s, f := dumpAll(t, o)
	close(stop)
	wg.Wait()
	require.Len(t, f.Warnings, 1, "%v", f.Warnings)
	require.Contains(t, f.Warnings[0], "open transaction")
	require.Empty(t, s.verify(t, e))
	require.GreaterOrEqual(t, len(e.ACLs), 3)
	requireSameAsConsumed(t, e, s, from)
	if pre == "k." {
		dumpLog(t, e, s)
	}
	out, err := Load(bg, to.options(), e, s, LoadOptions{})
	require.NoError(t, err)
	require.Empty(t, out.Warnings)
	require.Equal(t, len(e.Topics), out.Topics)
	require.Positive(t, out.Reencoded)
	compare(t, e, from, to)
	compareConfigs(t, e, to)
	var none stage.Findings
	require.Subset(t, to.connected().acls(bg, &none), e.ACLs)
	require.Empty(t, none.Warnings)
	// Once more: refused, and nothing of what is there goes.
	_, err = Load(bg, to.options(), e, s, LoadOptions{})
	require.ErrorContains(t, err, "already has")
	compare(t, e, from, to)
}

func compareConfigs(t *testing.T, e *set.EventBus, to *bus) {
	for _, topic := range e.Topics {
		rs, err := to.adm.DescribeTopicConfigs(bg, topic.Name)
		require.NoError(t, err)
		got, want := map[string]string{}, map[string]string{"retention.ms": "-1", "retention.bytes": "-1"}
		for _, kv := range rs[0].Configs {
			if kv.Source == kmsg.ConfigSourceDynamicTopicConfig {
				got[kv.Key] = *kv.Value
			}
		}
		for k, v := range topic.Configs {
			if !strings.HasPrefix(k, "retention.") {
				want[k] = *v
			}
		}
		require.Equal(t, want, got, topic.Name)
	}
}

// dumpLog lets Kafka's own tool read every segment, in one Java process.
func dumpLog(t *testing.T, e *set.EventBus, s *store) {
	var files []string
	var records int64
	for _, topic := range e.Topics {
		for _, p := range topic.Partitions {
			records += p.Records
			for _, sg := range p.Segments {
				// The tool wants a log's own name, and a folder for each of the same.
				file := filepath.Join(t.TempDir(), filepath.Base(sg.Entry))
				require.NoError(t, os.WriteFile(file, s.content[sg.Entry], 0o600))
				files = append(files, file)
			}
		}
	}
	out, err := lab.DumpLogSegments(strings.Join(files, ","))
	require.NoError(t, err)
	require.NotContains(t, out, "isvalid: false")
	require.Equal(t, len(files), strings.Count(out, "Dumping "))
	require.Equal(t, records, int64(strings.Count(out, "| offset: ")), out[:min(len(out), 2000)])
}

// requireSameAsConsumed wants the segments, decoded by the client library, to hold
// what an ordinary consumer of committed records reads up to the cut.
func requireSameAsConsumed(t *testing.T, e *set.EventBus, s *store, from *bus) {
	for _, topic := range e.Topics {
		upto, stored := map[int32]int64{}, map[int32]string{}
		for _, p := range topic.Partitions {
			upto[p.ID] = p.Cut
			d := newDigest()
			for _, sg := range p.Segments {
				got, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Offset: p.Start, Topic: topic.Name, Partition: p.ID},
					&kmsg.FetchResponseTopicPartition{Partition: p.ID, RecordBatches: s.content[sg.Entry]}, kgo.DefaultDecompressor(), nil)
				require.NoError(t, got.Err)
				got.EachRecord(d.add)
			}
			stored[p.ID] = d.String()
		}
		require.Equal(t, from.content(topic.Name, upto), stored, topic.Name)
	}
}

// seedCompacted makes the cleaner run on a topic, so that batches have holes.
func (u *bus) seedCompacted(topic string) {
	u.create(topic, 1, "cleanup.policy=compact", "segment.ms=500", "min.cleanable.dirty.ratio=0.001", "max.compaction.lag.ms=500", "delete.retention.ms=100", "min.compaction.lag.ms=0")
	for i := range 20 {
		var rs []*kgo.Record
		for j := range 100 {
			r := rec(topic, 0, 100*i+j)
			r.Key = strconv.AppendInt(nil, int64((i*37+j*7)%(100+i)), 10)
			if j%50 == 49 {
				r.Value = nil
			}
			r.Timestamp = time.Now()
			rs = append(rs, r)
		}
		u.produce(u.Client, rs...)
	}
	// One more record now and then rolls the segments; done when records are gone.
	deadline := time.Now().Add(40 * time.Second)
	for i := 0; time.Now().Before(deadline); i++ {
		r := rec(topic, 0, i)
		r.Timestamp = time.Now()
		u.produce(u.Client, r)
		if i%3 == 2 && strings.HasPrefix(u.holes(topic), "holes") {
			break
		}
		time.Sleep(700 * time.Millisecond) // segment.ms
	}
	// From here on the topic stays as it is, so that it can be compared later.
	u.alter(topic, "min.compaction.lag.ms=604800000", "max.compaction.lag.ms=604800000")
	for before := ""; ; {
		now := u.holes(topic)
		if now == before {
			break
		}
		before = now
		time.Sleep(time.Second) // a round of the cleaner may be under way
	}
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: topic, Partition: 0, At: 900, LeaderEpoch: -1})
	require.NoError(u.t, u.adm.CommitAllOffsets(bg, "k.g-compacted", offsets))
}

// holes tells whether less than half of the topic's first 2,000 records are left.
func (u *bus) holes(topic string) string {
	n, _, _ := strings.Cut(u.partitionContent(topic, 0, 0, 2000), " ")
	if left, _ := strconv.Atoi(n); left < 1000 {
		return "holes: " + n
	}
	return "whole: " + n
}
