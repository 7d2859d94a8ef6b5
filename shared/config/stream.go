package config

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readerPatience is how long the first line waits for a reader that does not read.
	readerPatience = time.Second
	// piece is what a pipe that is ready to be written to takes without waiting
	// (PIPE_BUF, pipe(7)).
	piece = 4096
)

// stream writes lines into a file whose reader may hang. A line that it does not take
// is lost, and so are the next ones, until it reads again: a service whose log waits
// would keep its locks for ever, and no signal would end it.
type stream struct {
	file *os.File
	lost int              // lines in a row
	torn bool             // the first of them was begun
	gap  func(int) []byte // the line that says so
}

// Write is called for one line at a time.
func (s *stream) Write(line []byte) (int, error) {
	if s.lost > 0 && s.ready(0) {
		gap := s.gap(s.lost)
		if s.torn {
			gap = append([]byte("\n"), gap...)
		}
		s.lost, s.torn = 0, false
		if _, err := s.file.Write(gap); err != nil {
			return 0, err
		}
	}
	for rest := line; len(rest) > 0; {
		wait := readerPatience
		if s.lost > 0 {
			wait = 0
		}
		if !s.ready(wait) {
			s.lost++
			s.torn = s.torn || len(rest) < len(line)
			return len(line), nil
		}
		n, err := s.file.Write(rest[:min(len(rest), piece)])
		if err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(line), nil
}

// ready tells whether a piece can be written without waiting; also where that is an
// error, which Write tells.
func (s *stream) ready(wait time.Duration) bool {
	c, err := s.file.SyscallConn()
	if err != nil {
		return true
	}
	n := 1
	for deadline := time.Now().Add(wait); ; {
		_ = c.Control(func(fd uintptr) {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(max(0, time.Until(deadline).Milliseconds())))
		})
		if err != unix.EINTR {
			return err != nil || n > 0
		}
	}
}
