package eventbus

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
)

var bg = context.Background()

// bus is a broker under test.
type bus struct {
	t testing.TB
	b *lab.Broker
	*kgo.Client
	adm *kadm.Client
}

func newBus(t testing.TB, b *lab.Broker) *bus {
	u := &bus{t: t, b: b}
	u.Client = u.client()
	u.adm = kadm.NewClient(u.Client)
	return u
}

func (u *bus) client(opts ...kgo.Opt) *kgo.Client {
	c, err := u.b.Client(append([]kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(20 * time.Millisecond)}, opts...)...)
	require.NoError(u.t, err)
	u.t.Cleanup(c.Close)
	return c
}

func (u *bus) options() Options { return Options{Brokers: u.b.Brokers, Budget: 20 * time.Second} }

func (u *bus) connected() *client {
	c, err := connect(bg, u.options(), 10*time.Second)
	require.NoError(u.t, err)
	u.t.Cleanup(c.Close)
	return c
}

func (u *bus) create(topic string, partitions int32, configs ...string) {
	c := map[string]*string{}
	for _, kv := range configs {
		k, v, _ := strings.Cut(kv, "=")
		c[k] = &v
	}
	_, err := u.adm.CreateTopic(bg, partitions, 1, c, topic)
	require.NoError(u.t, err)
	require.Eventually(u.t, func() bool {
		md, err := u.adm.Metadata(kadm.WithAuthorizedOps(bg), topic)
		if err != nil || len(md.Topics[topic].Partitions) != int(partitions) {
			return false
		}
		for _, p := range md.Topics[topic].Partitions {
			if p.Leader < 0 || p.Err != nil {
				return false
			}
		}
		return true
	}, 10*time.Second, 10*time.Millisecond)
}

func (u *bus) produce(c *kgo.Client, rs ...*kgo.Record) {
	u.t.Helper()
	require.NoError(u.t, c.ProduceSync(bg, rs...).FirstErr())
}

var epoch = time.Now().Add(-time.Hour).Truncate(time.Millisecond)

func rec(topic string, partition int32, i int) *kgo.Record {
	return &kgo.Record{Topic: topic, Partition: partition, Key: fmt.Appendf(nil, "key-%d", i%97),
		Value: fmt.Appendf(nil, `{"n":%d,"pad":"%s"}`, i, strings.Repeat("x", i%300)), Timestamp: epoch.Add(time.Duration(i) * time.Millisecond),
		Headers: []kgo.RecordHeader{{Key: "trace", Value: fmt.Append(nil, i)}, {Key: "schema", Value: []byte("3")}}}
}

func recs(topic string, partitions int32, n int) (list []*kgo.Record) {
	for i := range n {
		list = append(list, rec(topic, int32(i)%partitions, i))
	}
	return list
}

var codecs = map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}

// seed fills the bus with every awkward case, under a prefix of names. It returns
// the client of an open transaction.
func (u *bus) seed(pre string) {
	for name, codec := range codecs {
		topic := pre + name
		u.create(topic, 3, "retention.ms=259200000")
		u.produce(u.client(kgo.ProducerBatchCompression(codec), kgo.ProducerBatchMaxBytes(64<<10)), recs(topic, 3, 3000)...)
	}
	u.create(pre+"trimmed", 2)
	u.produce(u.client(kgo.ProducerBatchCompression(kgo.SnappyCompression()), kgo.ProducerBatchMaxBytes(16<<10)), recs(pre+"trimmed", 2, 4000)...)
	del := kadm.Offsets{}
	del.Add(kadm.Offset{Topic: pre + "trimmed", Partition: 0, At: 1234})
	del.Add(kadm.Offset{Topic: pre + "trimmed", Partition: 1, At: 2000})
	rs, err := u.adm.DeleteRecords(bg, del)
	require.NoError(u.t, err)
	require.NoError(u.t, rs.Error())
	u.create(pre+"append", 1, "message.timestamp.type=LogAppendTime")
	u.produce(u.Client, rec(pre+"append", 0, 1), rec(pre+"append", 0, 2))
	u.create(pre+"empty", 4, "retention.bytes=12345678")
	u.seedOdd(pre)
	u.seedTransactions(pre)
	u.seedGroups(pre)
	for _, a := range []*kadm.ACLBuilder{
		kadm.NewACLs().Allow("User:app").AllowHosts("*").Topics(pre+"ev").ResourcePatternType(kadm.ACLPatternPrefixed).Operations(kadm.OpRead, kadm.OpDescribe),
		kadm.NewACLs().Deny("User:bad").DenyHosts("10.0.0.1").Groups(pre + "g").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead),
	} {
		_, err := u.adm.CreateACLs(bg, a)
		require.NoError(u.t, err)
	}
}

func (u *bus) seedOdd(pre string) {
	odd := pre + "odd"
	u.create(odd, 1, "max.message.bytes=9000000")
	u.produce(u.Client,
		&kgo.Record{Topic: odd, Value: []byte("null key")},
		&kgo.Record{Topic: odd, Key: []byte("tombstone")},
		&kgo.Record{Topic: odd, Key: []byte{}, Value: []byte{}, Headers: []kgo.RecordHeader{{Key: "", Value: nil}, {Key: "dup", Value: []byte("1")}, {Key: "dup", Value: []byte("2")}, {Key: "bin", Value: []byte{0, 255, 10}}}},
		&kgo.Record{Topic: odd, Key: []byte{0xff, 0xfe}, Value: []byte("1970"), Timestamp: time.UnixMilli(0)},
		&kgo.Record{Topic: odd, Key: []byte("now"), Value: []byte("now"), Timestamp: time.Now()},
	)
	big := make([]byte, 5_000_000)
	for i := range big {
		big[i] = byte(i * i >> 3)
	}
	u.produce(u.client(kgo.ProducerBatchMaxBytes(8_000_000), kgo.ProducerBatchCompression(kgo.NoCompression())), &kgo.Record{Topic: odd, Value: big})
}

func (u *bus) seedTransactions(pre string) {
	topic := pre + "txn"
	u.create(topic, 1)
	tx := u.client(kgo.TransactionalID(pre + "tx"))
	for i := range 6 {
		require.NoError(u.t, tx.BeginTransaction())
		for j := range 50 {
			r := rec(topic, 0, 100*i+j)
			r.Value = fmt.Appendf(nil, "tx %d commit=%v %d", i, i%3 != 1, j)
			tx.Produce(bg, r, nil)
		}
		require.NoError(u.t, tx.Flush(bg))
		require.NoError(u.t, tx.EndTransaction(bg, kgo.TransactionEndTry(i%3 != 1)))
	}
	u.produce(u.Client, rec(topic, 0, 1))
	open := u.client(kgo.TransactionalID(pre+"open"), kgo.TransactionTimeout(time.Minute))
	require.NoError(u.t, open.BeginTransaction())
	u.produce(open, rec(topic, 0, 2), rec(topic, 0, 3))
	u.produce(u.Client, rec(topic, 0, 4)) // committed, behind the open transaction
}

func (u *bus) seedGroups(pre string) {
	at := func(topic string, partition int32, offset int64, metadata string) kadm.Offset {
		return kadm.Offset{Topic: pre + topic, Partition: partition, At: offset, LeaderEpoch: -1, Metadata: metadata}
	}
	for g, os := range map[string][]kadm.Offset{
		"g mid with spaces": {at("none", 0, 250, "checkpoint 7"), at("zstd", 2, 1000, "")},
		"g-behind-trim":     {at("trimmed", 0, 10, ""), at("trimmed", 1, 2000, "")},
		"g-trim":            {at("trimmed", 0, 1500, "")},
		"g-txn":             {at("txn", 0, 160, "")},
		"g-beyond":          {at("txn", 0, 308, "")},
	} {
		offsets := kadm.Offsets{}
		for _, o := range os {
			offsets.Add(o)
		}
		require.NoError(u.t, u.adm.CommitAllOffsets(bg, pre+g, offsets))
	}
}

// content digests what a consumer of committed records reads of each partition up
// to the given offsets (nil: all): number and order-bound sum.
func (u *bus) content(topic string, upto map[int32]int64) map[int32]string {
	u.t.Helper()
	starts, err := u.adm.ListStartOffsets(bg, topic)
	require.NoError(u.t, err)
	ends, err := u.adm.ListCommittedOffsets(bg, topic)
	require.NoError(u.t, err)
	out := map[int32]string{}
	ends.Each(func(l kadm.ListedOffset) {
		s, _ := starts.Lookup(topic, l.Partition)
		end := l.Offset
		if to, ok := upto[l.Partition]; ok {
			end = min(end, to)
		}
		out[l.Partition] = u.partitionContent(topic, l.Partition, s.Offset, end)
	})
	return out
}

func (u *bus) partitionContent(topic string, p int32, from, to int64) string {
	d := newDigest()
	if from < to {
		c := u.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(200*time.Millisecond),
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().At(from)}}))
		defer c.Close()
		last := time.Now()
		for at := from; at < to && time.Since(last) < 2*time.Second; {
			ctx, cancel := context.WithTimeout(bg, 500*time.Millisecond)
			fs := c.PollFetches(ctx)
			cancel()
			fs.EachRecord(func(r *kgo.Record) {
				last, at = time.Now(), r.Offset+1
				if r.Offset >= to || r.Attrs.IsControl() {
					return
				}
				d.add(r)
			})
		}
	}
	return d.String()
}

// digest is the number of records and a sum bound to their order.
type digest struct {
	n int
	h hash.Hash
}

func newDigest() *digest { return &digest{h: sha256.New()} }

func (d *digest) put(b []byte) {
	l := int64(len(b))
	if b == nil {
		l = -1
	}
	_ = binary.Write(d.h, binary.BigEndian, l)
	d.h.Write(b)
}

func (d *digest) add(r *kgo.Record) {
	d.n++
	_ = binary.Write(d.h, binary.BigEndian, r.Timestamp.UnixMilli())
	d.put(r.Key)
	d.put(r.Value)
	for _, x := range r.Headers {
		d.put([]byte(x.Key))
		d.put(x.Value)
	}
}

func (d *digest) String() string {
	return fmt.Sprintf("%d %s", d.n, hex.EncodeToString(d.h.Sum(nil))[:16])
}

// next is the record that a group reads next, "" at the end.
func (u *bus) next(topic string, p int32, at, end int64) string {
	if at >= end {
		return ""
	}
	c := u.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().At(at)}}))
	defer c.Close()
	ctx, cancel := context.WithTimeout(bg, 1500*time.Millisecond)
	defer cancel()
	read := c.PollFetches(ctx).Records()
	if len(read) == 0 || read[0].Offset >= end {
		return ""
	}
	return fmt.Sprintf("%s %.60s %d", read[0].Key, read[0].Value, read[0].Timestamp.UnixMilli())
}

// compare wants the loaded bus to hold what the source held at the cut.
func compare(t *testing.T, e *set.EventBus, from, to *bus) {
	t.Helper()
	for _, topic := range e.Topics {
		upto := map[int32]int64{}
		for _, p := range topic.Partitions {
			upto[p.ID] = p.Cut
		}
		require.Equal(t, from.content(topic.Name, upto), to.content(topic.Name, nil), topic.Name)
	}
	for _, g := range e.Groups {
		now, err := to.adm.FetchOffsets(bg, g.Name)
		require.NoError(t, err)
		for _, o := range g.Offsets {
			cut := int64(-1)
			for _, topic := range e.Topics {
				if topic.Name == o.Topic {
					cut = topic.Partitions[o.Partition].Cut
				}
			}
			if cut < 0 {
				continue // of a topic that is not in the set
			}
			at, ok := now.Lookup(o.Topic, o.Partition)
			require.True(t, ok, "%s %s", g.Name, o.Topic)
			require.Equal(t, o.Metadata, at.Metadata)
			require.Equal(t, from.next(o.Topic, o.Partition, o.Offset, cut), to.next(o.Topic, o.Partition, at.At, 1<<62), "%s in %s: %d became %d", g.Name, o.Topic, o.Offset, at.At)
		}
	}
}
