package eventbus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
)

// agree makes the manifest's line for a segment agree with its changed content.
func agree(sg *set.Segment, content []byte) {
	sum := sha256.Sum256(content)
	sg.SHA256, sg.Bytes = hex.EncodeToString(sum[:]), int64(len(content))
}

// drop takes segment i out of a partition, counts and all.
func drop(p *set.Partition, i int) {
	sg := p.Segments[i]
	p.Batches, p.Records, p.Bytes = p.Batches-sg.Batches, p.Records-sg.Records, p.Bytes-sg.Bytes
	p.Segments = slices.Delete(p.Segments, i, i+1)
}

func TestVerifyFindsDamageThoughTheManifestAgrees(t *testing.T) {
	b := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	b.create("t", 1)
	b.create("compacted", 1, "cleanup.policy=compact")
	for _, topic := range []string{"t", "compacted"} {
		b.produce(b.client(kgo.ProducerBatchCompression(kgo.ZstdCompression()), kgo.ProducerBatchMaxBytes(8<<10)), recs(topic, 1, 6000)...)
	}
	o := b.options()
	o.SegmentBytes, o.FetchBytes = 40_000, 20_000
	good, goodStore, _ := dumpAll(t, o)
	require.Empty(t, goodStore.verify(t, good))
	require.Greater(t, len(good.Topics[0].Partitions[0].Segments), 2)
	cases := map[string]func(e *set.EventBus, p *set.Partition, s *store, sg *set.Segment) bool{
		"flipped byte": func(_ *set.EventBus, _ *set.Partition, s *store, sg *set.Segment) bool {
			s.content[sg.Entry][sg.Bytes/2] ^= 1
			agree(sg, s.content[sg.Entry])
			return true
		},
		"flipped byte, manifest untouched": func(_ *set.EventBus, _ *set.Partition, s *store, sg *set.Segment) bool {
			s.content[sg.Entry][sg.Bytes/2] ^= 1
			return true
		},
		"flipped byte and CRC": func(_ *set.EventBus, _ *set.Partition, s *store, sg *set.Segment) bool {
			c := s.content[sg.Entry]
			n := binary.BigEndian.Uint32(c[8:]) + lengthEnd
			c[n-20] ^= 0x55
			binary.BigEndian.PutUint32(c[17:], crc32.Checksum(c[crcFrom:n], castagnoli))
			agree(sg, c)
			return true
		},
		"cut off": func(_ *set.EventBus, p *set.Partition, s *store, sg *set.Segment) bool {
			s.content[sg.Entry] = s.content[sg.Entry][:sg.Bytes-10]
			p.Bytes -= 10
			agree(sg, s.content[sg.Entry])
			return true
		},
		"batch taken out": func(_ *set.EventBus, p *set.Partition, s *store, sg *set.Segment) bool {
			c := s.content[sg.Entry]
			n := int64(binary.BigEndian.Uint32(c[8:]) + lengthEnd)
			first, _ := parseBatch(c)
			second, _ := parseBatch(c[n:])
			m := n + int64(len(second.raw))
			s.content[sg.Entry] = append(bytes.Clone(first.raw), c[m:]...)
			for _, x := range []*int64{&sg.Batches, &p.Batches} {
				*x--
			}
			for _, x := range []*int64{&sg.Records, &p.Records} {
				*x -= int64(second.count)
			}
			p.Bytes -= int64(len(second.raw))
			agree(sg, s.content[sg.Entry])
			return !p.Compacted // within a compacted segment holes are legal
		},
		"missing": func(_ *set.EventBus, _ *set.Partition, s *store, sg *set.Segment) bool {
			delete(s.content, sg.Entry)
			return true
		},
		"missing with its line": func(_ *set.EventBus, p *set.Partition, s *store, sg *set.Segment) bool {
			delete(s.content, sg.Entry)
			drop(p, 1)
			return true
		},
		"last one missing with its line": func(_ *set.EventBus, p *set.Partition, s *store, _ *set.Segment) bool {
			i := len(p.Segments) - 1
			delete(s.content, p.Segments[i].Entry)
			drop(p, i)
			return true
		},
		"stray": func(_ *set.EventBus, p *set.Partition, s *store, _ *set.Segment) bool {
			drop(p, 1)
			return true
		},
		"position after the cut": func(e *set.EventBus, p *set.Partition, _ *store, _ *set.Segment) bool {
			e.Groups = append(e.Groups, set.Group{Name: "g", Offsets: []set.GroupOffset{{Topic: "t", Offset: p.Cut + 1}}})
			return true
		},
		"bad topic name": func(e *set.EventBus, _ *set.Partition, _ *store, _ *set.Segment) bool {
			e.Topics[0].Name = "../t"
			return true
		},
		"records of nothing": func(_ *set.EventBus, p *set.Partition, _ *store, _ *set.Segment) bool {
			p.Records++
			return true
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
				p := &e.Topics[topic].Partitions[0]
				if damage(e, p, s, &p.Segments[1]) {
					require.NotEmpty(t, s.verify(t, e))
				} else {
					require.Empty(t, s.verify(t, e))
				}
			})
		}
	}
}

// bomb is a set of one batch that holds n zero bytes, compressed.
func bomb(t testing.TB, n int, count int32) (*set.EventBus, *store) {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	require.NoError(t, err)
	zeros := make([]byte, 1<<20)
	head := []byte{0, 0, 0} // attributes, time, offset
	head = binary.AppendVarint(head, -1)
	head = binary.AppendVarint(head, int64(n))
	_, err = w.Write(binary.AppendVarint(nil, int64(len(head)+n+1)))
	require.NoError(t, err)
	_, _ = w.Write(head)
	for left := n; left > 0; left -= len(zeros) {
		_, err = w.Write(zeros[:min(left, len(zeros))])
		require.NoError(t, err)
	}
	_, _ = w.Write([]byte{0})
	require.NoError(t, w.Close())
	raw := wrap(nil, out.Bytes(), count, 0, 0, codecZstd)
	stamp(raw, anonymous)
	return oneSegment(raw, count)
}

func oneSegment(raw []byte, count int32) (*set.EventBus, *store) {
	sg := set.Segment{Entry: entryName("t", 0, 1, 0), Last: int64(count - 1), Batches: 1, Records: int64(count)}
	agree(&sg, raw)
	p := set.Partition{Cut: int64(count), HighWatermark: int64(count), Batches: 1, Records: int64(count), Bytes: int64(len(raw)), MaxBatch: len(raw), Segments: []set.Segment{sg}}
	s := newStore()
	s.order, s.content[sg.Entry] = []string{sg.Entry}, raw
	return &set.EventBus{Topics: []set.Topic{{Name: "t", ReplicationFactor: 1, Partitions: []set.Partition{p}}}}, s
}

func TestVerifyHugeRecordsInLittleMemory(t *testing.T) {
	e, s := bomb(t, 300<<20, 1)
	var damage []set.Damage
	allocated := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			damage = s.verify(b, e)
		}
	}).AllocedBytesPerOp()
	require.Empty(t, damage)
	require.Less(t, allocated, int64(64<<20))
}

// A partition's end must fit the rule that it is said to end by. Sets of before
// name none, and verify as they did.
func TestVerifyEndsOfPartitions(t *testing.T) {
	_, o := filled(t, "t", 1, 1000)
	good, s, _ := dumpAll(t, o)
	require.Equal(t, set.ByCut, good.Topics[0].Partitions[0].EndedBy)
	for name, c := range map[string]struct {
		change func(p *set.Partition)
		good   bool
	}{
		"a set of before":             {func(p *set.Partition) { p.EndedBy, p.Listed = "", 0 }, true},
		"a rule of a later version":   {func(p *set.Partition) { p.EndedBy = "moon" }, true},
		"caught up":                   {func(p *set.Partition) { p.EndedBy, p.Compacted, p.Listed = set.ByCatchingUp, true, 900 }, true},
		"at a transaction":            {func(p *set.Partition) { p.EndedBy, p.Listed, p.HighWatermark = set.ByTransaction, 1010, 1010 }, true},
		"not at the cut":              {func(p *set.Partition) { p.Listed = 999 }, false},
		"caught up below the cut":     {func(p *set.Partition) { p.EndedBy, p.Compacted, p.Listed = set.ByCatchingUp, true, 1001 }, false},
		"caught up and not compacted": {func(p *set.Partition) { p.EndedBy = set.ByCatchingUp }, false},
		"no transaction":              {func(p *set.Partition) { p.EndedBy = set.ByTransaction }, false},
		"no rule":                     {func(p *set.Partition) { p.EndedBy = "" }, false},
		"two tries in one":            {func(p *set.Partition) { p.Segments[1].Entry = entryName("t", 0, 2, p.Segments[1].Base) }, false},
	} {
		e, err := clone(good)
		require.NoError(t, err)
		c.change(&e.Topics[0].Partitions[0])
		found := s.verify(t, e)
		require.Equal(t, c.good, len(found) == 0, "%s: %v", name, found)
	}
}

func FuzzVerifier(f *testing.F) {
	raw := wrap(nil, []byte{16, 0, 0, 0, 1, 2, 'v', 0, 0}, 1, 0, 0, codecNone)
	stamp(raw, anonymous)
	f.Add(raw, true)
	for codec := range int8(6) {
		b := wrap(nil, []byte("garbage that is no stream of any codec"), 3, 0, 0, codec)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, content []byte, fix bool) {
		content = bytes.Clone(content)
		if fix && len(content) >= batchHeader {
			binary.BigEndian.PutUint32(content[8:], uint32(len(content)-lengthEnd))
			content[16] = 2
			binary.BigEndian.PutUint32(content[17:], crc32.Checksum(content[crcFrom:], castagnoli))
		}
		e, s := oneSegment(content, 1)
		s.verify(t, e)
	})
}

func TestRangesAreShortInJSON(t *testing.T) {
	var r set.Ranges
	r.Add(100, 101)
	r.Add(101, 103)
	r.Add(150, 151)
	b, err := r.MarshalJSON()
	require.NoError(t, err)
	require.Equal(t, `"100+3 47+1"`, string(b))
	var back set.Ranges
	require.NoError(t, back.UnmarshalJSON(b))
	require.Equal(t, r, back)
	for _, bad := range []string{`"1"`, `"1+0"`, `"-1+5"`, `"1+9223372036854775807 1+1"`, `5`} {
		require.Error(t, back.UnmarshalJSON([]byte(bad)), bad)
	}
}
