package postgres

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// recordOf makes a record with main data and its right checksum.
func recordOf(manager, info byte, prev, main []byte) []byte {
	body := append([]byte{255, byte(len(main))}, main...)
	if len(main) > 255 {
		body = append(binary.LittleEndian.AppendUint32([]byte{254}, uint32(len(main))), main...)
	}
	if len(main) == 0 {
		body = nil
	}
	head := make([]byte, recordHeader)
	binary.LittleEndian.PutUint32(head, uint32(recordHeader+len(body)))
	copy(head[8:], prev)
	head[16], head[17] = info, manager
	sum := crc32.Update(crc32.Checksum(body, castagnoli), castagnoli, head[:20])
	binary.LittleEndian.PutUint32(head[20:], sum)
	return append(head, body...)
}

// walBuilder writes WAL as PostgreSQL lays it out, from an address on.
type walBuilder struct {
	base      uint64 // of the first segment
	page, seg int
	out       []byte
	prev      uint64
	first     uint64
}

func newBuilder(page, seg int) *walBuilder {
	b := &walBuilder{base: 5 * uint64(seg), page: page, seg: seg}
	b.header(0, 0)
	b.first = b.at()
	return b
}

func (b *walBuilder) at() uint64 { return b.base + uint64(len(b.out)) }

// header writes a page's header where a page begins.
func (b *walBuilder) header(left int, flags uint16) {
	if len(b.out)%b.page != 0 {
		return
	}
	long := len(b.out)%b.seg == 0
	if long {
		flags |= walLongHeader
	}
	if left > 0 {
		flags |= walContinues
	}
	h := binary.LittleEndian.AppendUint16(nil, walMagic[15])
	h = binary.LittleEndian.AppendUint16(h, flags)
	h = binary.LittleEndian.AppendUint32(h, 1)
	h = binary.LittleEndian.AppendUint64(h, b.at())
	h = binary.LittleEndian.AppendUint32(h, uint32(left))
	h = binary.LittleEndian.AppendUint32(h, 0)
	if long {
		h = binary.LittleEndian.AppendUint64(h, 42)
		h = binary.LittleEndian.AppendUint32(h, uint32(b.seg))
		h = binary.LittleEndian.AppendUint32(h, uint32(b.page))
	}
	b.out = append(b.out, h...)
}

// add writes a record, and gives its address.
func (b *walBuilder) add(manager, info byte, main []byte) uint64 {
	b.header(0, 0)
	at := b.at()
	r := recordOf(manager, info, binary.LittleEndian.AppendUint64(nil, b.prev), main)
	b.write(r)
	b.prev = at
	if manager == rmXLOG && info == infoSwitch {
		b.out = append(b.out, make([]byte, (b.seg-len(b.out)%b.seg)%b.seg)...)
	}
	return at
}

func (b *walBuilder) write(r []byte) {
	for len(r) > 0 {
		b.header(len(r), 0)
		n := min(len(r), b.page-len(b.out)%b.page)
		b.out = append(b.out, r[:n]...)
		r = r[n:]
	}
	b.out = append(b.out, make([]byte, (8-len(b.out)%8)%8)...)
}

// end writes the record of the backup's end, and gives the sample.
func (b *walBuilder) end(t testing.TB) *walSample {
	b.add(rmXLOG, infoBackupEnd, binary.LittleEndian.AppendUint64(nil, b.first))
	s := &walSample{part: walPart(t, lsnText(b.first), lsnText(b.at()), int64(b.seg), 150000, "42")}
	b.add(rmTablespace, infoTablespaceCreate, tablespaceData(9, "/behind the end"))
	b.out = append(b.out, make([]byte, (b.seg-len(b.out)%b.seg)%b.seg)...)
	for i := 0; i*b.seg < len(b.out); i++ {
		s.segments = append(s.segments, b.out[i*b.seg:(i+1)*b.seg])
	}
	first, err := newWALHistory(s.part)
	require.NoError(t, err)
	s.segments = s.segments[:first.segments]
	return s
}

func tablespaceData(oid uint32, path string) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, oid), path+"\x00"...)
}

const rmMessage = 21 // LogicalMessage

// TestWALSplitAnywhere lets a segment end at every place of a tablespace's record, its
// header included, of those after it, and of the backup's end.
func TestWALSplitAnywhere(t *testing.T) {
	const seg = 1 << 20
	path := "/" + strings.Repeat("long ", 60)
	random := rand.New(rand.NewPCG(1, 2))
	for _, page := range []int{8192, 65536} {
		for short := 0; short <= 720; short += 8 {
			b := newBuilder(page, seg)
			filler := seg - len(b.out) - seg/page*24 - short
			b.add(rmMessage, 0, make([]byte, filler-recordHeader))
			at := b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, path))
			b.add(rmDatabase, infoDatabaseCopy, bytes.Repeat([]byte{8, 0, 0, 0}, 4))
			b.add(rmCustom+5, 0x70, []byte("of an extension"))
			b.add(rmTablespace, infoTablespaceDrop, binary.LittleEndian.AppendUint32(nil, 7))
			s := b.end(t)
			for _, order := range [][]int{orderOf(len(s.segments)), {1, 0}} {
				if len(s.segments) == 1 {
					order = []int{0}
				}
				h, records := s.scan(t, order, func() int { return 1 + random.IntN(40000) })
				require.Empty(t, h.problem, "page %d, short %d", page, short)
				require.Equal(t, []string{"made 7 at " + path, "copied 8 from 8", "dropped 7"}, h.eventTexts(), "page %d, short %d", page, short)
				require.Equal(t, at, h.events[0].at)
				require.Equal(t, []int{133}, h.customManagers())
				require.Len(t, records, 6)
			}
		}
	}
}

// TestWALOfManySegments: a record over several segments, a switch whose own record is
// split, and what a crash overwrote; in every order.
func TestWALOfManySegments(t *testing.T) {
	const seg, page = 1 << 20, 8192
	for _, short := range []int{0, 8, 16, 24, 32} {
		b := newBuilder(page, seg)
		b.add(rmMessage, 0, make([]byte, seg-len(b.out)-seg/page*24-short-recordHeader))
		b.add(rmXLOG, infoSwitch, nil)
		b.add(rmMessage, 0, bytes.Repeat([]byte("abcdefg"), 400000))
		// Begun and lost: the server goes on at the next segment, or page.
		b.header(0, 0)
		lost := recordOf(rmMessage, 0, binary.LittleEndian.AppendUint64(nil, b.prev), make([]byte, 3*seg))
		goesOn := (len(b.out)/seg+1)*seg + short/8*page
		for len(b.out) < goesOn {
			b.header(len(lost), 0)
			b.out, lost = append(b.out, lost[0]), lost[1:]
		}
		b.header(0, walOverwritten)
		b.add(rmXLOG, 0xD0, make([]byte, 16))
		b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, "/x"))
		s := b.end(t)
		require.GreaterOrEqual(t, len(s.segments), 5)
		for _, order := range permutations(len(s.segments)) {
			h, records := s.scan(t, order, func() int { return 100000 })
			require.Empty(t, h.problem, "short %d, order %v", short, order)
			require.Len(t, records, 6)
			require.Equal(t, []string{"made 7 at /x"}, h.eventTexts())
		}
	}
}

// permutations gives some orders of n, the two simple ones among them.
func permutations(n int) [][]int {
	backwards := orderOf(n)
	for i := range backwards {
		backwards[i] = n - 1 - i
	}
	orders := [][]int{orderOf(n), backwards}
	random := rand.New(rand.NewPCG(3, 4))
	for range 6 {
		orders = append(orders, random.Perm(n))
	}
	return orders
}

// small is WAL with something of everything in two segments.
func small(t testing.TB) *walSample {
	b := newBuilder(8192, 1<<20)
	b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, "/x"))
	for i := range 200 {
		b.add(rmMessage, 0, bytes.Repeat([]byte{byte(i)}, i*97))
	}
	b.add(rmTablespace, infoTablespaceDrop, tablespaceData(7, "")[:4])
	return b.end(t)
}

// TestWALThatBreaks: wherever a byte of a record is changed, the scan says so; nothing
// makes it fall over.
func TestWALThatBreaks(t *testing.T) {
	s := small(t)
	h, records := s.scan(t, orderOf(len(s.segments)), func() int { return 1 << 20 })
	require.Empty(t, h.problem)
	require.Len(t, records, 203)
	from, err := parseLSN(s.part.StartLSN)
	require.NoError(t, err)
	to, err := parseLSN(s.part.StopLSN)
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(5, 6))
	found := 0
	const tries = 400
	for range tries {
		at := from + random.Uint64N(to-from)
		n, offset := int(at>>20)-int(from>>20), at&(1<<20-1)
		was := s.segments[n][offset]
		s.segments[n][offset] ^= 1 << random.IntN(8)
		if h := scanned(t, s); h.problem != "" {
			found++
			require.Contains(t, h.problem, "the WAL breaks at "+lsnText(from)[:2])
		} else { // the filling behind a record, or of a page's header
			require.Len(t, h.events, 2)
		}
		s.segments[n][offset] = was
	}
	require.Greater(t, found, tries*9/10)
}

// TestWALOfABigEndianMachine is told as what it is.
func TestWALOfABigEndianMachine(t *testing.T) {
	s := small(t)
	h, err := newWALHistory(s.part)
	require.NoError(t, err)
	head := binary.BigEndian.AppendUint16(nil, walMagic[15])
	head = binary.BigEndian.AppendUint16(head, walLongHeader)
	head = binary.BigEndian.AppendUint32(head, 1)
	head = binary.BigEndian.AppendUint64(head, 5<<20)
	head = binary.BigEndian.AppendUint64(head, 0)
	head = binary.BigEndian.AppendUint64(head, 42)
	head = binary.BigEndian.AppendUint32(head, 1<<20)
	head = binary.BigEndian.AppendUint32(head, 8192)
	c := checkerOf(s.part, segment{1, 5})
	c.records = h.reader(5)
	_, _ = c.Write(append(head, make([]byte, 1<<20-len(head))...))
	require.Empty(t, c.problem)
	h.take(c.records)
	require.Contains(t, h.problem, "big-endian")
}

// TestWALChain: what has right checksums and yet does not follow from what was before.
func TestWALChain(t *testing.T) {
	const seg, page = 1 << 20, 8192
	long := func(b *walBuilder, more int) { // a record up to the end of the segment, less or more
		b.header(0, 0)
		room := seg - len(b.out)%seg
		b.add(rmMessage, 0, make([]byte, room-room/page*24-recordHeader-5+more))
	}
	// left changes the bytes that a page's header says a record has left.
	left := func(s *walSample, at int, by uint32) {
		h := s.segments[at/seg][at%seg:]
		binary.LittleEndian.PutUint32(h[16:], binary.LittleEndian.Uint32(h[16:])+by)
		h[2] |= walContinues
	}
	for name, c := range map[string]struct {
		build func(*walBuilder)
		spoil func(*walSample)
		says  string
	}{
		"good":                   {build: func(b *walBuilder) { long(b, 0); long(b, 0) }},
		"another before":         {build: func(b *walBuilder) { long(b, -5000); b.prev -= 8; long(b, 0) }, says: "does not follow the one at"},
		"another before, split":  {build: func(b *walBuilder) { long(b, -5000); b.prev -= 8; long(b, 5000) }, says: "does not follow the one at"},
		"another before, joined": {build: func(b *walBuilder) { long(b, 0); b.prev -= 8 }, says: "does not follow the one at"},
		"a page of another":      {build: func(b *walBuilder) { long(b, 0) }, spoil: func(s *walSample) { left(s, page, 8) }, says: "the record there needs"},
		"a page too many":        {build: func(b *walBuilder) { long(b, 0) }, spoil: func(s *walSample) { left(s, seg-page, 8) }, says: "the record there needs"},
		"a segment of another":   {build: func(b *walBuilder) { long(b, 5000) }, spoil: func(s *walSample) { left(s, seg, 8) }, says: "does not go on at"},
		"a segment too many":     {build: func(b *walBuilder) { long(b, 0) }, spoil: func(s *walSample) { left(s, seg, 8) }, says: "that did not begin"},
		"an empty page":          {build: func(b *walBuilder) { long(b, 0) }, spoil: func(s *walSample) { clear(s.segments[0][2*page : 3*page]) }, says: "an empty page comes"},
		"at the segment's end":   {build: func(b *walBuilder) { long(b, -40) }, spoil: func(s *walSample) { require.Equal(t, lsnText(6*seg), s.part.StopLSN) }},
		"named by the next": {build: func(b *walBuilder) { long(b, -40) }, spoil: func(s *walSample) {
			b := newBuilder(page, seg)
			b.base += seg
			b.out = nil
			b.header(0, 0)
			b.add(rmTablespace, infoTablespaceCreate, tablespaceData(9, "/behind"))
			s.segments = append(s.segments, append(b.out, make([]byte, seg-len(b.out))...))
			s.part.StopWAL = segmentAfter(t, s.part)
		}},
		"no end": {build: func(b *walBuilder) { long(b, 0) }, spoil: func(s *walSample) {
			s.part.StopLSN = lsnText(6*seg + 40 + 24) // behind the header of the last record
			clear(s.segments[1][40:])
		}, says: "no record begins there"},
		"another end": {build: func(b *walBuilder) { long(b, 0); b.first += 8 }, spoil: func(s *walSample) { s.part.StartLSN = lsnText(5*seg + 40) }, says: "no record of the backup's end"},
		"an end behind": {build: func(b *walBuilder) { long(b, 0) }, spoil: func(s *walSample) {
			s.part.StopLSN = lsnText(6*seg + 40 + 24)
		}, says: "beyond the backup's end"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder(page, seg)
			b.add(rmMessage, 0, nil)
			c.build(b)
			s := b.end(t)
			if c.spoil != nil {
				c.spoil(s)
			}
			for _, order := range permutations(len(s.segments)) {
				h, _ := s.scan(t, order, func() int { return 5000 })
				if c.says == "" {
					require.Empty(t, h.problem)
					require.Empty(t, h.events)
				} else {
					require.Contains(t, h.problem, c.says)
				}
			}
		})
	}
}

func scanned(t testing.TB, s *walSample) *walHistory {
	h, err := newWALHistory(s.part)
	require.NoError(t, err)
	for i := range s.segments {
		c := checkerOf(s.part, segment{1, h.first + uint64(i)})
		c.records = h.reader(h.first + uint64(i))
		_, _ = c.Write(s.segments[i])
		if c.problem != "" {
			c.records.broken(c.records.at, "%s", c.problem)
		}
		h.take(c.records)
	}
	h.finish()
	return h
}

func FuzzWALRecords(f *testing.F) {
	s := small(f)
	f.Add(s.segments[0][:20000], 8192)
	f.Add(s.segments[0][:20000], 9000)
	f.Add([]byte(fmt.Sprint(s.segments[0][:40])), 1)
	f.Fuzz(func(t *testing.T, content []byte, cut int) {
		cut = min(max(cut, 0), len(content))
		h, err := newWALHistory(s.part)
		require.NoError(t, err)
		for i, half := range [][]byte{content[cut:], content[:cut]} {
			r := h.reader(h.first + uint64(1-i))
			c := checkerOf(s.part, segment{1, h.first + uint64(1-i)})
			c.records = r
			_, _ = c.Write(half)
			h.take(r)
		}
		h.finish()
		require.NotEmpty(t, h.problem)
		// With a right checksum, behind which a record may hold anything.
		for _, manager := range []byte{rmXLOG, rmDatabase, rmTablespace} {
			for _, info := range []byte{0, infoTablespaceDrop, infoBackupEnd} {
				record := recordOf(manager, info, make([]byte, 8), nil)
				body := content[:min(len(content), 3000)]
				binary.LittleEndian.PutUint32(record, uint32(recordHeader+len(body)))
				binary.LittleEndian.PutUint32(record[20:], crc32.Update(crc32.Checksum(body, castagnoli), castagnoli, record[:20]))
				var r walRecord
				r.begin(h.start)
				require.Equal(t, len(record)+len(body), r.add(append(record, body...)))
				require.True(t, r.whole())
				require.NotContains(t, h.judge(&r, h.stop), "checksum")
			}
		}
	})
}
