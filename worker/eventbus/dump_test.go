package eventbus

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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

// heapSink drops segments and watches the heap.
type heapSink struct{ peak uint64 }

func (h *heapSink) Segment(context.Context, string, []byte, bool) error {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h.peak = max(h.peak, m.HeapInuse)
	return nil
}

func TestLargeTopicInLittleMemory(t *testing.T) {
	b := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	b.create("large", 4)
	c := b.client(kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedBytes(16<<20))
	random := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, 100_000)
	for i := range value {
		value[i] = byte(random.Uint32())
	}
	for i := range 2000 {
		c.Produce(bg, &kgo.Record{Topic: "large", Partition: int32(i % 4), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	require.NoError(t, c.Flush(bg))
	c.Close()
	pos, _, err := ReadPositions(bg, b.options())
	require.NoError(t, err)
	runtime.GC()
	h := &heapSink{}
	e, _, err := Dump(bg, b.options(), pos, h, stage.NoProgress{})
	require.NoError(t, err)
	var stored int64
	for _, p := range e.Topics[0].Partitions {
		stored += p.Bytes
	}
	require.Greater(t, stored, int64(200_000_000))
	t.Logf("%d MB of heap at most", h.peak>>20)
	// Four segments of 16 MB lie outside of the heap.
	require.Less(t, h.peak, uint64(100<<20)-4*16<<20+1)
}

// inside is a kfake in this process: only there can an answer be made wrong.
func inside(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, Options) {
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(1, "t")}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ProducerBatchMaxBytes(4<<10), kgo.ProducerBatchCompression(kgo.NoCompression()))
	require.NoError(t, err)
	defer cl.Close()
	require.NoError(t, cl.ProduceSync(bg, recs("t", 1, 2000)...).FirstErr())
	return c, Options{Brokers: c.ListenAddrs(), Budget: 5 * time.Second, FetchBytes: 8 << 10, SegmentBytes: 40_000}
}

// answering lets change alter n fetch answers from the n-th on. The answer is
// made of what a good dump stored.
func answering(t *testing.T, c *kfake.Cluster, o Options, times int32, change func(good []byte) []byte) *atomic.Int32 {
	e, s, _ := dumpAll(t, o)
	log := s.content[e.Topics[0].Partitions[0].Segments[0].Entry]
	var done atomic.Int32
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		r := req.(*kmsg.FetchRequest)
		if len(r.Topics) == 0 || r.Topics[0].Partitions[0].FetchOffset != 0 || done.Load() >= times {
			return nil, nil, false
		}
		done.Add(1)
		resp := r.ResponseKind().(*kmsg.FetchResponse)
		resp.SetVersion(r.Version)
		rt := kmsg.NewFetchResponseTopic()
		rt.Topic, rt.TopicID = r.Topics[0].Topic, r.Topics[0].TopicID
		rp := kmsg.NewFetchResponseTopicPartition()
		rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = 2000, 2000, 0
		rp.RecordBatches = change(append([]byte{}, log...))
		rt.Partitions = append(rt.Partitions, rp)
		resp.Topics = append(resp.Topics, rt)
		return resp, nil, true
	})
	return &done
}

func TestOldRecordFormatIsRefused(t *testing.T) {
	for magic := range byte(2) {
		c, o := inside(t)
		// A message of magic 0 or 1: offset, size, CRC-32, magic, attributes,
		// (timestamp), key, value.
		body := []byte{magic, 0}
		if magic == 1 {
			body = binary.BigEndian.AppendUint64(body, 1_600_000_000_000)
		}
		body = binary.BigEndian.AppendUint32(body, 0xffffffff)
		body = append(binary.BigEndian.AppendUint32(body, 3), "old"...)
		message := binary.BigEndian.AppendUint32(make([]byte, 8), uint32(4+len(body)))
		message = append(binary.BigEndian.AppendUint32(message, crc32.ChecksumIEEE(body)), body...)
		answering(t, c, o, 1<<20, func([]byte) []byte { return message })
		_, _, err := dumpInto(o, newStore())
		require.ErrorContains(t, err, "topic t partition 0 offset 0: record format before magic 2")
		require.True(t, stage.IsPermanent(err))
	}
}

func TestDamagedBatch(t *testing.T) {
	flip := func(good []byte) []byte { good[batchHeader+5] ^= 1; return good }
	c, o := inside(t) // on the way: gone at the second try
	done := answering(t, c, o, 2, flip)
	s := newStore()
	e, _, err := dumpInto(o, s)
	require.NoError(t, err)
	require.Empty(t, s.verify(t, e))
	require.Equal(t, int32(2), done.Load())

	c, o = inside(t) // in the log
	answering(t, c, o, 1<<20, flip)
	_, _, err = dumpInto(o, newStore())
	require.ErrorContains(t, err, "topic t partition 0 offset 0: the batch's CRC-32C is wrong")
	require.True(t, stage.IsPermanent(err))

	// Batches missing in the middle of a log that is not compacted.
	c, o = inside(t)
	hole := func(good []byte) []byte {
		first, _ := parseBatch(good)
		second, _ := parseBatch(good[len(first.raw):])
		return append(first.raw, good[len(first.raw)+len(second.raw):]...)
	}
	answering(t, c, o, 1<<20, hole)
	_, _, err = dumpInto(o, newStore())
	require.ErrorContains(t, err, "missing in the broker's log")
	require.True(t, stage.IsPermanent(err))
}

func TestLeaderMovesDuringDump(t *testing.T) {
	c, o := inside(t, kfake.NumBrokers(3))
	calm, calmStore, _ := dumpAll(t, o)
	s := newStore()
	s.hook = func(string) {
		require.NoError(t, c.MoveTopicPartition("t", 0, (c.LeaderFor("t", 0)+1)%3))
	}
	e, _, err := dumpInto(o, s)
	require.NoError(t, err)
	require.Equal(t, calm.Topics, e.Topics)
	require.Equal(t, calmStore.content, s.content)
	require.Greater(t, len(s.order), 2)
}

// The topic counts as deleted when its name comes back: neither topic may be
// passed off as the whole.
func TestTopicRecreatedAfterItsDeletionWasSeen(t *testing.T) {
	t.Parallel()
	for _, allowed := range []bool{false, true} {
		b, o := filled(t, "t", 1, 6000)
		o.AllowGaps = allowed
		b.create("small", 1)
		b.produce(b.Client, rec("small", 0, 1))
		s := newStore()
		n := 0
		s.hook = func(entry string) {
			switch {
			case strings.Contains(entry, "/small/"):
				b.create("t", 1)
			case n == 1:
				_, err := b.adm.DeleteTopics(bg, "t")
				require.NoError(t, err)
			}
			n++
		}
		e, f, err := dumpInto(o, s)
		if !allowed {
			require.ErrorContains(t, err, "created again")
			require.True(t, stage.IsPermanent(err))
			continue
		}
		require.NoError(t, err)
		require.Len(t, f.Warnings, 1)
		require.Contains(t, f.Warnings[0], "topic t was deleted while it was read; it is not in the set")
		require.Equal(t, []string{"small"}, topicNames(e.Topics))
		require.Empty(t, s.verify(t, e))
	}
}

func TestTopicDeletedAfterItWasRead(t *testing.T) {
	t.Parallel()
	b, o := filled(t, "t", 1, 6000)
	b.create("small", 1)
	b.produce(b.Client, rec("small", 0, 1))
	s := newStore()
	s.hook = func(entry string) {
		if strings.Contains(entry, "/small/") {
			_, err := b.adm.DeleteTopics(bg, "t")
			require.NoError(t, err)
		}
	}
	e, f, err := dumpInto(o, s)
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "topic t was deleted")
	require.Len(t, e.Topics, 2)
	require.Empty(t, s.verify(t, e))
}

// Between the positions and the dump topics come, go, and come back.
func TestTopicsChangeBetweenPositionsAndDump(t *testing.T) {
	b, o := filled(t, "stays", 1, 10)
	b.create("goes", 1)
	b.create("again", 1)
	pos, _, err := ReadPositions(bg, o)
	require.NoError(t, err)
	_, err = b.adm.DeleteTopics(bg, "goes")
	require.NoError(t, err)
	b.create("comes", 1)
	e, f, err := Dump(bg, o, pos, newStore(), stage.NoProgress{})
	require.NoError(t, err)
	require.Equal(t, []string{"again", "comes", "stays"}, topicNames(e.Topics))
	require.Contains(t, strings.Join(f.Warnings, "\n"), "topic goes was deleted")
	_, err = b.adm.DeleteTopics(bg, "again")
	require.NoError(t, err)
	b.create("again", 1)
	_, _, err = Dump(bg, o, pos, newStore(), stage.NoProgress{})
	require.ErrorContains(t, err, "topic again was deleted and created again")
	require.True(t, stage.IsPermanent(err))
	o.AllowGaps = true
	_, f, err = Dump(bg, o, pos, newStore(), stage.NoProgress{})
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "topic again was deleted and created again")
}

// A frozen broker keeps its connections open and answers nothing.
func TestFrozenBroker(t *testing.T) {
	t.Parallel()
	b, o := filled(t, "t", 1, 6000)
	pos, _, err := ReadPositions(bg, o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(bg)
	s := newStore()
	var at time.Time
	var timer *time.Timer
	once(s, func() {
		require.NoError(t, b.b.Stop())
		timer = time.AfterFunc(time.Second, func() { at = time.Now(); cancel() })
	})
	_, _, err = Dump(ctx, o, pos, s, stage.NoProgress{})
	require.NotNil(t, timer)
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, time.Since(at), 3*time.Second)
	require.NoError(t, b.b.Cont())

	s = newStore() // and goes on when the broker does
	var wg sync.WaitGroup
	once(s, func() {
		require.NoError(t, b.b.Stop())
		wg.Go(func() { time.Sleep(2 * time.Second); require.NoError(t, b.b.Cont()) })
	})
	e, _, err := dumpInto(o, s)
	wg.Wait()
	require.NoError(t, err)
	require.Empty(t, s.verify(t, e))
}

func TestTopicsAreChosen(t *testing.T) {
	b, o := filled(t, "events.a", 1, 10)
	b.create("events.b", 1)
	b.create("audit", 1)
	o.Include, o.Exclude = []string{"events.*"}, []string{"*.b"}
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: "audit", At: 0, LeaderEpoch: -1})
	require.NoError(t, b.adm.CommitAllOffsets(bg, "g", offsets))
	e, s, f := dumpAll(t, o)
	require.Empty(t, f.Warnings)
	require.Equal(t, []string{"events.a"}, topicNames(e.Topics))
	require.Empty(t, s.verify(t, e))
	for _, bad := range []Options{{}, {Brokers: []string{"nowhere"}}, {Brokers: o.Brokers, Include: []string{"["}}, {Brokers: o.Brokers, AllowGapsIn: []string{"["}}, {Brokers: o.Brokers, TransactionWait: -1}, {Brokers: o.Brokers, Parallel: -1},
		{Brokers: o.Brokers, SASL: &SASL{"GSSAPI", "u", "p"}}, {Brokers: o.Brokers, SASL: &SASL{Plain, "u", ""}}, {Brokers: o.Brokers, TLS: &TLS{CertFile: "x"}},
		{Brokers: o.Brokers, TLS: &TLS{CAFile: "/does/not/exist"}}} {
		_, _, err := Probe(bg, bad)
		require.True(t, stage.IsPermanent(err), "%+v: %v", bad, err)
	}
}

// kfake takes a name that Apache Kafka refuses and that must not become a path.
func TestHostileTopicName(t *testing.T) {
	b := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	_, err := b.adm.CreateTopic(bg, 1, 1, nil, "../../etc/x")
	if err == nil {
		_, _, err = Probe(bg, b.options())
		require.ErrorContains(t, err, "not one that Kafka allows")
		require.True(t, stage.IsPermanent(err))
	}
	for _, name := range []string{"", ".", "..", "a/b", "a b", "ä", strings.Repeat("x", 250), "a\n"} {
		require.Error(t, checkTopicName(name), "%q", name)
	}
}
