package postgres

import "fmt"

// Flags of a page header (PostgreSQL, src/include/access/xlog_internal.h).
const (
	walContinues   = 0x0001 // XLP_FIRST_IS_CONTRECORD: begins with the rest of a record
	walOverwritten = 0x0008 // XLP_FIRST_IS_OVERWRITE_CONTRECORD: a crash lost that rest
	walShortHead   = 24
)

// walPageHeader is what the records' reader needs of one; size 0 = the page is all zero.
type walPageHeader struct {
	info uint16
	left int // xlp_rem_len: bytes of a record that began before, from here on
	size int // of the header
}

// walReader reads the records of one segment, on its own: what the segment holds of a
// record that began before it is kept as a fragment, and so is a record that goes on
// behind it. So segments may come in any order, and memory is bounded by the segment's
// edges. A walHistory joins them.
type walReader struct {
	history *walHistory
	base    uint64 // LSN of the segment's first byte
	from    uint64 // records that begin before are skipped
	at      uint64 // LSN of the next byte

	over    bool   // nothing after this counts: the stop, a switch, or a break
	problem string // why the WAL breaks at breakAt
	breakAt uint64
	nothing bool // … since the segment is empty there, and held no record before

	fragment    walFragment
	missing     int    // bytes that the fragment still lacks
	promised    int    // bytes that the first page says it has
	fragmentEnd uint64 // LSN behind it
	lost        bool   // the rest of the record that began before was lost in a crash

	record walRecord
	within bool   // a record is being read
	first  uint64 // LSN of the first record that ended in this segment; 0 = none
	prev   uint64 // the record that it names as the one before
	last   uint64 // LSN of the last one that did
}

func (r *walReader) broken(at uint64, format string, args ...any) {
	if r.problem == "" {
		r.problem, r.breakAt = fmt.Sprintf(format, args...), at
	}
	r.over = true
}

// page begins a page of the segment.
func (r *walReader) page(offset int64, h walPageHeader) {
	start := r.base + uint64(offset)
	if r.over {
		return
	}
	if r.at = start + uint64(h.size); r.at <= r.from || start < r.from {
		return // of before the backup
	}
	if h.size == 0 {
		r.nothing = !r.within && r.missing == 0 && r.first == 0
		r.broken(r.resume(start), "an empty page comes")
		return
	}
	left := 0
	if h.info&walContinues != 0 {
		left = h.left
	}
	expected := 0
	switch {
	case offset == 0:
		r.promised, r.missing, r.fragmentEnd = left, left, r.at
		r.lost = h.info&walOverwritten != 0
		return
	case h.info&walOverwritten != 0:
		// A crash lost what followed; the server took up its writing here.
		r.lost = r.lost || r.missing > 0
		r.within, r.missing = false, 0
	case r.missing > 0:
		expected = r.missing
	case r.within:
		expected = r.record.total() - r.record.got
	}
	if left != expected {
		r.broken(r.resume(start), "the page at %s continues with %d bytes, the record there needs %d", lsnText(start), left, expected)
	}
}

// resume is where the record begins that a break at an address falls into.
func (r *walReader) resume(at uint64) uint64 {
	if r.within {
		return r.record.at
	}
	return at
}

// content takes bytes of a page behind its header.
func (r *walReader) content(p []byte) {
	for len(p) > 0 && !r.over {
		n := len(p)
		switch {
		case r.at < r.from:
			n = int(min(uint64(n), r.from-r.at))
			r.at += uint64(n)
		case r.missing > 0:
			n = min(n, r.missing)
			r.fragment.add(p[:n])
			r.missing -= n
			r.at += uint64(n)
			r.fragmentEnd = aligned(r.at)
		case !r.within && r.at%8 != 0: // records begin at multiples of 8
			n = int(min(uint64(n), aligned(r.at)-r.at))
			r.at += uint64(n)
		case !r.within && r.at >= r.history.stop:
			r.over = true
		default:
			n = r.read(p)
		}
		p = p[n:]
	}
}

// read takes bytes of a record.
func (r *walReader) read(p []byte) int {
	if !r.within {
		r.within = true
		r.record.begin(r.at)
	}
	n := r.record.add(p)
	r.at += uint64(n)
	switch {
	case !r.record.sane():
		r.nothing = r.record.total() == 0 && r.first == 0
		r.within = false
		r.broken(r.record.at, "no record begins there")
	case r.record.whole():
		r.within = false
		r.ended()
	}
	return n
}

// ended judges a record that was read whole in this segment.
func (r *walReader) ended() {
	record := &r.record
	if problem := r.history.judge(record, aligned(r.at)); problem != "" {
		r.broken(record.at, "%s", problem)
		return
	}
	if r.first == 0 {
		r.first, r.prev = record.at, record.prev()
	} else if record.prev() != r.last {
		r.broken(record.at, "the record there does not follow the one at %s", lsnText(r.last))
		return
	}
	r.last = record.at
	r.over = r.over || record.is(rmXLOG, infoSwitch)
}

// aligned is the next address at which a record may begin, within a page.
func aligned(at uint64) uint64 { return (at + 7) &^ 7 }
