package eventbus

import (
	"bytes"
	"encoding/binary"

	"github.com/twmb/franz-go/pkg/kgo"
)

// maxReencoded is when a batch that is encoded anew is cut in two, in bytes
// before compression, so that memory stays bounded.
const maxReencoded = 8 << 20

// encoder encodes the records of one batch again: those of a batch with holes
// (compaction), of one that begins before the log's start or ends after the cut,
// and of one with log-append time, whose own times a producer cannot send.
type encoder struct {
	b       batch
	comp    kgo.Compressor
	records []byte
	body    []byte
	sources []int64 // offsets that the records had
	first   int64
	maxTime int64
	emit    func(raw []byte, sources []int64) error
	raw     []byte
	packed  bytes.Buffer
}

// reencode reads the records of b at offsets [start, cut) and emits them as
// batches of offsets that follow each other. raw is unstamped.
func reencode(d *decoder, b batch, start, cut int64, emit func(raw []byte, sources []int64) error) error {
	plain, err := d.open(b)
	if err != nil {
		return err
	}
	comp, err := compressor(b.codec())
	if err != nil {
		return err
	}
	e := &encoder{b: b, comp: comp, emit: emit}
	e.reset()
	err = eachRecord(plain, b.count, b.lastDelta, true, func(r *record) error {
		at := b.base + r.offsetDelta
		if at < start || at >= cut {
			return nil
		}
		return e.add(r, at)
	})
	if err != nil {
		return err
	}
	return e.flush()
}

func (e *encoder) reset() {
	e.records, e.sources = e.records[:0], e.sources[:0]
	e.first = e.b.firstTime
	if e.b.logAppendTime() {
		e.first = e.b.maxTime // every record's time is the batch's
	}
	e.maxTime = -1
}

func (e *encoder) add(r *record, at int64) error {
	delta := r.timeDelta
	if e.b.logAppendTime() {
		delta = 0
	}
	e.maxTime = max(e.maxTime, e.first+delta)
	e.body = append(e.body[:0], 0) // attributes
	e.body = binary.AppendVarint(e.body, delta)
	e.body = binary.AppendVarint(e.body, int64(len(e.sources)))
	e.body = append(e.body, r.body...)
	e.records = binary.AppendVarint(e.records, int64(len(e.body)))
	e.records = append(e.records, e.body...)
	e.sources = append(e.sources, at)
	if len(e.records) > maxReencoded {
		return e.flush()
	}
	return nil
}

func (e *encoder) flush() error {
	if len(e.sources) == 0 {
		return nil
	}
	records, codec := e.records, int8(codecNone)
	if e.comp != nil {
		e.packed.Reset()
		out, as := e.comp.Compress(&e.packed, e.records)
		records, codec = out, int8(as)
	}
	e.raw = wrap(e.raw, records, int32(len(e.sources)), e.first, e.maxTime, codec)
	if err := e.emit(e.raw, e.sources); err != nil {
		return err
	}
	e.reset()
	return nil
}
