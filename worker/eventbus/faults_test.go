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
	"github.com/twmb/franz-go/pkg/kerr"
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
	o.AllowGaps = true
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

// Lost answers can only be made by kfake inside this process.
func TestLostAnswersWhileLoading(t *testing.T) {
	_, o := filled(t, "t", 1, 3000)
	e, s, _ := dumpAll(t, o)
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	require.NoError(t, err)
	defer c.Close()
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 3})
	to := Options{Brokers: c.ListenAddrs(), Budget: 20 * time.Second}
	out, err := Load(bg, to, e, s, LoadOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(3000), out.Records)
	cl, err := connect(bg, to, time.Second)
	require.NoError(t, err)
	defer cl.Close()
	ends, err := cl.adm.ListEndOffsets(bg, "t")
	require.NoError(t, err)
	end, _ := ends.Lookup("t", 0)
	require.Equal(t, int64(3000), end.Offset)
}

func TestFailedLoadLeavesNothing(t *testing.T) {
	_, o := filled(t, "t", 2, 3000)
	e, s, _ := dumpAll(t, o)
	last := s.order[len(s.order)-1]
	s.content[last][len(s.content[last])-1] ^= 1
	to := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	_, err := Load(bg, to.options(), e, s, LoadOptions{})
	require.ErrorContains(t, err, "damaged")
	md, err := to.adm.Metadata(kadm.WithAuthorizedOps(bg))
	require.NoError(t, err)
	require.Empty(t, md.Topics)
}

func TestTargetKilledWhileLoading(t *testing.T) {
	from, o := filled(t, "t", 2, 6000)
	e, s, _ := dumpAll(t, o)
	to := newBus(t, lab.Kfake(t, lab.KfakeOptions{Sync: true}))
	var wg sync.WaitGroup
	src := &killing{store: s, at: 4, kill: func() {
		require.NoError(t, to.b.Kill9())
		wg.Go(func() { require.NoError(t, to.b.Start()) })
	}}
	_, err := Load(bg, to.options(), e, src, LoadOptions{Parallel: 1})
	wg.Wait()
	require.NoError(t, err)
	compare(t, e, from, to)
}

func TestActiveGroupOnTargetIsRefused(t *testing.T) {
	b, o := filled(t, "t", 1, 100)
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: "t", At: 50, LeaderEpoch: -1})
	require.NoError(t, b.adm.CommitAllOffsets(bg, "g", offsets))
	e, _, _ := dumpAll(t, o)
	to := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	to.create("u", 1)
	c := to.client(kgo.ConsumerGroup("g"), kgo.ConsumeTopics("u"))
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	go c.PollFetches(ctx)
	require.Eventually(t, func() bool {
		gs, err := to.adm.ListGroups(bg)
		return err == nil && gs["g"].State == "Stable"
	}, 10*time.Second, 20*time.Millisecond)
	require.ErrorContains(t, CheckTarget(bg, to.options(), e), "active")
}

func TestOldRetentionIsSaid(t *testing.T) {
	b := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	b.create("old", 1, "retention.ms=-1")
	r := rec("old", 0, 1)
	r.Timestamp = time.Now().Add(-30 * 24 * time.Hour)
	b.produce(b.Client, r)
	e, s, _ := dumpAll(t, b.options())
	day := "86400000"
	e.Topics[0].Configs["retention.ms"] = &day
	out, err := Load(bg, newBus(t, lab.Kfake(t, lab.KfakeOptions{})).options(), e, s, LoadOptions{})
	require.NoError(t, err)
	require.Contains(t, strings.Join(out.Notes, "\n"), "older than its retention")
	out, err = Load(bg, newBus(t, lab.Kfake(t, lab.KfakeOptions{})).options(), e, s, LoadOptions{FinalRetention: true})
	require.NoError(t, err)
	require.Contains(t, strings.Join(out.Warnings, "\n"), "older than its retention")
}
