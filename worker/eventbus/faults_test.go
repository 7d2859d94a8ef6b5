package eventbus

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
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

// filled is a kfake with one topic of many small batches, and options that make
// many segments of it.
func filled(t *testing.T, topic string, partitions int32, n int) (*bus, Options) {
	b := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	b.create(topic, partitions)
	b.produce(b.client(kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(8<<10)), recs(topic, partitions, n)...)
	o := b.options()
	o.FetchBytes, o.SegmentBytes, o.Parallel = 20_000, 40_000, 1
	return b, o
}

// once runs f at the second segment.
func once(s *store, f func()) {
	n := 0
	s.hook = func(string) {
		if n++; n == 2 {
			f()
		}
	}
}

func TestRetentionDuringDump(t *testing.T) {
	b, o := filled(t, "t", 1, 6000)
	trim := func(to int64) func() {
		return func() {
			offsets := kadm.Offsets{}
			offsets.Add(kadm.Offset{Topic: "t", Partition: 0, At: to})
			_, err := b.adm.DeleteRecords(bg, offsets)
			require.NoError(t, err)
		}
	}
	s := newStore()
	once(s, trim(3000))
	_, _, err := dumpInto(o, s)
	require.ErrorContains(t, err, "deleted while the backup ran")
	require.True(t, stage.IsPermanent(err))

	o.AllowGaps = true
	s = newStore()
	once(s, trim(5000))
	e, f, err := dumpInto(o, s)
	require.NoError(t, err)
	require.NotEmpty(t, f.Warnings)
	p := e.Topics[0].Partitions[0]
	require.Len(t, p.Gaps, 1)
	require.Empty(t, s.verify(t, e))
	require.Equal(t, p.Cut-p.Start, p.Records+(p.Gaps[0].To-p.Gaps[0].From)-(p.Start-p.Segments[0].Base))

	// A set with a gap loads, and a verification without the gap's record complains.
	out, err := Load(bg, newBus(t, lab.Kfake(t, lab.KfakeOptions{})).options(), e, s, LoadOptions{})
	require.NoError(t, err)
	require.Equal(t, p.Records-(p.Start-p.Segments[0].Base), out.Records)
	e.Topics[0].Partitions[0].Gaps = nil
	require.NotEmpty(t, s.verify(t, e))
}

func TestTopicDeletedDuringDump(t *testing.T) {
	t.Parallel()
	b, o := filled(t, "t", 2, 6000)
	b.create("other", 1)
	b.produce(b.Client, recs("other", 1, 100)...)
	s := newStore()
	once(s, func() {
		_, err := b.adm.DeleteTopics(bg, "t")
		require.NoError(t, err)
	})
	e, f, err := dumpInto(o, s)
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "topic t was deleted")
	require.Equal(t, []string{"other"}, topicNames(e.Topics))
	require.NotEmpty(t, e.Discarded)
	require.Empty(t, s.verify(t, e))
}

func TestTopicRecreatedDuringDump(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		b, o := filled(t, "t", 1, 6000)
		o.AllowGaps = allowed
		s := newStore()
		once(s, func() {
			_, err := b.adm.DeleteTopics(bg, "t")
			require.NoError(t, err)
			b.create("t", 1)
			b.produce(b.Client, recs("t", 1, 6000)...)
		})
		e, f, err := dumpInto(o, s)
		if !allowed {
			require.ErrorContains(t, err, "created again")
			require.True(t, stage.IsPermanent(err))
			continue
		}
		require.NoError(t, err) // it leaves the set, with a warning
		require.Contains(t, strings.Join(f.Warnings, "\n"), "created again while it was read")
		require.Empty(t, e.Topics)
		require.NotEmpty(t, e.Discarded)
		require.Empty(t, s.verify(t, e))
	}
}

func TestBrokerKilledDuringDump(t *testing.T) {
	b, o := filled(t, "t", 3, 6000)
	calm, calmStore, _ := dumpAll(t, o)
	s := newStore()
	var wg sync.WaitGroup
	once(s, func() {
		require.NoError(t, b.b.Kill9())
		wg.Go(func() { require.NoError(t, b.b.Start()) })
	})
	e, _, err := dumpInto(o, s)
	wg.Wait()
	require.NoError(t, err)
	require.Equal(t, calm.Topics, e.Topics)
	require.Equal(t, calmStore.content, s.content)
}

func TestBudgetSpentNamesThePlace(t *testing.T) {
	t.Parallel()
	b, o := filled(t, "t", 1, 6000)
	o.Budget = 2 * time.Second
	s := newStore()
	once(s, func() { require.NoError(t, b.b.Kill9()) })
	began := time.Now()
	_, _, err := dumpInto(o, s)
	require.ErrorContains(t, err, "topic t partition 0 offset")
	require.False(t, stage.IsPermanent(err))
	require.Less(t, time.Since(began), 15*time.Second)
}

func TestCancelEndsADumpAtOnce(t *testing.T) {
	_, o := filled(t, "t", 1, 6000)
	pos, _, err := ReadPositions(bg, o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(bg)
	s := newStore()
	once(s, cancel)
	_, _, err = Dump(ctx, o, pos, s, stage.NoProgress{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	c, err := connect(bg, Options{Brokers: []string{"127.0.0.1:1"}}, time.Second)
	require.Nil(t, c)
	require.ErrorContains(t, err, "127.0.0.1:1")
	require.False(t, stage.IsPermanent(err))
}

func TestHiddenTopicsAndRights(t *testing.T) {
	t.Parallel()
	backup := lab.User{Mechanism: Plain, Name: "backup", Password: "backup-secret"}
	acl := func(r kmsg.ACLResourceType, name string, op kmsg.ACLOperation) kfake.ACL {
		return kfake.ACL{Resource: r, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true}
	}
	start := func(acls ...kfake.ACL) (*bus, Options) {
		b := newBus(t, lab.Kfake(t, lab.KfakeOptions{ACLs: true, Users: []lab.KfakeUser{
			{User: lab.User{Mechanism: Plain, Name: "admin", Password: "admin-secret", Super: true}}, {User: backup, ACLs: acls}}}))
		b.create("seen", 1)
		b.create("hidden", 1)
		b.produce(b.Client, rec("seen", 0, 1), rec("hidden", 0, 1))
		o := b.options()
		o.SASL = &SASL{Plain, backup.Name, backup.Password}
		return b, o
	}
	topic, cluster, group := kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeCluster, kmsg.ACLResourceTypeGroup
	seen := []kfake.ACL{acl(topic, "seen", kmsg.ACLOperationRead), acl(topic, "seen", kmsg.ACLOperationDescribeConfigs)}

	_, o := start(append(seen, acl(cluster, "kafka-cluster", kmsg.ACLOperationDescribe), acl(group, "*", kmsg.ACLOperationDescribe))...)
	_, _, err := Probe(bg, o)
	require.ErrorContains(t, err, "hidden")
	require.True(t, stage.IsPermanent(err))
	o.AllowGapsIn = []string{"seen"} // the allowance for one topic is none for another
	_, _, err = Probe(bg, o)
	require.ErrorContains(t, err, "1 topics that the user cannot see (hidden)")
	require.ErrorContains(t, err, "eventbus.allow_gaps_in")
	o.AllowGapsIn = []string{"hid*"}
	_, _, f := dumpAll(t, o)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "hidden")
	o.AllowGaps, o.AllowGapsIn = true, nil
	e, s, f := dumpAll(t, o)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "hidden")
	require.Len(t, e.Topics, 1)
	require.Empty(t, s.verify(t, e))

	_, o = start(seen...) // no right to cross-check: a warning
	_, f, err = Probe(bg, o)
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "could not be checked")

	_, o = start() // sees nothing at all
	_, _, err = Probe(bg, o)
	require.ErrorContains(t, err, "backup of nothing")
	_, _, err = ReadPositions(bg, o)
	require.ErrorContains(t, err, "backup of nothing")

	_, o = start(acl(topic, "seen", kmsg.ACLOperationDescribe), acl(topic, "hidden", kmsg.ACLOperationRead), acl(topic, "hidden", kmsg.ACLOperationDescribeConfigs))
	_, _, err = Probe(bg, o)
	require.ErrorContains(t, err, "READ 1 topics (seen)")

	o.SASL.Password = "wrong-secret"
	_, _, err = Probe(bg, o)
	require.True(t, stage.IsPermanent(err), "%v", err)
	require.NotContains(t, err.Error(), "wrong-secret")
}

func TestZeroTopics(t *testing.T) {
	b := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	e, s, f := dumpAll(t, b.options())
	require.Empty(t, f.Warnings)
	require.NotEmpty(t, f.Notes)
	require.Empty(t, s.verify(t, e))
	_, err := Load(bg, b.options(), e, s, LoadOptions{})
	require.NoError(t, err)
	b2, err := json.Marshal(e)
	require.NoError(t, err)
	require.NotContains(t, string(b2), `"topics":null`)
}
