package eventbus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
)

// Sink takes finished segments. It is called from one goroutine at a time, and
// content is valid only during the call. packed tells that most of it is
// compressed already.
type Sink interface {
	Segment(ctx context.Context, entry string, content []byte, packed bool) error
}

// entryName is where a segment lies in the archive. A partition that is read anew
// has each further try in a directory of its own, which stands for the ones before:
// those are in the archive already. No topic's name has a "~".
func entryName(topic string, partition int32, try int, base int64) string {
	dir := fmt.Sprintf("%s%s/%d", set.EventBusPrefix, topic, partition)
	if try > 1 {
		dir += fmt.Sprintf("~%d", try)
	}
	return fmt.Sprintf("%s/%020d.log", dir, base)
}

// tryOf is which try at its partition a segment is of, 0 if it has no right name.
func tryOf(s set.Segment, topic string, partition int32) int {
	for try := 1; try <= maxTries; try++ {
		if s.Entry == entryName(topic, partition, try, s.Base) {
			return try
		}
	}
	return 0
}

// segmenter gathers the batches of one partition after the other into segments.
// Its buffer lies outside Go's heap: the collector would let the heap grow to
// twice of what the buffers take.
type segmenter struct {
	sink Sink
	turn *sync.Mutex // one sink for all segmenters
	size int

	topic     string
	partition *set.Partition
	try       int
	buf       []byte
	n         int // bytes in buf
	packed    int // of them compressed
	cur       set.Segment
}

// begin turns to another partition. What is left of the one before is dropped.
func (s *segmenter) begin(topic string, p *set.Partition, try int) {
	s.topic, s.partition, s.try = topic, p, try
	s.n, s.packed = 0, 0
}

// full tells whether b begins a new segment.
func (s *segmenter) full(b batch) bool { return s.n == 0 || s.n+len(b.raw) > s.size }

// add appends a batch, and hands the segment on that it does not fit into.
func (s *segmenter) add(ctx context.Context, b batch) error {
	if s.n > 0 && s.full(b) {
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	if s.n == 0 {
		s.cur = set.Segment{Entry: entryName(s.topic, s.partition.ID, s.try, b.base), Base: b.base}
	}
	s.cur.Last = b.last()
	s.cur.Batches++
	s.cur.Records += int64(b.count)
	if len(b.raw) > s.size {
		return s.hand(ctx, b.raw, b.codec() != codecNone)
	}
	if s.buf == nil {
		var err error
		if s.buf, err = unix.Mmap(-1, 0, s.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
			return fmt.Errorf("eventbus: no memory for a segment of %d bytes: %w; lower the number of partitions read at once", s.size, err)
		}
	}
	s.n += copy(s.buf[s.n:], b.raw)
	if b.codec() != codecNone {
		s.packed += len(b.raw)
	}
	return nil
}

// flush hands on what is gathered, if anything.
func (s *segmenter) flush(ctx context.Context) error {
	if s.n == 0 {
		return nil
	}
	err := s.hand(ctx, s.buf[:s.n], 2*s.packed > s.n)
	s.n, s.packed = 0, 0
	return err
}

func (s *segmenter) hand(ctx context.Context, content []byte, packed bool) error {
	sum := sha256.Sum256(content)
	s.cur.SHA256, s.cur.Bytes = hex.EncodeToString(sum[:]), int64(len(content))
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := s.sink.Segment(ctx, s.cur.Entry, content, packed); err != nil {
		return fmt.Errorf("eventbus: storing %s: %w", s.cur.Entry, err)
	}
	s.partition.Segments = append(s.partition.Segments, s.cur)
	return nil
}

// free gives the buffer back.
func (s *segmenter) free() {
	if s.buf != nil {
		_ = unix.Munmap(s.buf)
		s.buf = nil
	}
}
