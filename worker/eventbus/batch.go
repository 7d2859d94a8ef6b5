package eventbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The record batch, magic 2, as Kafka's documentation gives it
// (kafka.apache.org/documentation/#recordbatch):
//
//	 0 base offset int64         27 base timestamp int64
//	 8 length after it int32     35 max timestamp int64
//	12 leader epoch int32        43 producer id int64
//	16 magic int8                51 producer epoch int16
//	17 CRC-32C from 21 on        53 base sequence int32
//	21 attributes int16          57 records int32
//	23 last offset delta int32   61 records, compressed as a whole
const (
	batchHeader = 61
	lengthEnd   = 12 // the length counts from here
	crcFrom     = 21
)

// Attribute bits.
const (
	attrCodec         = 0x07
	attrLogAppendTime = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
	attrHorizon       = 0x40 // the first timestamp is when the cleaner may remove tombstones and markers (KIP-534)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batch is a view of one magic-2 record batch.
type batch struct {
	raw        []byte
	base       int64
	epoch      int32 // of the leader that wrote it
	lastDelta  int32
	attrs      int16
	firstTime  int64 // ms since 1970, or the delete horizon: records count from it either way
	maxTime    int64
	producerID int64
	count      int32
}

func (b batch) last() int64         { return b.base + int64(b.lastDelta) }
func (b batch) control() bool       { return b.attrs&attrControl != 0 }
func (b batch) transactional() bool { return b.attrs&attrTransactional != 0 }
func (b batch) logAppendTime() bool { return b.attrs&attrLogAppendTime != 0 }
func (b batch) codec() int8         { return int8(b.attrs & attrCodec) }
func (b batch) records() []byte     { return b.raw[batchHeader:] }

// contiguous is false where compaction took records out of the batch.
func (b batch) contiguous() bool { return b.lastDelta == b.count-1 }

// cleaned tells whether the broker's cleaner has rewritten the batch: it holds
// fewer records than offsets, which no broker takes from a producer, or it has a
// delete horizon, which only the cleaner sets.
func (b batch) cleaned() bool { return !b.contiguous() || b.attrs&attrHorizon != 0 }

var (
	errShort    = errors.New("the batch is cut off")
	errOldMagic = errors.New("record format before magic 2 (Kafka 0.11)")
	errBatchCRC = errors.New("the batch's CRC-32C is wrong")
)

// parseBatch reads the first batch of in and checks its CRC-32C. errShort: in
// ends within the batch; errOldMagic: a message set of before Kafka 0.11.
func parseBatch(in []byte) (batch, error) {
	if len(in) < crcFrom {
		return batch{}, errShort
	}
	n := int64(int32(binary.BigEndian.Uint32(in[8:]))) + lengthEnd
	if magic := in[16]; magic < 2 && n >= crcFrom {
		return batch{}, fmt.Errorf("%w: magic %d", errOldMagic, magic)
	} else if magic != 2 {
		return batch{}, fmt.Errorf("magic %d is not a record batch", magic)
	}
	if n < batchHeader {
		return batch{}, fmt.Errorf("batch length %d is impossible", n)
	}
	if int64(len(in)) < n {
		return batch{}, errShort
	}
	raw := in[:n:n]
	be := binary.BigEndian
	b := batch{
		raw: raw, base: int64(be.Uint64(raw)), epoch: int32(be.Uint32(raw[12:])),
		attrs: int16(be.Uint16(raw[21:])), lastDelta: int32(be.Uint32(raw[23:])),
		firstTime: int64(be.Uint64(raw[27:])), maxTime: int64(be.Uint64(raw[35:])),
		producerID: int64(be.Uint64(raw[43:])), count: int32(be.Uint32(raw[57:])),
	}
	if want, got := be.Uint32(raw[17:]), crc32.Checksum(raw[crcFrom:], castagnoli); want != got {
		return b, fmt.Errorf("%w: %08x, its header says %08x", errBatchCRC, got, want)
	}
	if b.base < 0 || b.lastDelta < 0 || b.last() < b.base || b.count < 0 || int64(b.count) > int64(b.lastDelta)+1 {
		return b, fmt.Errorf("batch header is impossible: base %d, last delta %d, %d records", b.base, b.lastDelta, b.count)
	}
	return b, nil
}

// identity is what a producer puts into its batches so that the broker drops
// one that it has already. id -1: none.
type identity struct {
	id    int64
	epoch int16
	seq   int32
}

// anonymous is no producer.
var anonymous = identity{-1, -1, -1}

// neutralise copies b into dst as a batch that any producer may send: base
// offset 0, not transactional, create-time. The records' bytes stay as they are.
// The caller stamps it.
func neutralise(dst []byte, b batch) []byte {
	dst = append(dst[:0], b.raw...)
	be := binary.BigEndian
	be.PutUint64(dst, 0)
	be.PutUint32(dst[12:], 0xffffffff)
	be.PutUint16(dst[21:], uint16(b.attrs&attrCodec))
	return dst
}

// stamp writes the producer's identity and the CRC that follows from it.
func stamp(raw []byte, who identity) {
	be := binary.BigEndian
	be.PutUint64(raw[43:], uint64(who.id))
	be.PutUint16(raw[51:], uint16(who.epoch))
	be.PutUint32(raw[53:], uint32(who.seq))
	be.PutUint32(raw[17:], crc32.Checksum(raw[crcFrom:], castagnoli))
}

// wrap makes a batch of n records that are encoded (and compressed with codec)
// already. The caller stamps it.
func wrap(dst, records []byte, n int32, firstTime, maxTime int64, codec int8) []byte {
	dst = append(dst[:0], make([]byte, batchHeader)...)
	dst = append(dst, records...)
	be := binary.BigEndian
	be.PutUint32(dst[8:], uint32(len(dst)-lengthEnd))
	be.PutUint32(dst[12:], 0xffffffff)
	dst[16] = 2
	be.PutUint16(dst[21:], uint16(codec))
	be.PutUint32(dst[23:], uint32(n-1))
	be.PutUint64(dst[27:], uint64(firstTime))
	be.PutUint64(dst[35:], uint64(maxTime))
	be.PutUint32(dst[57:], uint32(n))
	return dst
}

// nextBatch reads one batch's bytes from a segment of which left bytes are to
// come. What the batch claims as its length is not believed beyond that. *buf is
// reused and holds the result.
func nextBatch(in io.Reader, left int64, buf *[]byte) ([]byte, error) {
	var head [lengthEnd]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, errShort
	}
	n := int64(int32(binary.BigEndian.Uint32(head[8:]))) + lengthEnd
	if n < batchHeader || n > left {
		return nil, fmt.Errorf("batch length %d does not fit", n)
	}
	b := bytes.NewBuffer((*buf)[:0])
	b.Write(head[:])
	if _, err := io.CopyN(b, in, n-lengthEnd); err != nil {
		return nil, errShort
	}
	*buf = nil
	if b.Cap() <= 64<<20 {
		*buf = b.Bytes()
	}
	return b.Bytes(), nil
}
