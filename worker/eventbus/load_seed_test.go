package eventbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// segmentStore is a sink and a source in memory.
type segmentStore struct {
	mu      sync.Mutex
	content map[string][]byte
	opened  func(entry string) // called at each Open, if set
}

func (s *segmentStore) Segment(_ context.Context, entry string, content []byte, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.content == nil {
		s.content = map[string][]byte{}
	}
	if s.content[entry] != nil {
		return fmt.Errorf("segment %s comes twice", entry)
	}
	s.content[entry] = slices.Clone(content)
	return nil
}

func (s *segmentStore) Open(entry string) (io.ReadCloser, error) {
	if s.opened != nil {
		s.opened(entry)
	}
	b, ok := s.content[entry]
	if !ok {
		return nil, fmt.Errorf("%s is not in the set", entry)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// ours gives the options to reach a broker of the lab that asks for no login. The
// seed's transaction that stays open may be left out.
func ours(b *lab.Broker) Options {
	return Options{Brokers: b.Brokers, AllowGapsIn: []string{"tx.open"}}
}

// dumpOf dumps a bus into memory and wants the set to verify.
func dumpOf(t testing.TB, o Options) (*set.EventBus, *segmentStore, stage.Findings) {
	t.Helper()
	ctx := t.Context()
	pos, f, err := ReadPositions(ctx, o)
	require.NoError(t, err)
	store := &segmentStore{}
	e, more, err := Dump(ctx, o, pos, store, stage.NoProgress{})
	require.NoError(t, err)
	f.Join(more)
	v := NewVerifier(e, func(d set.Damage) { t.Errorf("%s: %s", d.Entry, d.Problem) })
	for entry, content := range store.content {
		require.NoError(t, v.Entry(entry, int64(len(content)), bytes.NewReader(content)))
	}
	require.NoError(t, v.Finish())
	return e, store, f
}

// seeder fills a broker; the first error ends the test.
type seeder struct {
	t    testing.TB
	b    *lab.Broker
	c    *kgo.Client
	adm  *kadm.Client
	base time.Time
	rnd  *rand.Rand
}

// seedBus fills a broker with whatever is awkward to copy. On Apache Kafka with
// log.cleaner.backoff.ms=300 the topic "compacted" is really compacted, with
// holes within its batches. It has no record older than a day but in the topic
// "odd", whose retention is unlimited.
func seedBus(t testing.TB, b *lab.Broker) {
	t.Helper()
	c, err := b.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(20*time.Millisecond))
	require.NoError(t, err)
	defer c.Close()
	s := &seeder{t: t, b: b, c: c, adm: kadm.NewClient(c), base: time.Now().Add(-time.Hour), rnd: rand.New(rand.NewPCG(1, 2))}
	s.topics()
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		s.publish("codec."+codec, codec, 3, 900)
	}
	s.publish("trimmed", "snappy", 2, 1000)
	s.trim("trimmed", map[int32]int64{0: 123, 1: 500})
	s.publish("trimmed", "zstd", 1, 100) // partition 1 stays empty at offset 500
	s.compacted()
	s.transactions()
	s.publish("log.append", "none", 1, 50)
	s.publish("log.append", "zstd", 1, 50)
	s.oddRecords()
	s.groups()
	s.rules()
	s.awaitCompaction()
}

func (s *seeder) topics() {
	p := kadm.StringPtr
	for _, x := range []struct {
		name       string
		partitions int32
		configs    map[string]*string
	}{
		{"codec.none", 3, map[string]*string{"retention.ms": p("259200000"), "segment.bytes": p("2097152"), "compression.type": p("uncompressed")}},
		{"codec.gzip", 3, nil}, {"codec.snappy", 3, nil}, {"codec.lz4", 3, nil},
		{"codec.zstd", 3, map[string]*string{"cleanup.policy": p("compact,delete"), "min.cleanable.dirty.ratio": p("1.0"), "min.compaction.lag.ms": p("86400000")}},
		{"trimmed", 2, map[string]*string{"retention.bytes": p("1000000000")}},
		{"compacted", 1, map[string]*string{"cleanup.policy": p("compact"), "segment.bytes": p("8192"), "min.cleanable.dirty.ratio": p("0.001")}},
		{"tx", 2, nil}, {"tx.open", 1, nil},
		{"log.append", 1, map[string]*string{"message.timestamp.type": p("LogAppendTime")}},
		{"odd", 1, map[string]*string{"retention.ms": p("-1"), "max.message.bytes": p("5000000"), "message.timestamp.before.max.ms": p(unlimited), "message.timestamp.after.max.ms": p(unlimited)}},
		{"empty", 4, map[string]*string{"retention.bytes": p("12345678")}},
		{strings.Repeat("long-name_", 24), 1, nil},
	} {
		_, err := s.adm.CreateTopic(s.t.Context(), x.partitions, 1, x.configs, x.name)
		require.NoError(s.t, err, x.name)
	}
}

func (s *seeder) client(codec string, more ...kgo.Opt) *kgo.Client {
	compression := map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}[codec]
	c, err := s.b.Client(append([]kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(compression),
		kgo.ProducerBatchMaxBytes(4 << 20), kgo.MetadataMinAge(20 * time.Millisecond), kgo.UnknownTopicRetries(-1)}, more...)...)
	require.NoError(s.t, err)
	return c
}

func (s *seeder) record(topic string, partition int32, i int) *kgo.Record {
	r := &kgo.Record{Topic: topic, Partition: partition, Key: fmt.Appendf(nil, "key-%d", i%97),
		Value:     fmt.Appendf(nil, `{"n":%d,"note":"%s"}`, i, strings.Repeat("lineage ", s.rnd.IntN(60))),
		Timestamp: s.base.Add(time.Duration(i*37%5000) * time.Millisecond)} // not in order
	switch i % 41 {
	case 1:
		r.Key = nil
	case 2:
		r.Key = []byte{}
	case 3:
		r.Value = nil
	case 4:
		r.Value = []byte{}
	case 5:
		r.Headers = []kgo.RecordHeader{{Key: "h"}, {Key: "h", Value: []byte{}}, {Key: "", Value: []byte{0, 255}}}
	}
	return r
}

// publish spreads n records over the partitions.
func (s *seeder) publish(topic, codec string, partitions int32, n int) {
	c := s.client(codec)
	defer c.Close()
	for from := 0; from < n; from += 300 { // several batches per partition
		var rs []*kgo.Record
		for i := from; i < min(from+300, n); i++ {
			r := s.record(topic, int32(i)%partitions, i)
			if topic == "codec.zstd" && r.Key == nil {
				r.Key = []byte("Kafka takes no null key for a compacted topic")
			}
			rs = append(rs, r)
		}
		require.NoError(s.t, c.ProduceSync(s.t.Context(), rs...).FirstErr(), topic)
	}
}

func (s *seeder) trim(topic string, to map[int32]int64) {
	offsets := kadm.Offsets{}
	for p, at := range to {
		offsets.Add(kadm.Offset{Topic: topic, Partition: p, At: at, LeaderEpoch: -1})
	}
	rs, err := s.adm.DeleteRecords(s.t.Context(), offsets)
	require.NoError(s.t, errors.Join(err, rs.Error()))
}

// compacted writes keys over and over, with some that stay, and tombstones.
func (s *seeder) compacted() {
	for round := range 20 {
		c := s.client([]string{"none", "lz4"}[round%2])
		var rs []*kgo.Record
		for i := range 60 {
			r := &kgo.Record{Topic: "compacted", Key: fmt.Appendf(nil, "key-%d", i), Value: fmt.Appendf(nil, "round %d %s", round, strings.Repeat("x", s.rnd.IntN(200)))}
			if i%20 == 7 {
				r.Key = fmt.Appendf(nil, "only-%d-%d", round, i)
			}
			if i%20 == 9 {
				r.Key, r.Value = fmt.Appendf(nil, "gone-%d", round), nil
			}
			rs = append(rs, r)
		}
		require.NoError(s.t, c.ProduceSync(s.t.Context(), rs...).FirstErr())
		c.Close()
	}
}

// awaitCompaction waits until Apache Kafka has compacted most of the segments;
// kfake, as a process of its own, does not.
func (s *seeder) awaitCompaction() {
	if !isKafka(s.b) {
		return
	}
	before := 0
	deadline := time.Now().Add(40 * time.Second)
	for {
		c, err := s.b.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"compacted": {0: kgo.NewOffset().AtStart()}}))
		require.NoError(s.t, err)
		n, last := 0, int64(-1)
		for last < 1199 {
			fetches := c.PollFetches(s.t.Context())
			require.NoError(s.t, fetches.Err())
			for _, r := range fetches.Records() {
				n, last = n+1, r.Offset
			}
		}
		c.Close()
		if n < 700 && n == before {
			return
		}
		before = n
		require.True(s.t, time.Now().Before(deadline), "the topic is not compacted: %d records of 1200", n)
		time.Sleep(400 * time.Millisecond) // longer than the cleaner rests
	}
}

// isKafka tells Apache Kafka from kfake.
func isKafka(b *lab.Broker) bool {
	_, err := os.Stat(filepath.Join(b.Root, "server.properties"))
	return err == nil
}

// transactions writes committed and aborted ones, records without a transaction,
// and one transaction that stays open until the test ends.
func (s *seeder) transactions() {
	c := s.client("lz4", kgo.TransactionalID("seed"))
	defer c.Close()
	for n := range 6 {
		require.NoError(s.t, c.BeginTransaction())
		var rs []*kgo.Record
		for i := range 50 {
			rs = append(rs, s.record("tx", int32(i%2), n*50+i))
		}
		require.NoError(s.t, c.ProduceSync(s.t.Context(), rs...).FirstErr())
		require.NoError(s.t, c.EndTransaction(s.t.Context(), kgo.TransactionEndTry(n%3 != 1)))
		s.publish("tx", "none", 2, 10)
	}
	open := s.client("none", kgo.TransactionalID("seed-open"), kgo.TransactionTimeout(10*time.Minute))
	s.t.Cleanup(open.Close)
	s.publish("tx.open", "gzip", 1, 20)
	require.NoError(s.t, open.BeginTransaction())
	require.NoError(s.t, open.ProduceSync(s.t.Context(), s.record("tx.open", 0, 1)).FirstErr())
	s.publish("tx.open", "gzip", 1, 20)
}

func (s *seeder) oddRecords() {
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(s.rnd.Uint32())
	}
	c := s.client("none")
	defer c.Close()
	rs := []*kgo.Record{
		{Topic: "odd", Value: []byte("null key"), Timestamp: time.UnixMilli(0)},
		{Topic: "odd", Key: []byte("tombstone"), Timestamp: s.base},
		{Topic: "odd", Key: []byte{}, Value: []byte{}, Timestamp: time.UnixMilli(1), Headers: []kgo.RecordHeader{{}, {Key: "dup", Value: []byte("1")}, {Key: "dup", Value: []byte("2")}, {Key: "bin", Value: []byte{0, 255, 10}}}},
		{Topic: "odd", Key: []byte{0xff, 0xfe}, Value: []byte("1970, next to today"), Timestamp: time.UnixMilli(86_400_000)},
		{Topic: "odd", Key: []byte("future"), Value: []byte("2100"), Timestamp: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Topic: "odd", Key: []byte("big"), Value: big, Timestamp: s.base},
	}
	require.NoError(s.t, c.ProduceSync(s.t.Context(), rs...).FirstErr())
	require.NoError(s.t, c.ProduceSync(s.t.Context(), &kgo.Record{Topic: strings.Repeat("long-name_", 24), Value: []byte("one")}).FirstErr())
}

// groups sets positions in the middle, before a log's start, at ends, between
// transactions, in holes, and after the last stable offset.
func (s *seeder) groups() {
	for name, positions := range map[string][]kadm.Offset{
		"in the middle":   {{Topic: "codec.none", Partition: 0, At: 150, Metadata: "checkpoint 7 é"}, {Topic: "codec.zstd", Partition: 2, At: 300}, {Topic: "codec.gzip", Partition: 1, At: 0}},
		"before-start":    {{Topic: "trimmed", Partition: 0, At: 10}, {Topic: "trimmed", Partition: 1, At: 499, Metadata: "emptied"}},
		"after-start":     {{Topic: "trimmed", Partition: 0, At: 321}, {Topic: "trimmed", Partition: 1, At: 500}},
		"compacted":       {{Topic: "compacted", Partition: 0, At: 601}},
		"transactions":    {{Topic: "tx", Partition: 0, At: 33}, {Topic: "tx", Partition: 1, At: 70}, {Topic: "tx.open", Partition: 0, At: 20}},
		"beyond the cut":  {{Topic: "tx.open", Partition: 0, At: 41}},
		"at-empty":        {{Topic: "empty", Partition: 3, At: 0, Metadata: "nothing yet"}},
		"тест/slash:#%* ": {{Topic: "log.append", Partition: 0, At: 75}, {Topic: "odd", Partition: 0, At: 4}},
	} {
		offsets := kadm.Offsets{}
		for _, o := range positions {
			o.LeaderEpoch = -1
			offsets.Add(o)
		}
		require.NoError(s.t, s.adm.CommitAllOffsets(s.t.Context(), name, offsets), name)
	}
}

// rules makes one access rule of every kind.
func (s *seeder) rules() {
	rules := []*kadm.ACLBuilder{
		kadm.NewACLs().Topics("codec.").ResourcePatternType(kadm.ACLPatternPrefixed).Operations(kadm.OpRead, kadm.OpDescribe).Allow("User:indexer").AllowHosts("*"),
		kadm.NewACLs().Topics("*").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpAll).Deny("User:guest").DenyHosts("10.0.0.7"),
		kadm.NewACLs().Groups("in the middle").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead).Allow("User:CN=büro,O=x"),
		kadm.NewACLs().Clusters().ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpDescribe, kadm.OpIdempotentWrite).Allow("User:indexer"),
		kadm.NewACLs().TransactionalIDs("seed").ResourcePatternType(kadm.ACLPatternPrefixed).Operations(kadm.OpWrite).Allow("User:indexer"),
	}
	if isKafka(s.b) { // kfake refuses rules on tokens and users
		rules = append(rules, kadm.NewACLs().DelegationTokens("token").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpDescribe).Allow("User:indexer"))
	}
	for _, a := range rules {
		rs, err := s.adm.CreateACLs(s.t.Context(), a)
		require.NoError(s.t, err)
		for _, r := range rs {
			require.NoError(s.t, r.Err, "%s %s", r.Type, r.Name)
		}
	}
	if !isKafka(s.b) {
		return
	}
	req := kmsg.NewPtrCreateACLsRequest() // the builder has no users
	c := kmsg.NewCreateACLsRequestCreation()
	c.ResourceType, c.ResourceName, c.ResourcePatternType = kmsg.ACLResourceTypeUser, "somebody", kmsg.ACLResourcePatternTypeLiteral
	c.Principal, c.Host, c.Operation, c.PermissionType = "User:indexer", "*", kmsg.ACLOperationCreateTokens, kmsg.ACLPermissionTypeAllow
	req.Creations = append(req.Creations, c)
	resp, err := req.RequestWith(s.t.Context(), s.c)
	require.NoError(s.t, err)
	require.Zero(s.t, resp.Results[0].ErrorCode)
}
