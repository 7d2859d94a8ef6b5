package eventbus

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
)

// cleaning lets the cleaner of an Apache Kafka come round all the time. Topics with
// segments that roll after 20 ms give it something to clean.
var (
	cleaning = []string{"log.cleaner.backoff.ms=50", "log.retention.check.interval.ms=300", "log.initial.task.delay.ms=100", "broker.session.timeout.ms=9000"}
	rolling  = []string{"segment.ms=20", "min.cleanable.dirty.ratio=0.001", "min.compaction.lag.ms=0"}
)

// journal publishes into partition 0 of a topic and remembers every record, so that
// it can tell which values the keys had at any offset.
type journal struct {
	u     *bus
	topic string
	c     *kgo.Client
	n     int
	log   []*kgo.Record
}

func (u *bus) journal(topic string, configs ...string) *journal {
	u.create(topic, 1, configs...)
	return &journal{u: u, topic: topic, c: u.client(kgo.ProducerBatchCompression(kgo.NoCompression()))}
}

// put publishes a new value for each key, in batches of that many records.
func (j *journal) put(batch int, keys ...string) {
	j.u.t.Helper()
	for some := range slices.Chunk(keys, batch) {
		var rs []*kgo.Record
		for _, k := range some {
			j.n++
			rs = append(rs, &kgo.Record{Topic: j.topic, Key: []byte(k), Value: fmt.Appendf(nil, "%s is %d %s", k, j.n, strings.Repeat("x", 250))})
		}
		require.NoError(j.u.t, j.c.ProduceSync(bg, rs...).FirstErr())
		j.log = append(j.log, rs...)
	}
}

// remove publishes tombstones.
func (j *journal) remove(keys ...string) {
	for _, k := range keys {
		r := &kgo.Record{Topic: j.topic, Key: []byte(k)}
		require.NoError(j.u.t, j.c.ProduceSync(bg, r).FirstErr())
		j.log = append(j.log, r)
	}
}

// at is the value of every key below an offset.
func (j *journal) at(offset int64) map[string]string {
	values := map[string]string{}
	for _, r := range j.log {
		if r.Offset < offset {
			apply(values, r)
		}
	}
	return values
}

func apply(values map[string]string, r *kgo.Record) {
	if r.Value == nil {
		delete(values, string(r.Key))
		return
	}
	values[string(r.Key)] = string(r.Value)
}

// numbered are n names of keys.
func numbered(prefix string, n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("%s-%d", prefix, i))
	}
	return list
}

// read gives the committed records of partition 0, as they are in the log now.
func (u *bus) read(topic string) (list []*kgo.Record) {
	u.t.Helper()
	ends, err := u.adm.ListCommittedOffsets(bg, topic)
	require.NoError(u.t, err)
	end, _ := ends.Lookup(topic, 0)
	starts, err := u.adm.ListStartOffsets(bg, topic)
	require.NoError(u.t, err)
	start, _ := starts.Lookup(topic, 0)
	if start.Offset == end.Offset {
		return nil
	}
	c := u.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(start.Offset)}}))
	defer c.Close()
	for quiet := 0; quiet < 2; { // an end without a record would never be reached
		ctx, cancel := context.WithTimeout(bg, 300*time.Millisecond)
		fs := c.PollFetches(ctx)
		cancel()
		if fs.NumRecords() == 0 {
			quiet++
		}
		done := false
		fs.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() && r.Offset < end.Offset {
				list = append(list, r)
			}
			done = done || r.Offset+1 >= end.Offset
		})
		if done {
			break
		}
	}
	return list
}

// values are those that a consumer ends up with who reads a topic from its start.
func (u *bus) values(topic string) map[string]string {
	values := map[string]string{}
	for _, r := range u.read(topic) {
		apply(values, r)
	}
	return values
}

// cleanUntil publishes until the cleaner has done what done looks for.
func (j *journal) cleanUntil(keys []string, done func(list []*kgo.Record) bool) {
	j.u.t.Helper()
	for deadline := time.Now().Add(eventually); ; {
		j.put(10, keys...)
		if done(j.u.read(j.topic)) {
			return
		}
		require.True(j.u.t, time.Now().Before(deadline), "the cleaner does not come")
	}
}

// below wants no record below an offset to be left.
func below(offset int64) func([]*kgo.Record) bool {
	return func(list []*kgo.Record) bool { return len(list) > 0 && list[0].Offset >= offset }
}

func (u *bus) alter(topic string, configs ...string) {
	u.t.Helper()
	var alter []kadm.AlterConfig
	for _, kv := range configs {
		k, v, _ := strings.Cut(kv, "=")
		alter = append(alter, kadm.AlterConfig{Op: kadm.SetConfig, Name: k, Value: &v})
	}
	rs, err := u.adm.AlterTopicConfigs(bg, alter, topic)
	require.NoError(u.t, err)
	for _, r := range rs {
		require.NoError(u.t, r.Err)
	}
}

// alterDefault changes what topics without a setting of their own have, on all brokers.
func (u *bus) alterDefault(c kadm.AlterConfig) {
	u.t.Helper()
	rs, err := u.adm.AlterBrokerConfigs(bg, []kadm.AlterConfig{c})
	require.NoError(u.t, err)
	for _, r := range rs {
		require.NoError(u.t, r.Err)
	}
}

// end is a partition's high watermark.
func (u *bus) end(topic string) int64 {
	ends, err := u.adm.ListEndOffsets(bg, topic)
	require.NoError(u.t, err)
	o, _ := ends.Lookup(topic, 0)
	return o.Offset
}

// stable is a partition's last stable offset.
func (u *bus) stable(topic string) int64 {
	ends, err := u.adm.ListCommittedOffsets(bg, topic)
	require.NoError(u.t, err)
	o, _ := ends.Lookup(topic, 0)
	return o.Offset
}

// requireValues wants the set to verify, and a bus that takes it to give every key
// the value that it had at the end of the partition. It returns the partition.
func (j *journal) requireValues(e *set.EventBus, s *store) set.Partition {
	t := j.u.t
	t.Helper()
	require.Empty(t, s.verify(t, e))
	var p *set.Partition
	for i := range e.Topics {
		if e.Topics[i].Name == j.topic {
			p = &e.Topics[i].Partitions[0]
		}
	}
	require.NotNil(t, p, "the topic is not in the set")
	fresh, err := lab.StartKfake(lab.KfakeOptions{})
	require.NoError(t, err)
	defer fresh.Close()
	to := newBus(t, fresh)
	_, err = Load(bg, to.options(), e, s, LoadOptions{})
	require.NoError(t, err)
	want, got := j.at(p.Cut), to.values(j.topic)
	require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	require.Equal(t, want, got)
	return *p
}
