package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"catalog-backup/worker/stage"
)

// Options of a Writer.
type Options struct {
	Level    int // of the compressing members, 1 (default) to 9
	Parallel int // goroutines that compress; default the number of processors, at most 4
}

func (o Options) withDefaults() Options {
	if o.Level == 0 {
		o.Level = 1
	}
	if o.Parallel <= 0 {
		o.Parallel = min(runtime.NumCPU(), 4)
	}
	return o
}

// Class says whether an entry's content is worth compressing.
type Class int

const (
	Auto   Class = iota // find out by looking at the content
	Text                // compress
	Packed              // compressed already: store
)

// Begun is an archive file that one stage has begun and another one continues.
type Begun struct {
	Path      string `json:"path"`
	Size      int64  `json:"size"`       // bytes, whole gzip members
	HashState []byte `json:"hash_state"` // marshalled SHA-256 of those bytes
}

// Sum is what identifies a finished file.
type Sum struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hexadecimal
}

const (
	pieceSize = 256 << 10
	pieces    = 6
	// smallEntry is the size up to which an entry goes into a compressing member
	// whatever it holds: switching members for every little file would cost more.
	smallEntry = 64 << 10
	// stretch is after how many bytes of a large entry Auto looks again.
	stretch = 8 << 20
)

// piece is a part of the tar stream on its way to the gzip goroutine.
type piece struct {
	b    []byte
	mode mode
}

// Writer writes one archive. Entry may be called from several goroutines; entries
// are written one after the other. After an error inside an entry the archive is
// cut in the middle and every further call returns that error.
type Writer struct {
	mu     sync.Mutex
	path   string
	sink   *sink
	work   chan piece
	free   chan []byte
	packed chan struct{} // closed when the gzip goroutine has ended
	fault  atomic.Pointer[error]

	check  *Checker
	cur    []byte
	mode   mode
	probe  prober
	err    error
	closed bool
}

// Create begins a new archive at path, which must not exist. The file is for the
// owner only whatever the umask.
func Create(path string, o Options) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|syscall.O_NOFOLLOW, 0600)
	if err != nil {
		return nil, writeFault("create", path, err)
	}
	if err := f.Chmod(0600); err != nil {
		f.Close()
		os.Remove(path)
		return nil, writeFault("create", path, err)
	}
	w, err := newWriter(f, path, 0, sha256.New(), o)
	if err != nil {
		os.Remove(path)
	}
	return w, err
}

// Resume goes on with an archive that Hold has handed on. What was written after
// Hold (by an attempt that died) is cut off. A file shorter than b.Size is refused
// for good: its bytes are lost and the stage that wrote it must run again.
func Resume(b Begun, o Options) (*Writer, error) {
	h, err := hashFromState(b.HashState)
	if err != nil {
		return nil, stage.Permanentf("continue archive %s: %w", b.Path, err)
	}
	f, err := os.OpenFile(b.Path, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, stage.Permanentf("continue archive %s: it is gone: did something else clear the dump directory? run the backup again", b.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("continue archive %s: %w", b.Path, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err == nil && st.Size() < b.Size {
		err = stage.Permanentf("it has %d bytes and should have %d: the begun archive is damaged, run the backup again", st.Size(), b.Size)
	}
	if err == nil {
		err = f.Truncate(b.Size)
	}
	if err == nil {
		_, err = f.Seek(b.Size, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("continue archive %s: %w", b.Path, err)
	}
	return newWriter(f, b.Path, b.Size, h, o)
}

func newWriter(f *os.File, path string, size int64, sum hash.Hash, o Options) (*Writer, error) {
	s := newSink(f, path, size, sum)
	m, err := newMembers(s, o.withDefaults())
	if err != nil {
		s.close(false)
		return nil, stage.Permanent(err)
	}
	w := &Writer{path: path, sink: s, work: make(chan piece, pieces), free: make(chan []byte, pieces), packed: make(chan struct{}), check: NewChecker()}
	for range pieces - 1 {
		w.free <- make([]byte, 0, pieceSize)
	}
	w.cur = make([]byte, 0, pieceSize)
	go w.pack(m)
	return w, nil
}

// pack is the gzip goroutine. After an error it only empties the channel.
func (w *Writer) pack(m *members) {
	defer close(w.packed)
	note := func(err error) {
		if err != nil {
			err = fmt.Errorf("compress archive %s: %w", w.path, err)
			w.fault.CompareAndSwap(nil, &err)
		}
	}
	for p := range w.work {
		if w.broken() == nil {
			note(m.write(p.b, p.mode))
		}
		w.free <- p.b[:0]
	}
	note(m.end())
}

// broken is the first error of the goroutines behind.
func (w *Writer) broken() error {
	if e := w.sink.fault.Load(); e != nil {
		return *e
	}
	if e := w.fault.Load(); e != nil {
		return *e
	}
	return nil
}

// Size is how many bytes have been written to the file so far.
func (w *Writer) Size() int64 { return w.sink.size.Load() }

// Path is the archive's file.
func (w *Writer) Path() string { return w.path }

// Entry adds one entry. content delivers exactly h.Stored() bytes (for a sparse
// file the data of its extents, one after the other); nil where there are none.
// More or fewer bytes are an error, after which the archive is of no use. An entry that
// could not be unpacked is refused (see Checker).
func (w *Writer) Entry(ctx context.Context, h *Header, content io.Reader, c Class) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("archive %s: %w", w.path, context.Cause(ctx))
	}
	head, err := h.encode()
	if err == nil {
		err = w.check.Check(h)
	}
	if err != nil {
		return fmt.Errorf("archive %s: %w", w.path, err)
	}
	size := int64(0)
	if h.Kind == Regular {
		size = h.Stored()
	}
	small := size < smallEntry
	if small {
		w.switchTo(deflated)
	}
	w.put(head)
	if size > 0 {
		if err = w.body(ctx, content, size, c, small); err == nil {
			err = w.atEnd(content)
		}
		w.put(make([]byte, padding(size)))
	}
	if err == nil {
		err = w.broken()
	}
	if err != nil {
		w.err = fmt.Errorf("archive %s: entry %s: %w", w.path, show(h.Name), err)
	}
	return w.err
}

func (w *Writer) usable() error {
	switch {
	case w.err != nil:
		return w.err
	case w.closed:
		return fmt.Errorf("archive %s is closed", w.path)
	}
	return w.broken()
}

// body moves size bytes of content, straight from the reader into the pieces.
func (w *Writer) body(ctx context.Context, content io.Reader, size int64, c Class, small bool) error {
	if !small {
		w.send() // so that pieces begin where the content begins, and Auto sees whole ones
		if c == Packed {
			w.switchTo(stored)
		} else if c == Text {
			w.switchTo(deflated)
		}
	}
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := w.broken(); err != nil {
			return err
		}
		if len(w.cur) == cap(w.cur) {
			w.send()
		}
		n := min(left, int64(cap(w.cur)-len(w.cur)))
		at := len(w.cur)
		w.cur = w.cur[:at+int(n)]
		if k, err := io.ReadFull(content, w.cur[at:]); err != nil {
			w.cur = w.cur[:at]
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return fmt.Errorf("content ended after %d of %d bytes", size-left+int64(k), size)
			}
			return fmt.Errorf("read content: %w", err)
		}
		if done := size - left; !small && c == Auto && done%stretch == 0 {
			w.mode = w.probe.mode(w.cur[at:], done == 0)
		}
		left -= n
	}
	return nil
}

// atEnd makes sure that content holds no more than was announced.
func (w *Writer) atEnd(content io.Reader) error {
	var one [1]byte
	for range 100 {
		n, err := content.Read(one[:])
		switch {
		case n > 0:
			return errors.New("content is longer than announced")
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read content: %w", err)
		}
	}
	return io.ErrNoProgress
}

// put adds bytes in the present mode.
func (w *Writer) put(p []byte) {
	for len(p) > 0 {
		if len(w.cur) == cap(w.cur) {
			w.send()
		}
		k := copy(w.cur[len(w.cur):cap(w.cur)], p)
		w.cur = w.cur[:len(w.cur)+k]
		p = p[k:]
	}
}

func (w *Writer) switchTo(m mode) {
	if w.mode != m {
		w.send()
		w.mode = m
	}
}

func (w *Writer) send() {
	if len(w.cur) == 0 {
		return
	}
	w.work <- piece{w.cur, w.mode}
	w.cur = <-w.free
}

// Hold ends the archive for now: whole blocks, whole members, no trailer, on the
// disk. Resume goes on.
func (w *Writer) Hold() (Begun, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.close(false); err != nil {
		return Begun{}, err
	}
	state, err := w.sink.state()
	if err != nil {
		return Begun{}, err
	}
	return Begun{Path: w.path, Size: w.Size(), HashState: state}, nil
}

// Finish writes the end of the tar, syncs and closes. The caller renames.
func (w *Writer) Finish() (Sum, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.close(true); err != nil {
		return Sum{}, err
	}
	return Sum{Size: w.Size(), SHA256: hex.EncodeToString(w.sink.sum.Sum(nil))}, nil
}

func (w *Writer) close(trailer bool) error {
	if w.closed {
		return fmt.Errorf("archive %s is closed", w.path)
	}
	failed := w.usable()
	if failed == nil && trailer {
		w.switchTo(deflated)
		w.put(make([]byte, 2*blockSize))
	}
	w.closed = true
	w.send()
	close(w.work)
	<-w.packed
	if failed == nil {
		failed = w.broken()
	}
	if err := w.sink.close(failed == nil); failed == nil {
		failed = err
	}
	w.err = failed
	return failed
}

// Abort ends the goroutines and closes the file, which the caller removes. It may
// be called at any time, also after Hold or Finish, and then does nothing.
func (w *Writer) Abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if w.err == nil {
		w.err = fmt.Errorf("archive %s was given up", w.path)
	}
	_ = w.close(false)
}
