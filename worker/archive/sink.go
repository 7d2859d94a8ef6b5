package archive

import (
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

const (
	sinkBuffer = 1 << 20
	// writeBack is after how many bytes the kernel is told to start writing them to the
	// disk. It keeps the disk busy while we compress; without it the final fsync waits
	// for all of it (measured: facts/archive.md, the biggest lever of all).
	writeBack = 32 << 20
)

// sink is the end of the pipe: it writes the archive's bytes to the file and
// hands the same buffers to the SHA-256 in a goroutine of its own.
//
// It never fails a Write: after the first error it drops what it gets and keeps
// the error in fault. So the gzip goroutines before it need no way out.
type sink struct {
	file    *os.File
	path    string
	buf     []byte
	free    chan []byte
	toHash  chan []byte
	hashed  chan struct{}
	sum     hash.Hash
	size    atomic.Int64 // bytes in the file
	started int64        // bytes whose write-back was started
	fault   atomic.Pointer[error]
}

// newSink takes over file, which holds size bytes whose digest is sum.
func newSink(file *os.File, path string, size int64, sum hash.Hash) *sink {
	const buffers = 3
	s := &sink{file: file, path: path, sum: sum, started: size,
		free: make(chan []byte, buffers), toHash: make(chan []byte, buffers), hashed: make(chan struct{})}
	s.size.Store(size)
	for range buffers - 1 {
		s.free <- make([]byte, 0, sinkBuffer)
	}
	s.buf = make([]byte, 0, sinkBuffer)
	go func() {
		defer close(s.hashed)
		for b := range s.toHash {
			s.sum.Write(b)
			s.free <- b[:0]
		}
	}()
	return s
}

// Write buffers p. One goroutine at a time may call it.
func (s *sink) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := copy(s.buf[len(s.buf):cap(s.buf)], p)
		s.buf = s.buf[:len(s.buf)+k]
		p = p[k:]
		if len(s.buf) == cap(s.buf) {
			s.flush()
		}
	}
	return n, nil
}

func (s *sink) flush() {
	if len(s.buf) == 0 {
		return
	}
	if s.fault.Load() != nil {
		s.buf = s.buf[:0]
		return
	}
	if _, err := s.file.Write(s.buf); err != nil {
		s.fail("write", err)
		s.buf = s.buf[:0]
		return
	}
	size := s.size.Add(int64(len(s.buf)))
	if size-s.started >= writeBack {
		// Only a hint: some file systems do not have it, and the final fsync does not rely on it.
		_ = unix.SyncFileRange(int(s.file.Fd()), s.started, size-s.started, unix.SYNC_FILE_RANGE_WRITE)
		s.started = size
	}
	s.toHash <- s.buf
	s.buf = <-s.free
}

// close ends the hash, and makes the file durable if sync is set. The sink is of
// no use afterwards.
func (s *sink) close(sync bool) error {
	s.flush()
	close(s.toHash)
	<-s.hashed
	if sync && s.fault.Load() == nil {
		if err := s.file.Sync(); err != nil {
			s.fail("sync", err)
		}
	}
	if err := s.file.Close(); err != nil && s.fault.Load() == nil {
		s.fail("close", err) // network file systems tell here that they are full
	}
	if f := s.fault.Load(); f != nil {
		return *f
	}
	if sync {
		return set.SyncDir(filepath.Dir(s.path))
	}
	return nil
}

func (s *sink) fail(op string, err error) {
	e := writeFault(op, s.path, err)
	s.fault.CompareAndSwap(nil, &e)
}

// state is the marshalled digest, with which newSink can go on.
func (s *sink) state() ([]byte, error) {
	m, ok := s.sum.(encoding.BinaryMarshaler)
	if !ok {
		return nil, fmt.Errorf("archive %s: this SHA-256 cannot be handed on", s.path)
	}
	return m.MarshalBinary()
}

func hashFromState(state []byte) (hash.Hash, error) {
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		return nil, fmt.Errorf("take on the SHA-256: %w", err)
	}
	return h, nil
}

// writeFault turns a failed write into one line with the remedy. What no retry
// mends is marked permanent.
func writeFault(op, path string, err error) error {
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return stage.Permanentf("%s archive %s: the file system is full: free space in %s or move alation.backup.data_dump_dir: %w", op, path, dir, err)
	case errors.Is(err, unix.EDQUOT):
		return stage.Permanentf("%s archive %s: the disk quota is used up: raise it or free space in %s: %w", op, path, dir, err)
	case errors.Is(err, unix.EFBIG):
		return stage.Permanentf("%s archive %s: the file is larger than the file system or the limit (ulimit -f) allows: use another file system for %s: %w", op, path, dir, err)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return stage.Permanentf("%s archive %s: not allowed: make %s writable for the worker: %w", op, path, dir, err)
	}
	return fmt.Errorf("%s archive %s: %w", op, path, err)
}
