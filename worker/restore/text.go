package restore

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/flate"

	"catalog-backup/shared/set"
)

// text is the text of a manifest, kept compressed: it lists every file, 240 bytes
// each, of which some 50 are left.
type text struct {
	size   int64 // bytes of the text
	pieces [][]byte
}

const textPiece = 256 << 10

// keepText keeps what r gives. Its error is r's.
func keepText(r io.Reader) (*text, error) {
	t := &text{}
	z, err := flate.NewWriter(t, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if t.size, err = io.CopyBuffer(struct{ io.Writer }{z}, struct{ io.Reader }{r}, make([]byte, textPiece)); err != nil {
		return nil, err
	}
	return t, z.Close()
}

// Write takes what the compressor gives. It never fails.
func (t *text) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		last := len(t.pieces) - 1
		if last < 0 || len(t.pieces[last]) == cap(t.pieces[last]) {
			t.pieces = append(t.pieces, make([]byte, 0, textPiece))
			last++
		}
		piece := t.pieces[last]
		k := min(len(p), cap(piece)-len(piece))
		t.pieces[last] = append(piece, p[:k]...)
		p = p[k:]
	}
	return n, nil
}

// open reads the text from its beginning.
func (t *text) open() io.Reader {
	parts := make([]io.Reader, 0, len(t.pieces))
	for _, p := range t.pieces {
		parts = append(parts, bytes.NewReader(p))
	}
	return flate.NewReader(io.MultiReader(parts...))
}

// of tells whether it is a manifest of set id.
func (t *text) of(id set.ID) bool {
	m, err := set.ScanManifest(t.open(), "", func(*set.File) error { return nil })
	return err == nil && set.ID(m.Set) == id
}

// watched remembers the error of a reader, which must not be taken for a fault of
// what was read.
type watched struct {
	r   io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF && w.err == nil {
		w.err = err
	}
	return n, err
}
