package eventbus

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
)

// split gives the batches of a segment.
func split(t testing.TB, content []byte) (list []batch) {
	for len(content) > 0 {
		b, err := parseBatch(content)
		require.NoError(t, err)
		list, content = append(list, b), content[len(b.raw):]
	}
	return list
}

// rebuilt makes a segment's content of batches, and the manifest agree with it in
// everything but the offsets.
func rebuilt(s *store, p *set.Partition, sg *set.Segment, list []batch) {
	var content []byte
	p.Batches, p.Records, p.Bytes = p.Batches-sg.Batches, p.Records-sg.Records, p.Bytes-sg.Bytes
	sg.Batches, sg.Records = 0, 0
	for _, b := range list {
		content = append(content, b.raw...)
		sg.Batches++
		sg.Records += int64(b.count)
		p.MaxBatch = max(p.MaxBatch, len(b.raw))
	}
	agree(sg, content)
	p.Batches, p.Records, p.Bytes = p.Batches+sg.Batches, p.Records+sg.Records, p.Bytes+sg.Bytes
	s.content[sg.Entry] = content
}

// changed is a copy of a batch whose header was altered, with a CRC that fits.
func changed(t testing.TB, b batch, alter func(raw []byte)) batch {
	raw := bytes.Clone(b.raw)
	alter(raw)
	be := binary.BigEndian
	stamp(raw, identity{int64(be.Uint64(raw[43:])), int16(be.Uint16(raw[51:])), int32(be.Uint32(raw[53:]))})
	out, err := parseBatch(raw)
	require.NoError(t, err)
	return out
}

func TestVerifyFindsMovedAndAddedThings(t *testing.T) {
	b := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	b.create("t", 2)
	b.create("compacted", 2, "cleanup.policy=compact")
	for _, topic := range []string{"t", "compacted"} {
		b.produce(b.client(kgo.ProducerBatchCompression(kgo.Lz4Compression()), kgo.ProducerBatchMaxBytes(8<<10)), recs(topic, 2, 6000)...)
	}
	o := b.options()
	o.SegmentBytes, o.FetchBytes = 40_000, 20_000
	good, goodStore, _ := dumpAll(t, o)
	be := binary.BigEndian
	cases := map[string]func(topic *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch){
		"two batches change places": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			in[1], in[2] = in[2], in[1]
			rebuilt(s, p, sg, in)
		},
		"a batch twice": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			rebuilt(s, p, sg, slices.Insert(in, 2, in[1]))
		},
		"a batch of another segment added": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			rebuilt(s, p, sg, append(in, split(t, s.content[p.Segments[0].Entry])[0]))
		},
		"a batch of after the cut added": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			rebuilt(s, p, sg, append(in, changed(t, in[0], func(raw []byte) { be.PutUint64(raw, uint64(p.Cut)) })))
		},
		"a control batch": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			in[1] = changed(t, in[1], func(raw []byte) { raw[22] |= attrControl })
			rebuilt(s, p, sg, in)
		},
		"another number of records": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			in[1] = changed(t, in[1], func(raw []byte) { be.PutUint32(raw[57:], uint32(in[1].count-1)) })
			rebuilt(s, p, sg, in)
		},
		"another codec": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			in[1] = changed(t, in[1], func(raw []byte) { raw[22] = codecGzip })
			rebuilt(s, p, sg, in)
		},
		"two segments change places": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			other := &p.Segments[0]
			rest := split(t, s.content[other.Entry])
			rebuilt(s, p, sg, rest)
			rebuilt(s, p, other, in)
		},
		"two partitions change places": func(topic *set.Topic, p *set.Partition, s *store, sg *set.Segment, _ []batch) {
			q := &topic.Partitions[1]
			if q.Segments[0].Last == p.Segments[0].Last { // else the offsets tell
				q.Cut++
			}
			p.Segments, q.Segments = q.Segments, p.Segments
		},
		"the log's start moved": func(_ *set.Topic, p *set.Partition, _ *store, sg *set.Segment, _ []batch) {
			p.Start = sg.Base
		},
		"the cut moved on": func(_ *set.Topic, p *set.Partition, _ *store, _ *set.Segment, _ []batch) {
			p.Cut += 10
			p.HighWatermark += 10
		},
		"the cut moved back": func(_ *set.Topic, p *set.Partition, _ *store, _ *set.Segment, _ []batch) {
			p.Cut = p.Segments[len(p.Segments)-1].Base
		},
		"a segment listed twice": func(_ *set.Topic, p *set.Partition, s *store, sg *set.Segment, in []batch) {
			p.Segments = append(p.Segments, *sg)
			p.Batches, p.Records, p.Bytes = p.Batches+sg.Batches, p.Records+sg.Records, p.Bytes+sg.Bytes
		},
		"a gap that is none": func(_ *set.Topic, p *set.Partition, _ *store, _ *set.Segment, _ []batch) {
			p.Gaps = []set.Gap{{From: 7, To: 3}}
		},
		"a partition missing": func(topic *set.Topic, p *set.Partition, s *store, _ *set.Segment, _ []batch) {
			for _, sg := range p.Segments {
				delete(s.content, sg.Entry)
			}
			topic.Partitions = topic.Partitions[1:]
		},
		"the topic twice": func(topic *set.Topic, _ *set.Partition, _ *store, _ *set.Segment, _ []batch) {
			topic.Name = "t"
			topic.Partitions = nil
		},
		"a smaller largest batch": func(_ *set.Topic, p *set.Partition, _ *store, _ *set.Segment, _ []batch) {
			p.MaxBatch = 1000
		},
	}
	for name, damage := range cases {
		for topic := range good.Topics {
			t.Run(name+" in "+good.Topics[topic].Name, func(t *testing.T) {
				e, err := clone(good)
				require.NoError(t, err)
				s := newStore()
				s.order = goodStore.order
				for k, v := range goodStore.content {
					s.content[k] = bytes.Clone(v)
				}
				x := &e.Topics[topic]
				p := &x.Partitions[0]
				sg := &p.Segments[1]
				damage(x, p, s, sg, split(t, s.content[sg.Entry]))
				require.NotEmpty(t, s.verify(t, e))
			})
		}
	}
}

// A stream that breaks is an error, not damage.
func TestVerifierTellsABrokenStreamFromDamage(t *testing.T) {
	raw := wrap(nil, []byte{16, 0, 0, 0, 1, 2, 'v', 0, 0}, 1, 0, 0, codecNone)
	stamp(raw, anonymous)
	e, s := oneSegment(raw, 1)
	broken := errors.New("the disk is gone")
	for n := range len(raw) {
		v := NewVerifier(e, func(d set.Damage) { t.Errorf("%d: %s", n, d.Problem) })
		err := v.Entry(s.order[0], int64(len(raw)), io.MultiReader(bytes.NewReader(raw[:n]), failing{broken}))
		require.ErrorIs(t, err, broken)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Batches that claim or unfold to more than anybody has memory for.
func TestVerifyBombsInLittleMemory(t *testing.T) {
	var heap runtime.MemStats
	check := func(name string, e *set.EventBus, s *store) {
		runtime.GC()
		runtime.ReadMemStats(&heap)
		before := heap.TotalAlloc
		found := s.verify(t, e)
		runtime.ReadMemStats(&heap)
		require.NotEmpty(t, found, name)
		require.Less(t, heap.TotalAlloc-before, uint64(64<<20), name)
	}
	batchOf := func(records []byte, codec int8) (*set.EventBus, *store) {
		raw := wrap(nil, records, 1, 0, 0, codec)
		stamp(raw, anonymous)
		return oneSegment(raw, 1)
	}
	// 200 MB of zeros, which are records without end.
	zeros := make([]byte, 1<<20)
	var gz, lz bytes.Buffer
	g, l := gzip.NewWriter(&gz), lz4.NewWriter(&lz)
	for range 200 {
		_, err := g.Write(zeros)
		require.NoError(t, err)
		_, err = l.Write(zeros)
		require.NoError(t, err)
	}
	require.NoError(t, g.Close())
	require.NoError(t, l.Close())
	e, s := batchOf(gz.Bytes(), codecGzip)
	check("gzip", e, s)
	e, s = batchOf(lz.Bytes(), codecLZ4)
	check("lz4", e, s)
	// A block that claims 1.9 GB.
	claim := append(binary.AppendUvarint(nil, 1_900_000_000), bytes.Repeat([]byte{0xfe, 1, 0}, 100_000)...)
	e, s = batchOf(claim, codecSnappy)
	check("snappy", e, s)
	framed := append(append([]byte{}, xerialMagic...), 0, 0, 0, 1, 0, 0, 0, 1)
	framed = append(binary.BigEndian.AppendUint32(framed, uint32(len(claim))), claim...)
	e, s = batchOf(framed, codecSnappy)
	check("snappy in frames", e, s)
	// A record that claims 2 GB, and one of 2^31 headers.
	e, s = batchOf(binary.AppendVarint(nil, 1<<31-1), codecNone)
	check("record length", e, s)
	e, s = batchOf(append(binary.AppendVarint(nil, 40), append([]byte{0, 0, 0, 1, 1}, binary.AppendVarint(nil, 1<<31)...)...), codecNone)
	check("headers", e, s)

	// An entry that is one batch of 1 GB, which the manifest does not know of.
	raw := wrap(nil, []byte{16, 0, 0, 0, 1, 2, 'v', 0, 0}, 1, 0, 0, codecNone)
	stamp(raw, anonymous)
	e, s = oneSegment(raw, 1)
	head := bytes.Clone(raw)
	binary.BigEndian.PutUint32(head[8:], 1<<30-lengthEnd)
	runtime.ReadMemStats(&heap)
	before := heap.TotalAlloc
	var found []string
	v := NewVerifier(e, func(d set.Damage) { found = append(found, d.Problem) })
	require.NoError(t, v.Entry(s.order[0], 1<<30, io.MultiReader(bytes.NewReader(head), io.LimitReader(endless{}, 1<<28))))
	runtime.ReadMemStats(&heap)
	require.Contains(t, strings.Join(found, "\n"), "does not fit")
	require.Less(t, heap.TotalAlloc-before, uint64(16<<20))
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// The most that snappy can do is taken: long runs of one byte.
func TestVerifyTakesWhatCompressesBest(t *testing.T) {
	value := make([]byte, 4<<20)
	record := append([]byte{0, 0, 0, 1}, binary.AppendVarint(nil, int64(len(value)))...)
	record = append(append(record, value...), 0)
	record = append(binary.AppendVarint(nil, int64(len(record))), record...)
	for codec, name := range map[int8]string{codecGzip: "gzip", codecSnappy: "snappy", codecLZ4: "lz4", codecZstd: "zstd"} {
		c, err := compressor(codec)
		require.NoError(t, err)
		var dst bytes.Buffer
		packed, _ := c.Compress(&dst, record)
		if codec == codecSnappy {
			packed = snappy.Encode(nil, record)
		}
		raw := wrap(nil, packed, 1, 0, 0, codec)
		stamp(raw, anonymous)
		e, s := oneSegment(raw, 1)
		require.Empty(t, s.verify(t, e), fmt.Sprint(name, len(packed)))
	}
}
