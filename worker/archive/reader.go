package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Reader reads one archive in one pass: the file's SHA-256 and size, the gzip
// members, the tar. Not for several goroutines.
type Reader struct {
	u    *unpacker
	have []byte // plain bytes taken from the unpacker and not yet read
	full []byte // the buffer that have lies in
	came int64  // plain bytes taken from the unpacker

	body  int64 // stored bytes of the present entry not yet read
	pad   int64 // padding after them
	cur   *Header
	holes *expander // of a sparse entry
	err   error     // io.EOF after the trailer

	mend *mending // nil: the first damage is the end
}

// Open opens the archive at path. Close it.
func Open(path string) (*Reader, error) { return open(path, nil) }

func open(path string, m *mending) (*Reader, error) {
	u, err := openUnpacker(path, m != nil)
	if err != nil {
		return nil, err
	}
	return &Reader{u: u, mend: m}, nil
}

// Close ends the goroutines. It may be called at any time and more than once.
func (r *Reader) Close() error {
	r.u.close()
	if r.err == nil {
		r.err = errQuit
	}
	return nil
}

// raw reads plain bytes of the tar stream.
func (r *Reader) raw(p []byte) (int, error) {
	if m := r.mend; m != nil {
		return m.raw(r, p)
	}
	for len(r.have) == 0 {
		if _, err := r.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.have)
	r.have = r.have[n:]
	return n, nil
}

// more takes the next stretch from the unpacker, once the one before is read.
func (r *Reader) more() (plain, error) {
	if r.full != nil {
		r.u.reuse <- r.full
		r.full = nil
	}
	x, ok := <-r.u.plain
	if !ok {
		if r.u.gzipErr != nil {
			return x, r.u.gzipErr
		}
		return x, io.EOF
	}
	if x.b != nil {
		r.have, r.full = x.b, x.b
		r.came += int64(len(x.b))
	}
	return x, nil
}

type rawReader struct{ r *Reader }

func (x rawReader) Read(p []byte) (int, error) { return x.r.raw(p) }

// damage makes an error of what was found at the present place.
func (r *Reader) damage(what string, err error) error {
	var d *DamageError
	if errors.As(err, &d) || isReadError(err) {
		return err
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = errors.New("the archive ends here")
	}
	return &DamageError{r.u.path, r.u.offset.Load(), what, err}
}

// Next goes to the next entry, over what is left of the present one, and gives its
// header. io.EOF says that the tar's trailer was there; Finish must still be called.
// A *DamageError names the archive and the place.
func (r *Reader) Next() (*Header, error) {
	if r.err != nil {
		return nil, r.err
	}
	next := r.next
	if r.mend != nil {
		next = func() (*Header, error) { return r.mend.next(r) }
	}
	h, err := next()
	if err != nil {
		r.err, r.cur = err, nil
		return nil, err
	}
	r.cur = h
	return h, nil
}

func (r *Reader) next() (*Header, error) {
	if err := r.skip(); err != nil {
		return nil, err
	}
	return r.header()
}

// header reads the headers of an entry, extended ones included; io.EOF is the trailer.
func (r *Reader) header() (*Header, error) {
	var pax map[string]string
	var longName, longLink string
	for {
		b, err := r.block()
		if err != nil {
			return nil, err
		}
		if b == nil {
			if pax != nil || longName != "" || longLink != "" {
				return nil, r.damage("an extended header without its entry", nil)
			}
			return nil, io.EOF
		}
		raw, err := parseBlock(b)
		if err != nil {
			return nil, r.damage("tar header", err)
		}
		switch raw.flag {
		case 'x', 'L', 'K':
			ext, err := r.extension(raw.size)
			if err != nil {
				return nil, err
			}
			switch raw.flag {
			case 'x':
				if pax, err = parsePAX(ext); err != nil {
					return nil, r.damage("tar header", err)
				}
			case 'L':
				longName = cString(ext)
			case 'K':
				longLink = cString(ext)
			}
			continue
		}
		if longName != "" {
			raw.h.Name = longName
		}
		if longLink != "" {
			raw.h.Link = longLink
		}
		if err := r.begin(raw, pax); err != nil {
			return nil, r.damage("entry "+show(raw.h.Name), err)
		}
		return &raw.h, nil
	}
}

// skip reads over the rest of the present entry.
func (r *Reader) skip() error {
	for n := r.body + r.pad; n > 0; {
		if len(r.have) == 0 || r.mend != nil && len(r.mend.pushed) > 0 {
			var passed [4096]byte
			k, err := r.raw(passed[:min(n, int64(len(passed)))])
			if err != nil {
				return r.damage("content of entry "+r.name(), err)
			}
			n -= int64(k)
			continue
		}
		k := min(n, int64(len(r.have)))
		r.have = r.have[k:]
		n -= k
	}
	r.body, r.pad, r.holes = 0, 0, nil
	return nil
}

func (r *Reader) name() string {
	if r.cur == nil {
		return "?"
	}
	return show(r.cur.Name)
}

// block reads a header block; nil stands for the trailer, two blocks of NUL.
func (r *Reader) block() (*[blockSize]byte, error) {
	var b, zero [blockSize]byte
	if _, err := io.ReadFull(rawReader{r}, b[:]); err != nil {
		return nil, r.damage("there is no tar trailer", err)
	}
	if b != zero {
		return &b, nil
	}
	if _, err := io.ReadFull(rawReader{r}, b[:]); err != nil {
		return nil, r.damage("half of the tar trailer is missing", err)
	}
	if b != zero {
		return nil, r.damage("a header follows after half of the tar trailer", nil)
	}
	return nil, nil
}

// extension reads the body of an extended header.
func (r *Reader) extension(size int64) ([]byte, error) {
	if size > maxPAX+blockSize {
		return nil, r.damage(fmt.Sprintf("an extended header of %d bytes", size), nil)
	}
	b := make([]byte, size+padding(size))
	if _, err := io.ReadFull(rawReader{r}, b); err != nil {
		return nil, r.damage("an extended header is cut", err)
	}
	return b[:size], nil
}

// begin makes raw the present entry.
func (r *Reader) begin(raw *rawHeader, pax map[string]string) error {
	if err := raw.applyPAX(pax); err != nil {
		return err
	}
	h := &raw.h
	if (raw.flag == 0 || raw.flag == '0') && strings.HasSuffix(h.Name, "/") && raw.size == 0 && pax == nil {
		raw.flag = '5' // as programs before POSIX wrote directories
	}
	switch raw.flag {
	case 0, '0', '7':
		h.Kind = Regular
	case '1', '2', '3', '4', '5', '6':
		h.Kind = Kind(raw.flag)
		if raw.size != 0 {
			return fmt.Errorf("content where there can be none")
		}
	default:
		return fmt.Errorf("kind %q is not one that this program writes", raw.flag)
	}
	if h.Kind == Dir {
		h.Name = strings.TrimSuffix(h.Name, "/")
	}
	if h.Name == "" {
		return fmt.Errorf("it has no name")
	}
	if raw.size > 1<<62 {
		return fmt.Errorf("size %d", raw.size)
	}
	h.Size = raw.size
	r.body, r.pad = raw.size, padding(raw.size)
	return r.beginSparse(h, pax)
}

func (r *Reader) beginSparse(h *Header, pax map[string]string) error {
	major, minor := pax["GNU.sparse.major"], pax["GNU.sparse.minor"]
	if major == "" && minor == "" {
		for k := range pax {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return fmt.Errorf("a sparse format that this program does not write")
			}
		}
		return nil
	}
	if major != "1" || minor != "0" || h.Kind != Regular {
		return fmt.Errorf("sparse format %s.%s is not one that this program writes", major, minor)
	}
	size, err := strconv.ParseUint(pax["GNU.sparse.realsize"], 10, 62)
	if err != nil {
		return fmt.Errorf("size of the sparse file: %w", err)
	}
	list, used, err := parseSparseMap(rawReader{r}, r.body)
	if err != nil {
		return err
	}
	r.body -= used
	h.Size, h.Sparse = int64(size), list
	if err := checkExtents(list, h.Size); err != nil {
		return err
	}
	if h.Stored() != r.body {
		return fmt.Errorf("sparse map counts %d bytes of data and %d follow", h.Stored(), r.body)
	}
	r.holes = &expander{data: bodyReader{r}, list: list, size: h.Size}
	return nil
}

type bodyReader struct{ r *Reader }

func (x bodyReader) Read(p []byte) (int, error) {
	r := x.r
	if m := r.mend; m != nil && m.failed != nil {
		return 0, m.failed
	}
	if r.body == 0 {
		return 0, io.EOF
	}
	n, err := r.raw(p[:min(int64(len(p)), r.body)])
	r.body -= int64(n)
	if err != nil {
		err = r.damage("content of entry "+r.name(), err)
		if r.mend == nil || !r.mend.broke(r, r.cur.Name, err) {
			r.err = err
		}
	}
	return n, err
}

// Read reads the present entry's content, holes of a sparse file as zeros.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil && r.err != io.EOF {
		return 0, r.err
	}
	if r.holes != nil {
		return r.holes.Read(p)
	}
	return bodyReader{r}.Read(p)
}

// Data reads the present entry's stored bytes: of a sparse file the data of its
// extents without the holes.
func (r *Reader) Data() io.Reader { return bodyReader{r} }

// Offset is how many bytes of the .tar.gz file were decompressed so far.
func (r *Reader) Offset() int64 { return r.u.offset.Load() }

// Finish reads what is left, to the last byte of the file: the remaining entries
// are checked for their structure, and nothing but zeros may follow the trailer. The
// sum is of the whole file and is given also where the content is damaged, as far
// as the file could be read.
func (r *Reader) Finish() (Sum, error) {
	var err error
	for err == nil {
		_, err = r.Next()
	}
	if err == errQuit {
		return Sum{}, fmt.Errorf("archive %s: %w", r.u.path, err)
	}
	if r.mend != nil && err == io.EOF {
		err = nil // trailing has seen to it
	} else if err == io.EOF {
		err = r.rest()
	}
	for x := range r.u.plain { // after damage: only for the hash
		if x.b != nil {
			r.u.reuse <- x.b
		}
	}
	sum, failed := r.u.finish()
	if err == nil {
		err = failed
	}
	return sum, err
}

// rest reads over tar's record padding, which other programs write.
func (r *Reader) rest() error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.raw(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return r.damage("bytes follow after the tar trailer", nil)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
