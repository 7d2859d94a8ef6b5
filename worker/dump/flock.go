package dump

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// errReplaced means that the file was removed, or made again, between its opening and
// its lock: the lock is on something that nobody else will find.
var errReplaced = errors.New("it was replaced while it was locked")

// takeFlock opens path and takes the flock on it without waiting. Closing gives it
// back. A flock belongs to the open file: unlike F_SETLK's, it does not go when some
// other descriptor of the file is closed in this process.
func takeFlock(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flockAgain(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// flockAgain takes the flock on an open file, or finds that it has it still: ErrHeld if
// another has it, errReplaced if the path names another file by now.
func flockAgain(f *os.File) error {
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	a, err := f.Stat()
	if err != nil {
		return err
	}
	if b, err := os.Lstat(f.Name()); err != nil || !os.SameFile(a, b) {
		return errReplaced
	}
	return nil
}

// flock goes through the file, which is not closed under it.
func flock(f *os.File, how int) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		for failed = unix.EINTR; errors.Is(failed, unix.EINTR); {
			failed = unix.Flock(int(fd), how)
		}
	})
	switch {
	case err != nil:
		return err
	case errors.Is(failed, unix.EWOULDBLOCK):
		return ErrHeld
	case failed != nil:
		return &os.PathError{Op: "flock", Path: f.Name(), Err: failed}
	}
	return nil
}
