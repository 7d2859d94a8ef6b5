package eventbus

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/worker/stage"
)

// What happens to topics of Apache Kafka while they are read. Its real retention
// deletes whole segments.
func TestKafkaChangesDuringDump(t *testing.T) {
	t.Parallel()
	b := newBus(t, lab.Kafka(t, lab.KafkaOptions{Extra: []string{"log.retention.check.interval.ms=300", "log.initial.task.delay.ms=100"}}))
	o := b.options()
	o.FetchBytes, o.SegmentBytes, o.Parallel = 20_000, 40_000, 1

	e, s, f := dumpAll(t, o) // nothing but __consumer_offsets
	require.Empty(t, f.Warnings)
	require.Empty(t, e.Topics)
	require.Empty(t, s.verify(t, e))

	plain := o
	plain.TLS = &TLS{}
	began := time.Now()
	_, _, err := Probe(bg, plain)
	require.True(t, stage.IsPermanent(err), "%v", err)
	require.Less(t, time.Since(began), 10*time.Second)

	fill := func(topic string, configs ...string) {
		b.create(topic, 1, configs...)
		b.produce(b.client(kgo.ProducerBatchMaxBytes(8<<10), kgo.ProducerBatchCompression(kgo.NoCompression())), recs(topic, 1, 6000)...)
	}
	start := func(topic string) int64 {
		starts, err := b.adm.ListStartOffsets(bg, topic)
		require.NoError(t, err)
		at, _ := starts.Lookup(topic, 0)
		return at.Offset
	}

	fill("retention", "segment.bytes=1048576", "retention.bytes=-1")
	small := "100000"
	keep := func() {
		_, err := b.adm.AlterTopicConfigs(bg, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.bytes", Value: &small}}, "retention")
		require.NoError(t, err)
		require.Eventually(t, func() bool { return start("retention") > 0 }, eventually, tick)
	}
	o.Include, o.AllowGaps = []string{"retention"}, true
	s = newStore()
	once(s, keep)
	e, f, err = dumpInto(o, s)
	require.NoError(t, err)
	p := e.Topics[0].Partitions[0]
	require.Len(t, p.Gaps, 1)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "are not in the set: deleted while the backup ran")
	require.Equal(t, int64(6000), p.Records+p.Gaps[0].To-p.Gaps[0].From)
	require.Equal(t, start("retention"), p.Gaps[0].To)
	require.Empty(t, s.verify(t, e))

	o.Include, o.AllowGaps = []string{"deleted", "other"}, false
	fill("deleted")
	fill("other")
	s = newStore()
	n := 0
	s.hook = func(entry string) {
		if n++; strings.Contains(entry, "/deleted/") && n > 1 {
			_, _ = b.adm.DeleteTopics(bg, "deleted")
		}
	}
	e, f, err = dumpInto(o, s)
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "topic deleted was deleted")
	require.Contains(t, topicNames(e.Topics), "other")
	require.Empty(t, s.verify(t, e))

	o.Include = []string{"again"}
	fill("again")
	s = newStore()
	once(s, func() {
		_, err := b.adm.DeleteTopics(bg, "again")
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			_, err := b.adm.CreateTopic(bg, 1, 1, nil, "again")
			return err == nil
		}, eventually, tick)
	})
	_, _, err = dumpInto(o, s)
	require.ErrorContains(t, err, "created again")
	require.True(t, stage.IsPermanent(err))

	o.Include = []string{"trim"}
	fill("trim")
	s = newStore()
	once(s, func() {
		offsets := kadm.Offsets{}
		offsets.Add(kadm.Offset{Topic: "trim", At: 3001})
		_, err := b.adm.DeleteRecords(bg, offsets)
		require.NoError(t, err)
	})
	_, _, err = dumpInto(o, s)
	require.ErrorContains(t, err, "deleted while the backup ran")
	require.ErrorContains(t, err, "eventbus.allow_gaps")
	require.True(t, stage.IsPermanent(err))
}

// Rights that are missing one by one, on Apache Kafka.
func TestKafkaMissingRights(t *testing.T) {
	t.Parallel()
	user := lab.User{Mechanism: ScramSHA256, Name: "backup", Password: "backup-secret"}
	b := newBus(t, lab.Kafka(t, lab.KafkaOptions{Users: []lab.User{user}}))
	o := b.options()
	o.SASL = &SASL{user.Mechanism, user.Name, user.Password}
	for _, topic := range []string{"one", "two"} {
		b.create(topic, 1)
		b.produce(b.Client, recs(topic, 1, 10)...)
	}
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: "one", At: 5, LeaderEpoch: -1})
	require.NoError(t, b.adm.CommitAllOffsets(bg, "private group", offsets))
	literal := kadm.ACLPatternLiteral
	allow := func(build *kadm.ACLBuilder) {
		_, err := b.adm.CreateACLs(bg, build.Allow("User:backup").AllowHosts("*").ResourcePatternType(literal))
		require.NoError(t, err)
	}
	// Rules reach the broker a moment after they are made.
	fails := func(with string) {
		t.Helper()
		var err error
		require.Eventually(t, func() bool {
			_, _, err = Probe(bg, o)
			return err != nil && strings.Contains(err.Error(), with) && stage.IsPermanent(err)
		}, eventually, tick, "%s", with)
		require.ErrorContains(t, err, "grant the user")
	}
	fails("backup of nothing")
	_, _, err := ReadPositions(bg, o)
	require.ErrorContains(t, err, "backup of nothing")

	allow(kadm.NewACLs().Clusters().Operations(kadm.OpDescribe))
	fails("2 topics that the user cannot see (one, two)")
	allow(kadm.NewACLs().Topics("*").Operations(kadm.OpDescribe))
	fails("READ 2 topics (one, two)")
	allow(kadm.NewACLs().Topics("*").Operations(kadm.OpRead))
	fails("DESCRIBE_CONFIGS of 2 topics (one, two)")
	allow(kadm.NewACLs().Topics("*").Operations(kadm.OpDescribeConfigs))
	fails("DESCRIBE 1 groups (private group)")

	gaps := o
	gaps.AllowGaps = true
	e, s, f := dumpAll(t, gaps)
	require.Len(t, e.Topics, 2)
	require.Empty(t, e.Groups)
	require.Empty(t, s.verify(t, e))
	require.Empty(t, f.Warnings) // those of the groups belong to the positions
	_, f, err = ReadPositions(bg, gaps)
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "private group")

	allow(kadm.NewACLs().Groups("*").Operations(kadm.OpDescribe))
	require.Eventually(t, func() bool { _, _, err = Probe(bg, o); return err == nil }, eventually, tick)
	info, f, err := Probe(bg, o)
	require.NoError(t, err)
	require.Empty(t, f.Warnings)
	require.True(t, info.Checked)
	require.Equal(t, 1, info.Groups)
	require.Positive(t, info.Bytes)
	e, _, f = dumpAll(t, o)
	require.Empty(t, f.Warnings)
	require.NotEmpty(t, e.ACLs)
	require.Equal(t, "private group", e.Groups[0].Name)
}
