package eventbus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// A record of magic 2 (kafka.apache.org/documentation/#record): length,
// attributes int8, timestamp delta, offset delta, key, value, header count,
// headers. Numbers are zigzag varints; length -1 of a field is null.

// record is one record of a batch.
type record struct {
	offsetDelta int64
	timeDelta   int64
	body        []byte // from the key's length on; only where it was asked for
}

// source is where fields are walked: a stream, or bytes in memory.
type source interface {
	io.ByteReader
	Discard(n int) (int, error)
}

// memory is a source of bytes in memory.
type memory struct{ left []byte }

func (m *memory) ReadByte() (byte, error) {
	if len(m.left) == 0 {
		return 0, io.EOF
	}
	c := m.left[0]
	m.left = m.left[1:]
	return c, nil
}

func (m *memory) Discard(n int) (int, error) {
	if n > len(m.left) {
		n, m.left = len(m.left), nil
		return n, io.EOF
	}
	m.left = m.left[n:]
	return n, nil
}

var errRecordEnd = errors.New("a field reaches past the record's end")

// bounded reads varints and fields from a source and never past left bytes.
type bounded struct {
	src  source
	left int64
}

func (b *bounded) ReadByte() (byte, error) {
	if b.left < 1 {
		return 0, errRecordEnd
	}
	c, err := b.src.ReadByte()
	if err == nil {
		b.left--
	}
	return c, err
}

func (b *bounded) varint() (int64, error) { return binary.ReadVarint(b) }

// field skips a length and as many bytes. It returns the length, -1 for null.
func (b *bounded) field() (int64, error) {
	n, err := b.varint()
	if err != nil || n == -1 {
		return n, err
	}
	if n < -1 || n > b.left {
		return n, errRecordEnd
	}
	b.left -= n
	_, err = b.src.Discard(int(n))
	return n, err
}

// rest walks key, value and headers, which must end with the record.
func (b *bounded) rest() error {
	for range 2 {
		if _, err := b.field(); err != nil {
			return err
		}
	}
	headers, err := b.varint()
	if err != nil {
		return err
	}
	if headers < 0 || headers > b.left/2 {
		return fmt.Errorf("%d headers do not fit into the record", headers)
	}
	for range headers {
		if n, err := b.field(); err != nil {
			return err
		} else if n < 0 {
			return errors.New("a header has no key")
		}
		if _, err := b.field(); err != nil {
			return err
		}
	}
	if b.left != 0 {
		return fmt.Errorf("%d bytes follow the record's last header", b.left)
	}
	return nil
}

// eachRecord walks count records and wants the stream to end after them. With
// keep each record's body is held in memory (valid during the call), else no
// field is. Offset deltas must rise and stay below or at lastDelta.
func eachRecord(br *bufio.Reader, count, lastDelta int32, keep bool, f func(r *record) error) error {
	var r record
	var body bytes.Buffer
	prev := int64(-1)
	for i := int32(0); i < count; i++ {
		length, err := binary.ReadVarint(br)
		if err == nil && (length < 0 || length > math.MaxInt32) {
			err = fmt.Errorf("length %d is impossible", length)
		}
		b := bounded{br, length}
		if err == nil {
			_, err = b.ReadByte() // attributes, unused by Kafka
		}
		if err == nil {
			r.timeDelta, err = b.varint()
		}
		if err == nil {
			r.offsetDelta, err = b.varint()
		}
		if err == nil && keep {
			body.Reset()
			if _, err = io.CopyN(&body, br, b.left); err == nil {
				r.body = body.Bytes()
				b.src = &memory{r.body}
			}
		}
		if err == nil {
			err = b.rest()
		}
		if err == nil && (r.offsetDelta <= prev || r.offsetDelta > int64(lastDelta)) {
			err = fmt.Errorf("offset delta %d after %d of at most %d", r.offsetDelta, prev, lastDelta)
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("record %d of %d: %w", i+1, count, err)
		}
		prev = r.offsetDelta
		if f != nil {
			if err := f(&r); err != nil {
				return err
			}
		}
	}
	if _, err := br.ReadByte(); err != io.EOF {
		if err != nil {
			return fmt.Errorf("after the last record: %w", err)
		}
		return errors.New("bytes follow the last record")
	}
	return nil
}

// isAbortMarker tells whether a control batch ends a transaction by abort. Its
// one record's key is version int16, type int16; type 0 is abort.
func isAbortMarker(b batch) bool {
	abort := false
	if b.count != 1 || b.codec() != 0 {
		return false
	}
	_ = eachRecord(bufio.NewReader(bytes.NewReader(b.records())), 1, b.lastDelta, true, func(r *record) error {
		n, k := binary.Varint(r.body)
		if k > 0 && n >= 4 && len(r.body) >= k+4 {
			abort = r.body[k+2] == 0 && r.body[k+3] == 0
		}
		return nil
	})
	return abort
}
