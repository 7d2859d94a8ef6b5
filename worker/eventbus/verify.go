package eventbus

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"catalog-backup/shared/set"
)

// Verifier checks the bus part of a set against its manifest as the archive's
// entries come by, without a broker: SHA-256, structure and CRC-32C of every
// batch, offsets, counts, and every record, decompressed as a stream. The CRC was
// made by the producer, so that it proves more than our own sums do.
type Verifier struct {
	e      *set.EventBus
	report func(set.Damage)
	want   map[string]*expected
	dec    decoder
	buf    []byte
}

// expected is a segment that must come by.
type expected struct {
	seg       *set.Segment
	partition *set.Partition // nil: discarded
	seen      bool
}

// NewVerifier checks the manifest itself at once and reports what is wrong in it.
func NewVerifier(e *set.EventBus, report func(set.Damage)) *Verifier {
	v := &Verifier{e: e, report: report, want: map[string]*expected{}}
	checkManifest(e, report)
	add := func(s *set.Segment, p *set.Partition) {
		if v.want[s.Entry] != nil {
			report(set.Damage{Entry: s.Entry, Problem: "the manifest has the segment twice"})
		}
		v.want[s.Entry] = &expected{seg: s, partition: p}
	}
	for i := range e.Topics {
		for j := range e.Topics[i].Partitions {
			p := &e.Topics[i].Partitions[j]
			for k := range p.Segments {
				add(&p.Segments[k], p)
			}
		}
	}
	for i := range e.Discarded {
		add(&e.Discarded[i], nil)
	}
	return v
}

// Entry checks one entry of the archive that lies under set.EventBusPrefix. Its
// error is one of reading r; damage is reported.
func (v *Verifier) Entry(name string, size int64, r io.Reader) error {
	bad := func(format string, args ...any) {
		v.report(set.Damage{Entry: name, Problem: fmt.Sprintf(format, args...)})
	}
	x := v.want[name]
	if x == nil {
		bad("it is in the archive and not in the manifest")
		_, err := io.Copy(io.Discard, r)
		return err
	}
	if x.seen {
		bad("it is in the archive twice")
		_, err := io.Copy(io.Discard, r)
		return err
	}
	x.seen = true
	if size != x.seg.Bytes {
		bad("it has %d bytes, the manifest says %d", size, x.seg.Bytes)
	}
	sum := sha256.New()
	in := &tee{r: r, sum: sum}
	check := segmentCheck{v: v, x: x, bad: bad}
	if x.partition != nil {
		check.tiles = newTiling(x.partition)
		check.tiles.cover(x.seg.Base)
	}
	problem, err := check.run(in, size)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if problem != nil {
		bad("%v", problem)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != x.seg.SHA256 {
		bad("its SHA-256 is %s, the manifest says %s", got, x.seg.SHA256)
	}
	return nil
}

// Finish reports segments that never came by.
func (v *Verifier) Finish() error {
	v.dec.close()
	missing := func(s *set.Segment) {
		if x := v.want[s.Entry]; x != nil && !x.seen {
			v.report(set.Damage{Entry: s.Entry, Problem: "it is in the manifest and not in the archive"})
		}
	}
	for i := range v.e.Topics {
		for j := range v.e.Topics[i].Partitions {
			p := &v.e.Topics[i].Partitions[j]
			for k := range p.Segments {
				missing(&p.Segments[k])
			}
		}
	}
	for i := range v.e.Discarded {
		missing(&v.e.Discarded[i])
	}
	return nil
}

// tee sums what is read and keeps the error of the stream apart from damage.
type tee struct {
	r   io.Reader
	sum hash.Hash
	err error
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.sum.Write(p[:n])
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

// segmentCheck walks over one segment.
type segmentCheck struct {
	v     *Verifier
	x     *expected
	bad   func(string, ...any)
	tiles *tiling

	pos              int64
	last             int64
	batches, records int64
}

// run reads size bytes of batches. problem is the first damage that ends the
// walk, err one of the stream.
func (c *segmentCheck) run(in *tee, size int64) (problem, err error) {
	c.last = -1
	for c.pos < size {
		raw, problem := nextBatch(in, c.largest(size), &c.v.buf)
		if in.err != nil {
			return nil, in.err
		}
		if problem != nil {
			return fmt.Errorf("byte %d: %w", c.pos, problem), nil
		}
		b, perr := parseBatch(raw)
		if perr != nil {
			return fmt.Errorf("byte %d: %w", c.pos, perr), nil
		}
		if problem := c.batch(b); problem != nil {
			return fmt.Errorf("byte %d, offsets %d to %d: %w", c.pos, b.base, b.last(), problem), nil
		}
		c.pos += int64(len(raw))
	}
	s := c.x.seg
	if c.batches != s.Batches || c.records != s.Records || c.last != s.Last {
		return fmt.Errorf("it holds %d batches, %d records up to offset %d; the manifest says %d, %d, %d", c.batches, c.records, c.last, s.Batches, s.Records, s.Last), nil
	}
	return nil, nil
}

// largest is how long the next batch can be in an entry of size bytes. A claim
// beyond it would cost memory before it is found out.
func (c *segmentCheck) largest(size int64) int64 {
	left := min(size, c.x.seg.Bytes) - c.pos
	if p := c.x.partition; p != nil {
		left = min(left, int64(p.MaxBatch))
	}
	return left
}

// batch checks one batch's place and records.
func (c *segmentCheck) batch(b batch) error {
	s, p := c.x.seg, c.x.partition
	if c.batches == 0 && b.base != s.Base {
		return fmt.Errorf("the first offset is %d, the manifest says %d", b.base, s.Base)
	}
	if b.base <= c.last {
		return fmt.Errorf("offset %d comes after %d", b.base, c.last)
	}
	if b.control() || b.count == 0 {
		return errors.New("a control batch or an empty batch, which a set never holds")
	}
	if p != nil {
		if b.last() < p.Start || b.base >= p.Cut {
			return fmt.Errorf("it lies outside of [%d, %d)", p.Start, p.Cut)
		}
		// Between the batches of a compacted partition's segment holes are legal.
		if from, to, hole := c.tiles.hole(b.base); hole && !p.Compacted {
			return fmt.Errorf("offsets %d to %d before it are neither here nor accounted for", from, to-1)
		}
		c.tiles.cover(b.last() + 1)
	}
	c.last = b.last()
	c.batches++
	c.records += int64(b.count)
	plain, err := c.v.dec.open(b)
	if err == nil {
		err = eachRecord(plain, b.count, b.lastDelta, false, nil)
	}
	if err != nil {
		return fmt.Errorf("its records cannot be read though the CRC is right: %w", err)
	}
	return nil
}
