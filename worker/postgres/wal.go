package postgres

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// segment is the number of a WAL segment on a timeline.
type segment struct {
	timeline uint32
	number   uint64 // address / segment size
}

// maxSegments bounds the WAL of one backup: 16 TB at the usual 16 MB.
const maxSegments = 1 << 20

// parseSegment reads the 24 hexadecimal digits of a WAL file's name. size is
// the segment size in bytes (PostgreSQL, src/include/access/xlog_internal.h, XLogFromFileName).
func parseSegment(name string, size int64) (segment, error) {
	if len(name) != 24 || strings.ToUpper(name) != name {
		return segment{}, fmt.Errorf("%q is no name of a WAL segment", name)
	}
	if !validSegmentSize(size) {
		return segment{}, fmt.Errorf("%d is no size of a WAL segment", size)
	}
	var part [3]uint64
	for i := range part {
		n, err := strconv.ParseUint(name[i*8:i*8+8], 16, 32)
		if err != nil {
			return segment{}, fmt.Errorf("%q is no name of a WAL segment", name)
		}
		part[i] = n
	}
	perID := uint64(1<<32) / uint64(size)
	if part[2] >= perID {
		return segment{}, fmt.Errorf("%q is no name of a WAL segment of %d bytes", name, size)
	}
	return segment{uint32(part[0]), part[1]*perID + part[2]}, nil
}

// validSegmentSize is initdb's own rule: a power of two from 1 MB to 1 GB.
func validSegmentSize(size int64) bool {
	return size >= 1<<20 && size <= 1<<30 && size&(size-1) == 0
}

func (s segment) name(size int64) string {
	perID := uint64(1<<32) / uint64(size)
	return fmt.Sprintf("%08X%08X%08X", s.timeline, s.number/perID, s.number%perID)
}

// segmentRange gives the first segment of start…stop and how many there are.
func segmentRange(start, stop string, size int64) (segment, int, error) {
	first, err := parseSegment(start, size)
	if err != nil {
		return segment{}, 0, err
	}
	last, err := parseSegment(stop, size)
	if err != nil {
		return segment{}, 0, err
	}
	if first.timeline != last.timeline || last.number < first.number || last.number-first.number >= maxSegments {
		return segment{}, 0, fmt.Errorf("%s to %s is no range of WAL segments", start, stop)
	}
	return first, int(last.number-first.number) + 1, nil
}

// segmentNames lists start…stop.
func segmentNames(start, stop string, size int64) ([]string, error) {
	first, n, err := segmentRange(start, stop, size)
	if err != nil {
		return nil, err
	}
	names := make([]string, n)
	for i := range names {
		names[i] = segment{first.timeline, first.number + uint64(i)}.name(size)
	}
	return names, nil
}

// walMagic is XLOG_PAGE_MAGIC of each major version (PostgreSQL,
// src/include/access/xlog_internal.h of the release branches).
var walMagic = map[int]uint16{
	10: 0xD097, 11: 0xD098, 12: 0xD101, 13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118,
}

const (
	walPage       = 8192 // XLOG_BLCKSZ as every packager builds it; the long header says the real one
	walLongHeader = 0x0002
)

// walChecker looks at the page headers of a WAL segment that is written to it:
// XLogPageHeaderData {magic u16, info u16, tli u32, pageaddr u64, rem_len u32} and
// on the first page XLogLongPageHeaderData {…, pad u32, sysid u64, seg_size u32,
// xlog_blcksz u32}. A page after a switch may be all zero.
type walChecker struct {
	segment  segment
	size     int64
	major    int
	systemID uint64

	records *walReader // takes the content of the pages; nil = nobody

	page    int64 // bytes, once known
	head    []byte
	written int64
	problem string
}

func (c *walChecker) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		page := c.page
		if page == 0 {
			page = walPage
		}
		within := c.written % page
		take := min(int64(len(p)), page-within)
		if within < walPageHead {
			take = min(take, walPageHead-within)
			c.head = append(c.head, p[:take]...)
			if len(c.head) == walPageHead {
				c.header(c.written + take - walPageHead)
				c.head = c.head[:0]
			}
		} else if c.records != nil && c.problem == "" {
			c.records.content(p[:take])
		}
		c.written += take
		p = p[take:]
	}
	return n, nil
}

// walPageHead is the length of the long page header; that of a short one is 24.
const walPageHead = 40

func (c *walChecker) fail(format string, args ...any) {
	if c.problem == "" {
		c.problem = fmt.Sprintf(format, args...)
	}
}

func (c *walChecker) header(offset int64) {
	h := c.head
	order := binary.ByteOrder(binary.LittleEndian)
	if h[1] != 0xD0 && h[1] != 0xD1 && (h[0] == 0xD0 || h[0] == 0xD1) {
		order = binary.BigEndian
	}
	magic := order.Uint16(h)
	if offset > 0 && allZero(h) {
		if c.records != nil {
			c.records.page(offset, walPageHeader{})
		}
		return
	}
	if want, known := walMagic[c.major]; magic>>8 != 0xD0 && magic>>8 != 0xD1 || known && magic != want {
		c.fail("page at byte %d has the magic %#x, which is not PostgreSQL %d's", offset, magic, c.major)
		return
	}
	if addr := order.Uint64(h[8:]); addr != c.segment.number*uint64(c.size)+uint64(offset) {
		c.fail("page at byte %d is that of the address %X/%X: the segment was used again or mixed up", offset, addr>>32, uint32(addr))
	}
	if c.records != nil && order == binary.ByteOrder(binary.BigEndian) {
		c.records.broken(c.records.at, "it was written on a big-endian machine, whose records cannot be read here")
	}
	if offset > 0 {
		c.pass(offset)
		return
	}
	if order.Uint16(h[2:])&walLongHeader == 0 {
		c.fail("its first page has no long header")
		return
	}
	if id := order.Uint64(h[24:]); id != c.systemID {
		c.fail("it is of the cluster with the system identifier %d", id)
	}
	if size := order.Uint32(h[32:]); int64(size) != c.size {
		c.fail("it says a segment size of %d", size)
	}
	if page := int64(order.Uint32(h[36:])); page < 1024 || page > 65536 || page&(page-1) != 0 {
		c.fail("it says a page size of %d", page)
	} else {
		c.page = page
		c.pass(0)
	}
}

// pass hands a page whose header was read on to the records' reader.
func (c *walChecker) pass(offset int64) {
	if c.records == nil || c.problem != "" {
		return
	}
	h := walPageHeader{info: binary.LittleEndian.Uint16(c.head[2:]), left: int(binary.LittleEndian.Uint32(c.head[16:])), size: walShortHead}
	if h.info&walLongHeader != 0 {
		h.size = walPageHead
	}
	c.records.page(offset, h)
	c.records.content(c.head[h.size:])
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
