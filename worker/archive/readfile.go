package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errReplaced says that a name leads to another thing than it did a moment ago.
var errReplaced = errors.New("it was replaced by something else")

// openFile opens a regular file that the walk found. A file that was replaced by a
// pipe or a link meanwhile neither hangs nor leads elsewhere.
func openFile(n *node) (*os.File, unix.Stat_t, error) {
	fd, err := openAt(n.at.fd(), n.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err == unix.ELOOP || err == unix.ENXIO {
		return nil, unix.Stat_t{}, errReplaced // now a link, or a socket
	}
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	f := os.NewFile(uintptr(fd), n.path)
	st, err := fstat(f)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errReplaced
	}
	if err != nil {
		f.Close()
		return nil, st, err
	}
	return f, st, nil
}

// What happened to a file while it was read, as set.File.Changed has it.
const (
	changed    = "changed"
	grown      = "grown"
	shrunk     = "shrunk"
	vanished   = "vanished"
	unreadable = "unreadable"
)

// disturbance compares what is known of a file before and after it was read.
// A change within one tick of the kernel's clock that keeps the size can't be seen on
// kernels before 6.13; nor can writes through a memory map to a page already dirty.
func disturbance(before, after *unix.Stat_t) string {
	switch {
	case after.Size > before.Size:
		return grown
	case after.Size < before.Size:
		return shrunk
	case after.Mtim != before.Mtim:
		return changed
	case after.Nlink == 0:
		return vanished // removed, but what was read is whole
	case after.Ctim != before.Ctim:
		return changed
	}
	return ""
}

// content reads a file's extents, exactly as many bytes as announced: what a file
// that shrinks lacks is zeros, what one that grows adds is left out.
type content struct {
	f     *os.File
	list  []Extent
	at    int64     // within the first extent of list
	sum   *fileHash // nil: nobody asks for it, and it would be a third of the work
	drop  bool      // the file is staging, read for the last time: its pages leave the cache behind us
	done  int64     // how far they have left it
	keep  bool      // a read error is kept in fault and zeros stand for the rest
	stale bool      // so is one of a stale handle: the file is read again, by its path
	fault error     // of a read
	count func(int64)
}

func newContent(f *os.File, h *Header, keep bool, count func(int64)) *content {
	c := &content{f: f, list: h.Sparse, keep: keep, count: count}
	if h.Sparse == nil {
		c.list = []Extent{{0, h.Size}}
	}
	return c
}

func (c *content) Read(p []byte) (int, error) {
	for len(c.list) > 0 && c.at == c.list[0].Length {
		c.list, c.at = c.list[1:], 0
	}
	if len(c.list) == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.list[0].Length-c.at)]
	n := 0
	if c.fault == nil {
		var err error
		n, err = c.f.ReadAt(p, c.list[0].Offset+c.at)
		if err != nil && err != io.EOF {
			if !c.keep && !(c.stale && errors.Is(err, unix.ESTALE)) {
				return 0, err
			}
			c.fault = err
		}
	}
	clear(p[n:])
	if c.sum != nil {
		c.sum.Write(p)
	}
	c.at += int64(len(p))
	if at := c.list[0].Offset + c.at; c.drop && at-c.done >= dropStretch {
		_ = unix.Fadvise(int(c.f.Fd()), c.done, at-c.done, unix.FADV_DONTNEED) // a hint
		c.done = at
	}
	c.count(int64(len(p)))
	return len(p), nil
}

// dropStretch is after how many bytes the pages of a staging file leave the cache.
// What is written meanwhile then takes their place instead of fresh memory, which on a
// virtual machine the host has to find first, or instead of the server's pages.
const dropStretch = 4 << 20

// hugeHoles is from how many bytes of holes on the hash leaves them out: hashing a
// terabyte of zeros takes a quarter of an hour.
const hugeHoles = 1 << 30

// ofExtents is set.File.SHA256Of for such a file: the SHA-256 is of the sparse map
// (as in the archive, without padding) and the data of the extents.
const ofExtents = "extents"

// hashKind is what goes into set.File.SHA256Of.
func hashKind(h *Header) string {
	if h.Sparse != nil && h.Size-h.Stored() > hugeHoles {
		return ofExtents
	}
	return ""
}

// fileHash hashes the data of a file's extents as they pass, with the holes between
// them or, for huge ones, with the map instead.
type fileHash struct {
	sum  hash.Hash
	list []Extent // not yet passed; nil: dense
	size int64
	at   int64 // in the file, holes included
	left int64 // of the present extent
	of   string
}

func newFileHash(h *Header) *fileHash {
	x := &fileHash{sum: sha256.New(), list: h.Sparse, size: h.Size, of: hashKind(h)}
	if h.Sparse == nil {
		x.list = []Extent{{0, h.Size}}
	}
	if x.of == ofExtents {
		x.sum.Write(sparseText(h.Sparse))
	}
	return x
}

func (x *fileHash) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if x.left == 0 {
			if len(x.list) == 0 {
				return n - len(p), fmt.Errorf("more data than the extents hold")
			}
			x.zeros(x.list[0].Offset)
			x.left = x.list[0].Length
			x.list = x.list[1:]
			continue
		}
		k := min(int64(len(p)), x.left)
		x.sum.Write(p[:k])
		x.at += k
		x.left -= k
		p = p[k:]
	}
	return n, nil
}

var zeroBlock [64 << 10]byte

// zeros goes on to offset.
func (x *fileHash) zeros(offset int64) {
	for x.of == "" && x.at < offset {
		k := min(offset-x.at, int64(len(zeroBlock)))
		x.sum.Write(zeroBlock[:k])
		x.at += k
	}
	x.at = offset
}

func (x *fileHash) hex() string {
	x.zeros(x.size)
	return hex.EncodeToString(x.sum.Sum(nil))
}

// smallFile is a file read ahead.
type smallFile struct {
	st      unix.Stat_t
	data    []byte
	sha256  string
	attrs   attributes
	changed string
	err     error
}

// readSmall reads a small file whole. buf has room for smallEntry bytes.
func readSmall(n *node, buf []byte) *smallFile {
	s := &smallFile{}
	f, st, err := openFile(n)
	if err != nil {
		s.err = err
		return s
	}
	defer f.Close()
	s.st = st
	if st.Size > smallEntry {
		s.err = errReplaced // large by now: read it as such
		return s
	}
	s.attrs = ofFile(f).read()
	k, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size), buf[:st.Size])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		s.err = err
		return s
	}
	s.data = buf[:k]
	sum := sha256.Sum256(s.data)
	s.sha256 = hex.EncodeToString(sum[:])
	after, err := fstat(f)
	if err != nil {
		s.err = err
		return s
	}
	s.changed = disturbance(&st, &after)
	if s.changed == "" && int64(k) < st.Size {
		s.changed = shrunk
	}
	return s
}

// modTime is a file's time. Some file systems keep 64 bits of seconds, and JSON ends
// with the year 9999, so what lies beyond is stored as the nearest time within.
func modTime(st *unix.Stat_t) time.Time {
	const year1, year9999 = -62135596800, 253402300799
	return time.Unix(min(max(st.Mtim.Sec, year1), year9999), st.Mtim.Nsec)
}
