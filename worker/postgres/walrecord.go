package postgres

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// Resource managers and their records (PostgreSQL 10 to 18: src/include/access/rmgrlist.h,
// catalog/pg_control.h, commands/dbcommands_xlog.h, commands/tablespace.h). The upper four
// bits of a record's info are the resource manager's own.
const (
	rmXLOG       = 0
	rmDatabase   = 4
	rmTablespace = 5
	rmCustom     = 128 // RM_MIN_CUSTOM_ID, from PostgreSQL 15

	infoShutdown  = 0x00
	infoSwitch    = 0x40
	infoBackupEnd = 0x50

	infoDatabaseCopy     = 0x00 // copies files; XLOG_DBASE_CREATE_FILE_COPY from 15
	infoTablespaceCreate = 0x00
	infoTablespaceDrop   = 0x10
	infoMask             = 0xF0
)

const (
	recordHeader = 24
	// recordMax is above what any version writes (XLogRecordMaxSize, MaxAllocSize).
	recordMax = 1 << 30
	// recordKept is enough for the largest record that is looked into: a tablespace's,
	// with a path of MAXPGPATH (1024) bytes.
	recordKept = 2048
	// fragmentLead is the most that a segment's first bytes can hold of a record header
	// that began in the segment before: records begin at multiples of 8.
	fragmentLead = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// walRecord is a record as far as it was read (PostgreSQL, src/include/access/xlogrecord.h):
// XLogRecord {tot_len u32, xid u32, prev u64, info u8, rmid u8, padding u16, crc u32}, then
// tot_len - 24 bytes of body.
type walRecord struct {
	at   uint64 // LSN of its first byte
	head [recordHeader]byte
	got  int    // bytes so far
	sum  uint32 // CRC-32C of the body so far
	body []byte // the first bytes of it, of a resource manager that is looked into
}

func (r *walRecord) total() int        { return int(binary.LittleEndian.Uint32(r.head[:])) }
func (r *walRecord) prev() uint64      { return binary.LittleEndian.Uint64(r.head[8:]) }
func (r *walRecord) info() byte        { return r.head[16] & infoMask }
func (r *walRecord) manager() byte     { return r.head[17] }
func (r *walRecord) is(m, i byte) bool { return r.manager() == m && r.info() == i }

// sane tells whether the length, once it is known, can be one.
func (r *walRecord) sane() bool {
	return r.got < 4 || r.total() >= recordHeader && r.total() <= recordMax
}

func (r *walRecord) whole() bool { return r.got >= recordHeader && r.got == r.total() }

func (r *walRecord) begin(at uint64) { *r = walRecord{at: at, body: r.body[:0]} }

// add takes what belongs to the record from the beginning of p, and says how much.
func (r *walRecord) add(p []byte) int {
	n := 0
	if r.got < recordHeader {
		n = copy(r.head[r.got:], p)
		if r.got += n; r.got < recordHeader || !r.sane() {
			return n
		}
	}
	rest := p[n:min(len(p), n+r.total()-r.got)]
	r.sum = crc32.Update(r.sum, castagnoli, rest)
	r.keep(rest)
	r.got += len(rest)
	return n + len(rest)
}

func (r *walRecord) keep(p []byte) {
	if r.manager() == rmXLOG || r.manager() == rmDatabase || r.manager() == rmTablespace {
		r.body = append(r.body, p[:min(len(p), recordKept-len(r.body))]...)
	}
}

// addFragment takes what the next segment holds of the record.
func (r *walRecord) addFragment(f *walFragment) {
	lead := f.lead[:min(f.n, fragmentLead)]
	n := r.add(lead)
	if n < len(lead) || f.n <= fragmentLead {
		return
	}
	r.sum = joinSums(r.sum, f.sum, f.n-fragmentLead)
	r.keep(f.kept)
	r.got += f.n - fragmentLead
}

// right says whether the record's own checksum fits: body first, then the header up to it.
func (r *walRecord) right() bool {
	return crc32.Update(r.sum, castagnoli, r.head[:20]) == binary.LittleEndian.Uint32(r.head[20:])
}

// main gives the record's main data. It stands at the end, behind the block references,
// which the records that we look into have none of: id 255 {length u8}, 254 {length u32},
// before it perhaps an origin, 253 {u16}, and a transaction, 252 {u32}.
func (r *walRecord) main() ([]byte, bool) {
	b := r.body
	if len(b) != r.total()-recordHeader {
		return nil, false
	}
	for len(b) > 5 || len(b) > 1 && b[0] == 255 {
		switch b[0] {
		case 255:
			return b[2:], len(b)-2 == int(b[1])
		case 254:
			return b[5:], len(b)-5 == int(binary.LittleEndian.Uint32(b[1:]))
		case 253:
			b = b[3:]
		case 252:
			b = b[5:]
		default:
			return nil, false
		}
	}
	return nil, false
}

// walFragment is what a segment holds of a record that began before it. Its checksum
// starts behind the lead, since a part of the record's header may be in there, which
// does not count in this order.
type walFragment struct {
	n    int
	lead [fragmentLead]byte
	sum  uint32
	kept []byte // the first bytes behind the lead
}

func (f *walFragment) add(p []byte) {
	if f.n < fragmentLead {
		n := copy(f.lead[f.n:], p)
		f.n += n
		p = p[n:]
	}
	f.sum = crc32.Update(f.sum, castagnoli, p)
	f.kept = append(f.kept, p[:min(len(p), recordKept-len(f.kept))]...)
	f.n += len(p)
}

// joinSums gives the CRC-32C of a text from those of its two halves; n is the length of
// the second one in bytes. To append n bytes is to multiply by x^8n modulo the polynomial
// (the method of zlib's crc32_combine; bits are reflected: x^0 is the highest one).
func joinSums(a, b uint32, n int) uint32 {
	shift, square := uint32(1)<<31, uint32(1)<<30
	for bits := uint64(n) * 8; bits > 0; bits >>= 1 {
		if bits&1 != 0 {
			shift = times(shift, square)
		}
		square = times(square, square)
	}
	return times(shift, a) ^ b
}

func times(a, b uint32) uint32 {
	var product uint32
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return product
}

// lsnText writes an address as PostgreSQL does.
func lsnText(lsn uint64) string { return fmt.Sprintf("%X/%X", lsn>>32, uint32(lsn)) }

func parseLSN(text string) (uint64, error) {
	high, low, ok := strings.Cut(text, "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is no WAL address", text)
	}
	return h<<32 | l, nil
}
