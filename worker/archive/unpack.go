package archive

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// DamageError says that an archive is not as it was written.
type DamageError struct {
	Path   string // of the archive
	Offset int64  // in the .tar.gz file, bytes: the damage lies before this and near it
	What   string
	Err    error // may be nil
}

func (e *DamageError) Error() string {
	s := fmt.Sprintf("archive %s is damaged near byte %d: %s", e.Path, e.Offset, e.What)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *DamageError) Unwrap() error { return e.Err }

// readError says that the file could not be read: a fault of the disk or the
// network, not (known to be) one of the archive.
type readError struct{ err error }

func (e *readError) Error() string { return "read archive: " + e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

func isReadError(err error) bool {
	var r *readError
	return errors.As(err, &r)
}

const (
	rawChunk    = 1 << 20
	rawChunks   = 4
	plainChunk  = 256 << 10
	plainChunks = 4
)

// chunk is a part of the file, shared by the hash and the decompressor.
type chunk struct {
	b    []byte
	refs atomic.Int32
}

// plain is a stretch of decompressed bytes, or what is wrong at that place.
type plain struct {
	b    []byte
	from int64 // where in the plain stream the gzip member begins that b's first byte, or damage, is of

	damage *DamageError // of a salvaging unpacker
	lost   bool         // with damage: bytes are missing here, or are not what they were
}

// unpacker reads a .tar.gz in three goroutines: file → SHA-256, file → plain bytes.
type unpacker struct {
	path    string
	salvage bool // go on behind damage
	file    *source
	toHash  chan *chunk
	toGzip  chan *chunk
	free    chan *chunk
	plain   chan plain // decompressed
	reuse   chan []byte
	quit    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup

	sum     hash.Hash
	size    int64        // bytes of the file, valid after wg
	readErr error        // of the file, valid after wg or after plain was closed
	gzipErr error        // valid after plain was closed
	offset  atomic.Int64 // bytes of the file that were decompressed
}

func openUnpacker(path string, salvage bool) (*unpacker, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("open archive %s: it is not a regular file", path)
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	return unpack(path, f, salvage), nil
}

// unpack begins to read f, which path names.
func unpack(path string, f readable, salvage bool) *unpacker {
	u := &unpacker{path: path, salvage: salvage, file: &source{readable: f, salvage: salvage}, sum: sha256.New(), quit: make(chan struct{}),
		toHash: make(chan *chunk, rawChunks), toGzip: make(chan *chunk, rawChunks), free: make(chan *chunk, rawChunks),
		plain: make(chan plain, plainChunks), reuse: make(chan []byte, plainChunks+2)}
	for range rawChunks {
		u.free <- &chunk{b: make([]byte, rawChunk)}
	}
	for range plainChunks {
		u.reuse <- make([]byte, plainChunk)
	}
	u.wg.Add(3)
	go u.readFile()
	go u.hash()
	go u.gunzip()
	return u
}

func (u *unpacker) readFile() {
	defer u.wg.Done()
	defer close(u.toHash)
	defer close(u.toGzip)
	for {
		var c *chunk
		select {
		case c = <-u.free:
		case <-u.quit:
			return
		}
		n, err := io.ReadFull(u.file, c.b[:rawChunk])
		if n > 0 {
			u.size += int64(n)
			c.b = c.b[:n]
			c.refs.Store(2)
			u.toHash <- c // never blocks: the channels hold all chunks
			u.toGzip <- c
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return
		}
		if err != nil {
			u.readErr = &readError{err}
			return
		}
	}
}

func (u *unpacker) release(c *chunk) {
	if c.refs.Add(-1) == 0 {
		u.free <- c
	}
}

func (u *unpacker) hash() {
	defer u.wg.Done()
	for c := range u.toHash {
		u.sum.Write(c.b)
		u.release(c)
	}
}

// chunks reads the chunks one after the other.
type chunks struct {
	u    *unpacker
	c    *chunk
	b    []byte
	read int64
}

func (r *chunks) Read(p []byte) (int, error) {
	for len(r.b) == 0 {
		if r.c != nil {
			r.u.release(r.c)
			r.c = nil
		}
		c, ok := <-r.u.toGzip
		if !ok {
			if r.u.readErr != nil {
				return 0, r.u.readErr
			}
			return 0, io.EOF
		}
		r.c, r.b = c, c.b
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	r.read += int64(n)
	return n, nil
}

// gunzip decompresses all members. At an error it goes on to take chunks, so that
// the hash of the whole file can still be had.
func (u *unpacker) gunzip() {
	defer u.wg.Done()
	src := &chunks{u: u}
	drain := func() {
		src.b = nil
		for {
			if _, err := src.Read(make([]byte, 1)); err != nil {
				return
			}
			src.b = nil
		}
	}
	out := &outlet{u: u}
	at, err := u.members(src, 0, out)
	if u.salvage && err != nil && err != errQuit && !isReadError(err) {
		u.wg.Go(drain)
		err = u.resume(at, err, out)
		drain = func() {}
	}
	if err == nil {
		err = out.flush()
	}
	if err != nil && err != errQuit {
		_ = out.flush()
		u.gzipErr = u.classify(err)
	}
	close(u.plain)
	drain()
}

var errQuit = errors.New("the reader was closed")

// members decompresses the members in src, which begins at byte base of the file, until
// its end. With an error comes where the member begins that it is about.
func (u *unpacker) members(src io.Reader, base int64, out *outlet) (at int64, err error) {
	// bufio: klauspost's inflate has a fast path for it, and the gzip reader takes no
	// byte beyond a member, so the position is exact.
	count := &counter{r: src}
	in := bufio.NewReaderSize(count, 64<<10)
	position := func() int64 { return base + count.n - int64(in.Buffered()) }
	defer func() { u.reached(position()) }()
	var z gzip.Reader
	wrong := int64(-1) // begin of the member before, where its checksum is wrong
	for first := true; ; first = false {
		at = position()
		switch err := z.Reset(in); {
		case err == io.EOF && !(first && base == 0):
			return at, nil
		case err != nil && wrong >= 0: // it has not ended where it should
			return wrong, gzip.ErrChecksum
		case err != nil:
			return at, &headerError{err}
		}
		z.Multistream(false)
		out.begin()
		err := out.take(&z, func() { u.reached(position()) })
		wrong = -1
		if err == gzip.ErrChecksum && u.salvage {
			wrong = at
			u.reached(position())
			err = out.mark(u.classify(err), false)
		}
		if err != nil {
			return at, err
		}
	}
}

// reached notes how far the file was decompressed; what is read twice does not count.
func (u *unpacker) reached(at int64) {
	if at > u.offset.Load() {
		u.offset.Store(at)
	}
}

// headerError is a gzip member's header that cannot be understood.
type headerError struct{ err error }

func (e *headerError) Error() string { return e.err.Error() }
func (e *headerError) Unwrap() error { return e.err }

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// outlet hands plain bytes on in large pieces, whatever the members' sizes are.
type outlet struct {
	u      *unpacker
	b      []byte // from u.reuse
	n      int    // bytes in b
	total  int64  // plain bytes so far
	member int64  // where in them the present member begins
	from   int64  // where the member begins that b[0] is of
}

func (o *outlet) begin() { o.member = o.total }

// take reads a member to its end.
func (o *outlet) take(z io.Reader, progress func()) error {
	for {
		if o.b == nil {
			select {
			case o.b = <-o.u.reuse:
			case <-o.u.quit:
				return errQuit
			}
			o.n, o.from = 0, o.member
		}
		n, err := z.Read(o.b[o.n:plainChunk])
		o.n += n
		o.total += int64(n)
		if o.n == plainChunk {
			progress()
			if err := o.flush(); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (o *outlet) flush() error {
	if o.n == 0 {
		return nil
	}
	b := o.b[:o.n]
	o.b, o.n = nil, 0
	return o.send(plain{b: b, from: o.from})
}

func (o *outlet) mark(err error, lost bool) error {
	if err := o.flush(); err != nil {
		return err
	}
	var d *DamageError
	if !errors.As(err, &d) {
		return err
	}
	return o.send(plain{from: o.member, damage: d, lost: lost})
}

func (o *outlet) send(p plain) error {
	select {
	case o.u.plain <- p:
		return nil
	case <-o.u.quit:
		return errQuit
	}
}

func (u *unpacker) classify(err error) error {
	if isReadError(err) {
		return err
	}
	at := u.offset.Load()
	switch {
	case errors.Is(err, io.EOF):
		return &DamageError{u.path, at, "the file is empty", nil}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &DamageError{u.path, at, "the file ends in the middle of a gzip member", nil}
	case errors.Is(err, gzip.ErrHeader) && at > 0:
		return &DamageError{u.path, at, "bytes follow that are no gzip member", nil}
	case errors.Is(err, gzip.ErrHeader):
		return &DamageError{u.path, at, "it is no gzip file", nil}
	case errors.Is(err, gzip.ErrChecksum):
		return &DamageError{u.path, at, "the checksum of a gzip member is wrong", nil}
	}
	return &DamageError{u.path, at, "the compressed data is invalid", err}
}

// finish waits for the end of the file and gives its sum. The plain channel must
// have been emptied.
func (u *unpacker) finish() (Sum, error) {
	u.wg.Wait()
	if u.readErr != nil {
		return Sum{}, u.readErr
	}
	return Sum{Size: u.size, SHA256: hex.EncodeToString(u.sum.Sum(nil))}, nil
}

func (u *unpacker) close() {
	u.once.Do(func() {
		close(u.quit)
		u.wg.Wait()
		u.file.Close()
	})
}
