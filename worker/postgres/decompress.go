package postgres

import (
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// zstdWindow bounds the memory that a hostile zstd frame can ask for. zstd's
// own level 19 uses 8 MiB; 128 MiB is what its command line accepts.
const zstdWindow = 128 << 20

// extension is what pgBackRest appends to the names of stored files.
func extension(compressType string) (string, error) {
	switch compressType {
	case "none":
		return "", nil
	case "zst", "lz4", "gz", "bz2":
		return "." + compressType, nil
	}
	return "", fmt.Errorf("its compression %q is not known: zst, lz4, gz, bz2 and none are", compressType)
}

// decompressor undoes pgBackRest's compression. It is used again for every
// slice, since a repository holds many small ones.
type decompressor struct {
	kind string
	zst  *zstd.Decoder
	lz4  *lz4.Reader
	gz   *gzip.Reader
}

// open gives the content of r. raw is set for slices of bundles without gzip's
// header (pgBackRest's backup-bundle-raw). What it gives is valid until the next open.
func (d *decompressor) open(r io.Reader, raw bool) (io.Reader, error) {
	switch d.kind {
	case "none":
		return r, nil
	case "bz2":
		return bzip2.NewReader(r), nil
	case "lz4":
		if d.lz4 == nil {
			d.lz4 = lz4.NewReader(r)
		}
		d.lz4.Reset(r)
		return d.lz4, nil
	case "gz":
		if raw {
			return flate.NewReader(r), nil
		}
		if d.gz == nil {
			d.gz = new(gzip.Reader)
		}
		if err := d.gz.Reset(r); err != nil {
			return nil, err
		}
		return d.gz, nil
	case "zst":
		if d.zst == nil {
			z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderLowmem(true))
			if err != nil {
				return nil, err
			}
			d.zst = z
		}
		return d.zst, d.zst.Reset(r)
	}
	return nil, fmt.Errorf("compression %q is not known", d.kind)
}

func (d *decompressor) close() {
	if d.zst != nil {
		d.zst.Close()
		d.zst = nil
	}
}
