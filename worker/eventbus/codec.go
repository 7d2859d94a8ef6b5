package eventbus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Codecs as the batch's attributes number them.
const (
	codecNone, codecGzip, codecSnappy, codecLZ4, codecZstd = 0, 1, 2, 3, 4
)

const (
	// maxPlain is the most that one batch may decompress to: lengths in Kafka are int32.
	maxPlain = 1 << 31
	// maxWindow is the largest zstd window, what the reference decoder takes too
	// (ZSTD_WINDOWLOG_LIMIT_DEFAULT = 27).
	maxWindow = 128 << 20
	// maxSnappyRatio is above what the format can do: a copy of 64 bytes takes 3.
	maxSnappyRatio = 22
)

var errBomb = errors.New("it decompresses to more than 2 GiB")

// decoder decompresses batches as streams, so that memory does not follow what
// a batch claims to hold. Not for concurrent use.
type decoder struct {
	src   bytes.Reader
	gz    *gzip.Reader
	lz    *lz4.Reader
	zs    *zstd.Decoder
	plain *bufio.Reader
}

// close frees what the codecs hold.
func (d *decoder) close() {
	if d.zs != nil {
		d.zs.Close()
	}
}

// open gives the records of b as a stream, valid until the next call.
func (d *decoder) open(b batch) (*bufio.Reader, error) {
	d.src.Reset(b.records())
	var in io.Reader = &d.src
	var err error
	switch b.codec() {
	case codecNone:
	case codecGzip:
		if d.gz == nil {
			d.gz = new(gzip.Reader)
		}
		err = d.gz.Reset(&d.src)
		in = d.gz
	case codecSnappy:
		in, err = openSnappy(b.records())
	case codecLZ4:
		if d.lz == nil {
			d.lz = lz4.NewReader(nil)
		}
		d.lz.Reset(&d.src)
		in = d.lz
	case codecZstd:
		if d.zs == nil {
			d.zs, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		}
		if err == nil {
			err = d.zs.Reset(&d.src)
		}
		in = d.zs
	default:
		err = fmt.Errorf("codec %d is unknown", b.codec())
	}
	if err != nil {
		return nil, err
	}
	in = &limited{in, maxPlain}
	if d.plain == nil {
		d.plain = bufio.NewReaderSize(in, 64<<10)
	} else {
		d.plain.Reset(in)
	}
	return d.plain, nil
}

// limited ends a stream with errBomb after left bytes.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errBomb
	}
	return n, err
}

// xerialMagic begins the framing that Java clients put around snappy blocks:
// 8 bytes magic, two int32 versions, then blocks with an int32 length each.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

func openSnappy(in []byte) (io.Reader, error) {
	if len(in) >= 16 && bytes.HasPrefix(in, xerialMagic) {
		return &xerial{in: in[16:]}, nil
	}
	out, err := snappyBlock(nil, in)
	return bytes.NewReader(out), err
}

// snappyBlock decodes one block after a look at the size that it claims.
func snappyBlock(dst, in []byte) ([]byte, error) {
	n, err := snappy.DecodedLen(in)
	if err != nil {
		return nil, err
	}
	if n > maxPlain || n > maxSnappyRatio*len(in) {
		return nil, snappy.ErrCorrupt
	}
	return snappy.Decode(dst[:cap(dst)], in)
}

// xerial decodes framed snappy block by block.
type xerial struct {
	in, buf, out []byte
}

func (x *xerial) Read(p []byte) (int, error) {
	for len(x.out) == 0 {
		if len(x.in) == 0 {
			return 0, io.EOF
		}
		if len(x.in) < 4 {
			return 0, io.ErrUnexpectedEOF
		}
		n := int64(binary.BigEndian.Uint32(x.in))
		if n > int64(len(x.in)-4) {
			return 0, io.ErrUnexpectedEOF
		}
		var err error
		if x.buf, err = snappyBlock(x.buf, x.in[4:4+n]); err != nil {
			return 0, err
		}
		x.in, x.out = x.in[4+n:], x.buf
	}
	n := copy(p, x.out)
	x.out = x.out[n:]
	return n, nil
}

// compressor gives the library's compressor for a codec.
func compressor(codec int8) (kgo.Compressor, error) {
	var c kgo.CompressionCodec
	switch codec {
	case codecNone:
		return nil, nil
	case codecGzip:
		c = kgo.GzipCompression()
	case codecSnappy:
		c = kgo.SnappyCompression()
	case codecLZ4:
		c = kgo.Lz4Compression()
	case codecZstd:
		c = kgo.ZstdCompression()
	default:
		return nil, fmt.Errorf("codec %d is unknown", codec)
	}
	return kgo.DefaultCompressor(c)
}
