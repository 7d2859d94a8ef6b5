package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/pgzip"
)

// mode is how a gzip member holds its content.
type mode int

const (
	deflated mode = iota // compressed
	stored               // stored blocks: for what is compressed already
)

// members writes a byte stream as gzip members (RFC 1952), a new one whenever the
// mode changes.
type members struct {
	out    io.Writer // never fails (sink)
	gz     *pgzip.Writer
	blocks int
	raw    storedMember
	open   bool
	mode   mode
}

func newMembers(out io.Writer, o Options) (*members, error) {
	gz, err := pgzip.NewWriterLevel(out, o.Level)
	if err != nil {
		return nil, fmt.Errorf("compression level %d: %w", o.Level, err)
	}
	return &members{out: out, gz: gz, blocks: o.Parallel, raw: storedMember{out: out}}, nil
}

func (m *members) write(p []byte, in mode) error {
	if m.open && m.mode != in {
		if err := m.end(); err != nil {
			return err
		}
	}
	if !m.open {
		m.open, m.mode = true, in
		if err := m.begin(); err != nil {
			return err
		}
	}
	if m.mode == stored {
		m.raw.write(p)
		return nil
	}
	_, err := m.gz.Write(p)
	return err
}

func (m *members) begin() error {
	if m.mode == stored {
		m.raw.begin()
		return nil
	}
	m.gz.Reset(m.out)
	m.gz.ModTime = time.Unix(0, 0) // the zero time.Time would write garbage
	// Reset has set the concurrency back to its default.
	return m.gz.SetConcurrency(pgzipBlock, m.blocks)
}

// pgzipBlock is pgzip's own default, which its Reset falls back to: the pools of
// buffers then stay of one size.
const pgzipBlock = 1 << 20

// end closes the open member, if any.
func (m *members) end() error {
	if !m.open {
		return nil
	}
	m.open = false
	if m.mode == stored {
		m.raw.end()
		return nil
	}
	return m.gz.Close()
}

// storedMember writes one gzip member of stored deflate blocks (RFC 1951, 3.2.4)
// straight through: no second buffer, only the CRC to compute.
type storedMember struct {
	out  io.Writer
	crc  uint32
	size uint32 // modulo 2^32, as the trailer wants it
}

const maxStoredBlock = 65535

func (s *storedMember) begin() {
	s.crc, s.size = 0, 0
	s.out.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
}

func (s *storedMember) write(p []byte) {
	s.crc = crc32.Update(s.crc, crc32.IEEETable, p)
	s.size += uint32(len(p))
	for len(p) > 0 {
		n := min(len(p), maxStoredBlock)
		s.out.Write([]byte{0, byte(n), byte(n >> 8), ^byte(n), ^byte(n >> 8)})
		s.out.Write(p[:n])
		p = p[n:]
	}
}

func (s *storedMember) end() {
	b := []byte{1, 0, 0, 0xff, 0xff} // last block, empty
	b = binary.LittleEndian.AppendUint32(b, s.crc)
	b = binary.LittleEndian.AppendUint32(b, s.size)
	s.out.Write(b)
}

// prober tells whether content is worth compressing.
type prober struct {
	fl   *flate.Writer
	size countWriter
}

const (
	probeSize = 64 << 10
	// worthless is the ratio above which compressing costs more than it saves.
	worthless = 0.95
)

type countWriter int64

func (c *countWriter) Write(p []byte) (int, error) {
	*c += countWriter(len(p))
	return len(p), nil
}

// mode decides by the first bytes of a stretch of content. head says that the
// stretch begins the file, so that a known format can be told by its magic.
func (p *prober) mode(b []byte, head bool) mode {
	if head && packedFormat(b) {
		return stored
	}
	b = b[:min(len(b), probeSize)]
	p.size = 0
	if p.fl == nil {
		p.fl, _ = flate.NewWriter(&p.size, 1) // level 1 is valid
	} else {
		p.fl.Reset(&p.size)
	}
	p.fl.Write(b)
	p.fl.Close()
	if float64(p.size) > worthless*float64(len(b)) {
		return stored
	}
	return deflated
}

// magics are the first bytes of formats whose whole content is compressed.
var magics = [][]byte{
	{0x1f, 0x8b},                           // gzip
	{0x28, 0xb5, 0x2f, 0xfd},               // zstd
	{0x04, 0x22, 0x4d, 0x18},               // lz4
	{0xfd, '7', 'z', 'X', 'Z', 0},          // xz
	{'B', 'Z', 'h'},                        // bzip2
	{'7', 'z', 0xbc, 0xaf, 0x27, 0x1c},     // 7-Zip
	{0x89, 'P', 'N', 'G', 0x0d, 0x0a},      // PNG
	{0xff, 0xd8, 0xff},                     // JPEG
	{0xff, 0x06, 0, 0, 's', 'N', 'a', 'P'}, // snappy frames
}

func packedFormat(b []byte) bool {
	for _, m := range magics {
		if bytes.HasPrefix(b, m) {
			return true
		}
	}
	return false
}
