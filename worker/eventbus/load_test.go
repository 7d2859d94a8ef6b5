package eventbus

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/lab/sample"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// compacting makes Apache Kafka compact within a second.
var compacting = lab.KafkaOptions{Extra: []string{"log.cleaner.backoff.ms=300"}}

// narrow is an Apache Kafka that refuses old timestamps and big records unless
// the topic says otherwise.
var narrow = lab.KafkaOptions{Extra: []string{"log.message.timestamp.before.max.ms=3600000", "message.max.bytes=100000"}}

// A set of either broker comes into either broker: an ordinary consumer reads the
// same records in the same order, every group goes on at the same record, and
// settings, access rules and the positions' metadata are equal.
func TestLoadRoundTrips(t *testing.T) {
	for _, from := range []string{"kfake", "Kafka"} {
		t.Run("from "+from, func(t *testing.T) {
			var source *lab.Broker
			if from == "kfake" {
				source = lab.Kfake(t, lab.KfakeOptions{})
			} else {
				source = lab.Kafka(t, compacting)
			}
			seedBus(t, source)
			o := ours(source)
			o.SegmentBytes = 32 << 10 // several segments per partition
			e, store, want := stillDump(t, source, o)
			if from == "Kafka" {
				p := topicOf(t, e, "compacted").Partitions[0]
				require.NotZero(t, p.BatchesWithHoles, "the seed has no batch with holes")
			}
			for _, to := range []string{"kfake", "Kafka"} {
				t.Run("to "+to, func(t *testing.T) {
					if to == "Kafka" {
						loadAndCompare(t, e, store, source, lab.Kafka(t, narrow), want)
						return
					}
					loadAndCompare(t, e, store, source, lab.Kfake(t, lab.KfakeOptions{}), want)
				})
			}
		})
	}
}

// stillDump dumps a bus while its content stays the same, and tells what a
// consumer sees of it: a busy machine compacts late.
func stillDump(t testing.TB, b *lab.Broker, o Options) (*set.EventBus, *segmentStore, *sample.Bus) {
	t.Helper()
	for range 10 {
		before, err := sample.ReadBus(t.Context(), nil, b.ClientOpts()...)
		require.NoError(t, err)
		e, store, _ := dumpOf(t, o)
		after, err := sample.ReadBus(t.Context(), e, b.ClientOpts()...)
		require.NoError(t, err)
		if maps.Equal(before.Digests, after.Digests) {
			return e, store, after
		}
	}
	t.Fatal("the broker does not come to rest")
	return nil, nil, nil
}

func loadAndCompare(t *testing.T, e *set.EventBus, store *segmentStore, source, target *lab.Broker, want *sample.Bus) {
	require.NoError(t, CheckTarget(t.Context(), ours(target), e))
	got, err := Load(t.Context(), ours(target), e, store, LoadOptions{})
	require.NoError(t, err)
	rules := maps.Clone(want.Rules)
	if isKafka(source) && !isKafka(target) { // kfake knows no rules on tokens and users
		maps.DeleteFunc(rules, func(rule, _ string) bool {
			return strings.Contains(rule, "USER") || strings.Contains(rule, "DELEGATION_TOKEN")
		})
		require.Len(t, got.Warnings, 2, "%v", got.Warnings)
		require.ErrorContains(t, errors.New(strings.Join(got.Warnings, " ")), `DELEGATION_TOKEN "token" is not restored`)
	} else {
		require.Empty(t, got.Warnings)
	}
	require.Equal(t, len(e.Topics), got.Topics)
	require.Equal(t, len(e.Groups), got.Groups)
	require.Equal(t, len(rules), got.ACLs)
	require.Equal(t, want.Records, got.Records)
	have, err := sample.ReadBus(t.Context(), nil, target.ClientOpts()...)
	require.NoError(t, err)
	require.Equal(t, want.Digests, have.Digests)
	require.Equal(t, want.Next, have.Next)
	configs := maps.Clone(have.Configs)
	for _, topic := range e.Topics { // some targets take less by default
		if v, inherited := topic.Defaults["max.message.bytes"]; inherited {
			configs[topic.Name] = strings.Join(slices.DeleteFunc(strings.Fields(configs[topic.Name]), func(kv string) bool { return kv == "max.message.bytes="+v }), " ")
		}
	}
	require.Equal(t, want.Configs, configs)
	require.Equal(t, rules, have.Rules)
	require.Equal(t, metadataOf(t, source), metadataOf(t, target))
	// A second load finds the topics of the first and touches nothing.
	_, err = Load(t.Context(), ours(target), e, store, LoadOptions{})
	require.ErrorContains(t, err, "the target already has")
	require.True(t, stage.IsPermanent(err))
	again, err := sample.ReadBus(t.Context(), nil, target.ClientOpts()...)
	require.NoError(t, err)
	require.Equal(t, have, again)
}

func topicOf(t testing.TB, e *set.EventBus, name string) *set.Topic {
	t.Helper()
	i := slices.IndexFunc(e.Topics, func(x set.Topic) bool { return x.Name == name })
	require.GreaterOrEqual(t, i, 0, name)
	return &e.Topics[i]
}

func admin(t testing.TB, b *lab.Broker) *kadm.Client {
	t.Helper()
	c, err := b.Client(kgo.MetadataMinAge(20 * time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return kadm.NewClient(c)
}

// metadataOf gives the metadata strings of all positions by group, topic and partition.
func metadataOf(t testing.TB, b *lab.Broker) map[string]string {
	t.Helper()
	adm := admin(t, b)
	groups, err := adm.ListGroups(t.Context())
	require.NoError(t, err)
	all := map[string]string{}
	for _, g := range groups.Groups() {
		offsets, err := adm.FetchOffsets(t.Context(), g)
		require.NoError(t, err)
		offsets.Each(func(o kadm.OffsetResponse) {
			require.NoError(t, o.Err)
			all[g+" "+entryName(o.Topic, o.Partition, 1, 0)] = o.Metadata
		})
	}
	return all
}

// pickTopics is the set with some of its topics and their positions only.
func pickTopics(e *set.EventBus, topics ...string) *set.EventBus {
	p := *e
	p.Topics, p.Groups = nil, nil
	for _, t := range e.Topics {
		if slices.Contains(topics, t.Name) {
			p.Topics = append(p.Topics, t)
		}
	}
	for _, g := range e.Groups {
		g.Offsets = slices.DeleteFunc(slices.Clone(g.Offsets), func(o set.GroupOffset) bool { return !slices.Contains(topics, o.Topic) })
		if len(g.Offsets) > 0 {
			p.Groups = append(p.Groups, g)
		}
	}
	return &p
}

// kfakeSet is a set of a seeded kfake, and what a consumer sees of it.
func kfakeSet(t testing.TB, segmentBytes int) (*set.EventBus, *segmentStore, *sample.Bus) {
	t.Helper()
	b := lab.Kfake(t, lab.KfakeOptions{})
	seedBus(t, b)
	o := ours(b)
	o.SegmentBytes = segmentBytes
	return stillDump(t, b, o)
}

// busState is all that a load could leave behind.
func busState(t testing.TB, b *lab.Broker) map[string][]string {
	t.Helper()
	adm := admin(t, b)
	ctx := context.Background()
	md, err := adm.Metadata(kadm.WithAuthorizedOps(ctx))
	require.NoError(t, err)
	groups, err := adm.ListGroups(ctx)
	require.NoError(t, err)
	rules, err := adm.DescribeACLs(ctx, kadm.NewACLs().AnyResource().ResourcePatternType(kadm.ACLPatternAny).Operations(kadm.OpAny).Allow().AllowHosts().Deny().DenyHosts())
	require.NoError(t, err)
	state := map[string][]string{"topics": slices.Sorted(maps.Keys(md.Topics)), "groups": groups.Groups()}
	state["topics"] = slices.DeleteFunc(state["topics"], func(n string) bool { return internalTopics[n] })
	for _, r := range rules {
		for _, d := range r.Described {
			state["rules"] = append(state["rules"], d.Type.String()+" "+d.Name+" "+d.Principal)
		}
	}
	return state
}
