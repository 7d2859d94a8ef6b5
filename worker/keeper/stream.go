package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pipeSize is what the kernel is asked to buffer between tool and worker, bytes.
const pipeSize = 1 << 20

// intake copies a tool's output from a pipe into a writer.
type intake struct {
	from *os.File
	to   io.Writer
	done chan struct{} // closed when nothing more comes; err is set then
	err  error         // of the writer, or of reading
}

// newIntake returns the pipe's end for the tool.
func newIntake(to io.Writer) (*intake, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	if raw, err := r.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
	return &intake{from: r, to: to, done: make(chan struct{})}, w, nil
}

// copy runs until the end of the output, a failure, or finish. failed is called
// with a failure.
func (i *intake) copy(failed func(error)) {
	defer close(i.done)
	defer i.from.Close()
	buf := make([]byte, 128<<10)
	for {
		n, err := i.from.Read(buf)
		if n > 0 {
			if _, werr := i.to.Write(buf[:n]); werr != nil {
				i.err, i.to = werr, io.Discard // the tool is ended now; it may do so in order
				failed(werr)
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := i.drain(buf); i.err == nil {
				i.err = err
			}
			return
		case err == io.EOF:
			return
		case err != nil:
			i.err = err
			failed(err)
			return
		}
	}
}

// finish makes copy take what is in the pipe and end. To be called when the tool's
// session is gone: then all its output is in the pipe, and only a daemon that left
// the session can hold the pipe open.
func (i *intake) finish() { _ = i.from.SetReadDeadline(time.Unix(1, 0)) }

func (i *intake) drain(buf []byte) error {
	_ = i.from.SetReadDeadline(time.Time{})
	raw, err := i.from.SyscallConn()
	if err != nil {
		return err
	}
	// A daemon that goes on writing must not keep us: no more than a pipe holds.
	left := pipeSize
	_ = raw.Control(func(fd uintptr) {
		if size, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
			left = size
		}
	})
	for left > 0 {
		var n int
		var rerr error
		if err := raw.Read(func(fd uintptr) bool {
			n, rerr = syscall.Read(int(fd), buf[:min(len(buf), left)])
			return true // never wait
		}); err != nil {
			return err
		}
		if rerr == syscall.EINTR {
			continue
		}
		if n <= 0 {
			return nil // end of file, or nothing there now
		}
		left -= n
		if _, err := i.to.Write(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// feed copies from into the tool's input. A failed read leaves the pipe open: its
// end would look like the input's end.
func feed(from io.Reader, to *os.File, failed func(error)) {
	defer func() {
		if r := recover(); r != nil {
			failed(fmt.Errorf("reading its input: %v", r))
		}
	}()
	buf := make([]byte, 128<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				to.Close() // the tool has read enough, or is gone
				return
			}
		}
		if err == io.EOF {
			to.Close()
			return
		}
		if err != nil {
			failed(fmt.Errorf("reading its input: %w", err))
			return
		}
	}
}
