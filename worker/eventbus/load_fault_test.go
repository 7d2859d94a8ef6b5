package eventbus

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/lab/sample"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// atOpen calls f once, at the n-th segment that a load opens.
func atOpen(s *segmentStore, n int64, f func()) *segmentStore {
	var count atomic.Int64
	return &segmentStore{content: s.content, opened: func(string) {
		if count.Add(1) == n {
			f()
		}
	}}
}

// A target killed and started again in mid-load has every record once.
func TestLoadSurvivesKilledTarget(t *testing.T) {
	e, store, want := kfakeSet(t, 16<<10)
	for _, kind := range []string{"kfake", "Kafka"} {
		t.Run(kind, func(t *testing.T) {
			var target *lab.Broker
			if kind == "kfake" {
				target = lab.Kfake(t, lab.KfakeOptions{})
			} else {
				target = lab.Kafka(t, lab.KafkaOptions{})
			}
			var back sync.WaitGroup
			var restart error
			src := atOpen(store, 9, func() {
				if restart = target.Kill9(); restart == nil {
					back.Go(func() { restart = target.Start() })
				}
			})
			got, err := Load(t.Context(), ours(target), e, src, LoadOptions{})
			back.Wait()
			require.NoError(t, restart)
			require.NoError(t, err)
			require.Empty(t, got.Warnings)
			have, err := sample.ReadBus(t.Context(), nil, target.ClientOpts()...)
			require.NoError(t, err)
			require.Equal(t, want.Digests, have.Digests)
			require.Equal(t, want.Next, have.Next)
		})
	}
}

// An answer that is lost, or an error though the batch was written, makes no
// record come twice: with a producer id, and where the broker gives none.
func TestLoadLostAnswers(t *testing.T) {
	e, store, want := kfakeSet(t, 64<<10)
	for _, anonymous := range []bool{false, true} {
		c, err := kfake.NewCluster(kfake.NumBrokers(1))
		require.NoError(t, err)
		defer c.Close()
		if anonymous {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.ClusterAuthorizationFailed, Count: -1})
		}
		lost := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 7},
			kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: 3})
		got, err := Load(t.Context(), Options{Brokers: c.ListenAddrs()}, e, store, LoadOptions{})
		require.NoError(t, err)
		require.EqualValues(t, 10, lost.Hits())
		require.Equal(t, want.Records, got.Records)
		have, err := sample.ReadBus(t.Context(), nil, kgo.SeedBrokers(c.ListenAddrs()...))
		require.NoError(t, err)
		require.Equal(t, want.Digests, have.Digests)
	}
}

// What is on the target already refuses a load before anything is written.
func TestLoadRefusedTargets(t *testing.T) {
	e, store, _ := kfakeSet(t, 1<<20)
	target := lab.Kfake(t, lab.KfakeOptions{})
	adm := admin(t, target)
	ctx := t.Context()
	refused := func(text string) {
		t.Helper()
		before := busState(t, target)
		for _, err := range []error{CheckTarget(ctx, ours(target), e), loadError(ctx, target, e, store)} {
			require.ErrorContains(t, err, text)
			require.True(t, stage.IsPermanent(err))
			require.NotContains(t, err.Error(), "\n")
		}
		require.Equal(t, before, busState(t, target))
	}
	_, err := adm.CreateTopic(ctx, 1, 1, nil, "tx")
	require.NoError(t, err)
	refused("already has 1 of the set's topics (tx)")
	_, err = adm.DeleteTopic(ctx, "tx")
	require.NoError(t, err)

	_, err = adm.CreateTopic(ctx, 1, 1, nil, "of another use")
	require.NoError(t, err)
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: "of another use", At: 0, LeaderEpoch: -1})
	require.NoError(t, adm.CommitAllOffsets(ctx, "at-empty", offsets))
	refused("have positions on the target already (at-empty)")
	_, err = adm.DeleteGroup(ctx, "at-empty")
	require.NoError(t, err)

	leave := joinGroup(t, target, "compacted", "of another use")
	refused("are active on the target (compacted)")
	leave()
	require.NoError(t, CheckTarget(ctx, ours(target), e))

	// A damaged manifest is no name of a file or topic.
	bad := *e
	bad.Topics = slices.Clone(e.Topics)
	bad.Topics[0].Name = "../etc"
	require.ErrorContains(t, CheckTarget(ctx, ours(target), &bad), "manifest is damaged")
}

func loadError(ctx context.Context, b *lab.Broker, e *set.EventBus, src Source) error {
	o := ours(b)
	o.Budget = 30 * time.Second
	_, err := Load(ctx, o, e, src, LoadOptions{})
	return err
}

// joinGroup makes a consumer that is a member of the group until it leaves.
func joinGroup(t testing.TB, b *lab.Broker, group, topic string) (leave func()) {
	t.Helper()
	c, err := b.Client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.MetadataMinAge(20*time.Millisecond))
	require.NoError(t, err)
	adm := admin(t, b)
	deadline := time.Now().Add(40 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		c.PollFetches(ctx)
		cancel()
		groups, err := adm.ListGroups(context.Background())
		require.NoError(t, err)
		if groups[group].State == "Stable" {
			return func() {
				c.LeaveGroup()
				c.Close()
				// A broker may drop a group without members and positions by itself.
				if _, err := adm.DeleteGroup(context.Background(), group); !errors.Is(err, kerr.GroupIDNotFound) {
					require.NoError(t, err)
				}
			}
		}
		require.True(t, time.Now().Before(deadline), "the group is not stable")
	}
}

// A load that fails, wherever, leaves the target as it was.
func TestLoadFailureLeavesNothing(t *testing.T) {
	e, store, _ := kfakeSet(t, 16<<10)
	for _, kind := range []string{"kfake", "Kafka"} {
		t.Run(kind, func(t *testing.T) {
			target := lab.Kfake
			if kind == "Kafka" {
				target = func(t testing.TB, _ lab.KfakeOptions) *lab.Broker { return lab.Kafka(t, lab.KafkaOptions{}) }
			}
			failures(t, e, store, target(t, lab.KfakeOptions{}))
		})
	}
}

func failures(t *testing.T, e *set.EventBus, store *segmentStore, target *lab.Broker) {
	adm := admin(t, target)
	_, err := adm.CreateTopic(t.Context(), 1, 1, nil, "foreign")
	require.NoError(t, err)
	before := busState(t, target)
	for !slices.Contains(before["topics"], "foreign") { // Kafka answers the creation earlier
		require.NoError(t, pause(t.Context(), 1))
		before = busState(t, target)
	}
	nothing := func(err error, text string) {
		t.Helper()
		require.ErrorContains(t, err, text)
		require.ErrorContains(t, err, "is deleted again")
		require.NotContains(t, err.Error(), "\n")
		require.Equal(t, before, busState(t, target))
	}

	// A byte of a segment that is read late.
	last := topicOf(t, e, "tx").Partitions[0].Segments
	entry := last[len(last)-1].Entry
	flipped := &segmentStore{content: map[string][]byte{}}
	for k, v := range store.content {
		flipped.content[k] = v
	}
	flipped.content[entry] = bytes.Clone(store.content[entry])
	flipped.content[entry][len(flipped.content[entry])-1] ^= 1
	err = loadError(t.Context(), target, e, flipped)
	nothing(err, "segment "+entry+" is damaged")
	require.True(t, stage.IsPermanent(err))
	delete(flipped.content, entry)
	nothing(loadError(t.Context(), target, e, flipped), entry+" is not in the set")

	// The user breaks off.
	ctx, cancel := context.WithCancelCause(t.Context())
	err = loadError(ctx, target, e, atOpen(store, 10, func() { cancel(errors.New("the user had enough")) }))
	nothing(err, "the user had enough")

	// Somebody else writes into a topic of ours.
	c, err := target.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(20*time.Millisecond), kgo.UnknownTopicRetries(-1))
	require.NoError(t, err)
	defer c.Close()
	var foreign error
	err = loadError(t.Context(), target, e, atOpen(store, 3, func() {
		foreign = c.ProduceSync(t.Context(), &kgo.Record{Topic: "tx", Partition: 1, Value: []byte("not ours")}).FirstErr()
	}))
	require.NoError(t, foreign)
	nothing(err, "something else writes to this topic")

	// A consumer comes back before its group has its position: the groups before it have theirs.
	late := e.Groups[len(e.Groups)-1].Name
	var leave func()
	err = loadError(t.Context(), target, e, atOpen(store, 5, func() { leave = joinGroup(t, target, late, "foreign") }))
	require.NotNil(t, leave)
	leave()
	require.ErrorContains(t, err, "active on the target")
	require.True(t, stage.IsPermanent(err))
	require.Equal(t, before["topics"], busState(t, target)["topics"])
	require.Equal(t, before["rules"], busState(t, target)["rules"])
	for _, g := range e.Groups {
		require.NotContains(t, busState(t, target)["groups"], g.Name)
	}

	// After all of that it loads.
	_, err = Load(t.Context(), ours(target), e, store, LoadOptions{})
	require.NoError(t, err)
}

// A target that stays away ends the load with the place where it was.
func TestLoadTargetGone(t *testing.T) {
	e, store, _ := kfakeSet(t, 16<<10)
	target := lab.Kfake(t, lab.KfakeOptions{})
	o := ours(target)
	o.Budget = 4 * time.Second
	var killed error
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	_, err := Load(ctx, o, pickTopics(e, "codec.none"), atOpen(store, 3, func() { killed = target.Kill9() }), LoadOptions{Parallel: 1})
	require.NoError(t, killed)
	require.ErrorContains(t, err, "topic codec.none partition")
	require.ErrorContains(t, err, "could not be written for 4s")
	require.ErrorContains(t, err, "delete by hand the topics codec.none")
	require.False(t, stage.IsPermanent(err))
	require.NoError(t, ctx.Err())
}

// Kafka deletes what is older than a topic's retention at its next look; a load
// keeps it from that unless the real retention is asked for.
func TestLoadRetention(t *testing.T) {
	source := lab.Kfake(t, lab.KfakeOptions{})
	adm := admin(t, source)
	_, err := adm.CreateTopic(t.Context(), 1, 1, map[string]*string{"retention.ms": kadm.StringPtr("3600000"), "min.insync.replicas": kadm.StringPtr("2")}, "old")
	require.NoError(t, err)
	c, err := source.Client()
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.ProduceSync(t.Context(), &kgo.Record{Topic: "old", Value: []byte("of last month"), Timestamp: time.Now().AddDate(0, -1, 0)}).FirstErr())
	e, store, _ := dumpOf(t, ours(source))
	e.Topics[0].ReplicationFactor = 3

	looking := lab.KafkaOptions{Extra: []string{"log.retention.check.interval.ms=300", "log.initial.task.delay.ms=100"}}
	target := lab.Kafka(t, looking)
	got, err := Load(t.Context(), ours(target), e, store, LoadOptions{})
	require.NoError(t, err)
	notes := strings.Join(got.Notes, "\n")
	require.Contains(t, notes, "topic old has 1 replicas instead of 3")
	require.Contains(t, notes, "retention is held unlimited on 1 topics (old)")
	require.Contains(t, notes, "topic old: its newest record is of")
	require.Len(t, got.Warnings, 1)
	require.Contains(t, got.Warnings[0], "min.insync.replicas=2")
	tadm := admin(t, target)
	// The broker looks at a topic of the same kind without the holding settings, and at ours.
	_, err = tadm.CreateTopic(t.Context(), 1, 1, map[string]*string{"retention.ms": kadm.StringPtr("3600000")}, "witness")
	require.NoError(t, err)
	w, err := target.Client(kgo.UnknownTopicRetries(-1))
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, w.ProduceSync(t.Context(), &kgo.Record{Topic: "witness", Value: []byte("x"), Timestamp: time.Now().AddDate(0, -1, 0)}).FirstErr())
	awaitStart(t, tadm, "witness", 1)
	starts, err := tadm.ListStartOffsets(t.Context(), "old")
	require.NoError(t, err)
	kept, _ := starts.Lookup("old", 0)
	require.Zero(t, kept.Offset, "the held topic lost its record")

	_, err = tadm.DeleteTopic(t.Context(), "old")
	require.NoError(t, err)
	for CheckTarget(t.Context(), ours(target), e) != nil {
		require.NoError(t, pause(t.Context(), 1))
	}
	got, err = Load(t.Context(), ours(target), e, store, LoadOptions{FinalRetention: true})
	require.NoError(t, err)
	require.Contains(t, strings.Join(got.Warnings, "\n"), "topic old: its newest record is of")
	configs, err := tadm.DescribeTopicConfigs(t.Context(), "old")
	require.NoError(t, err)
	for _, kv := range configs[0].Configs {
		if kv.Key == "retention.ms" {
			require.Equal(t, "3600000", kv.MaybeValue())
		}
	}
	awaitStart(t, tadm, "old", 1)
}

// awaitStart waits until a topic's log begins at an offset.
func awaitStart(t testing.TB, adm *kadm.Client, topic string, at int64) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for {
		starts, err := adm.ListStartOffsets(t.Context(), topic)
		require.NoError(t, err)
		if o, ok := starts.Lookup(topic, 0); ok && o.Offset == at {
			return
		}
		require.True(t, time.Now().Before(deadline), "the broker deletes nothing of %s", topic)
		time.Sleep(50 * time.Millisecond)
	}
}

// A set without topics, groups and rules is loaded into nothing.
func TestLoadEmptySet(t *testing.T) {
	target := lab.Kfake(t, lab.KfakeOptions{})
	got, err := Load(t.Context(), ours(target), &set.EventBus{}, &segmentStore{}, LoadOptions{})
	require.NoError(t, err)
	require.Equal(t, &Loaded{}, got)
}
