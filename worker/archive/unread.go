package archive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// readable is what an unpacker needs of the archive's file.
type readable interface {
	io.ReaderAt
	io.Closer
	Stat() (os.FileInfo, error)
}

// sector is the least that is given up where a disk cannot read.
const sector = 4096

// source reads the file of an archive. A salvaging one takes zeros for the sectors
// that the disk cannot read (EIO), and remembers where: the checksums tell what is
// wrong with what they were part of, and the rest of the archive can be read on.
type source struct {
	readable
	salvage bool
	next    int64 // where Read goes on

	mu    sync.Mutex
	lost  map[int64]bool // sectors
	first error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.ReadAt(p, s.next)
	s.next += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt is io.ReaderAt's.
func (s *source) ReadAt(p []byte, at int64) (int, error) {
	n, err := s.readable.ReadAt(p, at)
	if !s.salvage || !errors.Is(err, unix.EIO) {
		return n, err
	}
	st, serr := s.Stat()
	if serr != nil {
		return n, errors.Join(err, serr)
	}
	whole := min(int64(len(p)), max(0, st.Size()-at))
	for pos := at; pos < at+whole; {
		end := min(pos-pos%sector+sector, at+whole)
		piece := p[pos-at : end-at]
		switch n, err := s.readable.ReadAt(piece, pos); {
		case n == len(piece):
		case errors.Is(err, unix.EIO):
			clear(piece)
			s.note(pos/sector, err)
		default:
			return int(pos-at) + n, err
		}
		pos = end
	}
	if whole < int64(len(p)) {
		return int(whole), io.EOF
	}
	return int(whole), nil
}

func (s *source) note(n int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost, s.first = map[int64]bool{}, fmt.Errorf("near byte %d: %w", n*sector, err)
	}
	s.lost[n] = true
}

// Unread tells how many bytes a salvaging Reader could not read so far, and why; nil
// if there were none.
func (r *Reader) Unread() (bytes int64, err error) {
	s := r.u.file
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.lost)) * sector, s.first
}
