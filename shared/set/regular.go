package set

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Bounds of what is read into memory at once, in bytes.
const (
	// MaxNote bounds an intent, an owner marker, the note of an attempt's end.
	MaxNote = 1 << 20
	// MaxHead bounds a manifest without its list of files, and a stage's result, which
	// becomes a part of it.
	MaxHead = 256 << 20
)

// errOdd is wrapped where something has the name of a file of ours and cannot be one.
var errOdd = errors.New("it is no file of ours")

// OpenRegular opens the regular file at path for reading and never blocks on what else
// bears its name: a FIFO, a device. A symbolic link is followed: a person may have put a
// set on another disk. fs.ErrNotExist says that nothing has that name: not even a link
// that leads nowhere, whose disk may be away.
func OpenRegular(path string) (*os.File, error) {
	f, err := openRegular(path, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	switch _, lerr := os.Lstat(path); {
	case lerr == nil:
		return nil, odd(path, errors.New("it is a symbolic link that leads nowhere now"))
	case !errors.Is(lerr, fs.ErrNotExist):
		return nil, lerr
	}
	return nil, err
}

// ReadNote reads a small file that only this program makes, at most bytes long. It
// follows no link and never blocks on what else bears the name. fs.ErrNotExist says
// that nothing has that name.
func ReadNote(path string, most int64) ([]byte, error) {
	f, err := openRegular(path, syscall.O_NOFOLLOW)
	if errors.Is(err, syscall.ELOOP) {
		return nil, odd(path, errors.New("it is a symbolic link"))
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() > most {
		return nil, tooLong(path, most)
	}
	return io.ReadAll(atMost(f, path, most))
}

func openRegular(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY|flags, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = odd(path, fmt.Errorf("it is %s, no regular file", kind(fi.Mode())))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// kind says in words what is no regular file.
func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "of another type"
}

func odd(path string, why error) error {
	return &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%w: %w; move it away", errOdd, why)}
}

func tooLong(path string, most int64) error {
	return odd(path, fmt.Errorf("it is longer than %d bytes", most))
}

// bounded is a reader that refuses to give more than a file of that name can hold.
type bounded struct {
	r    io.Reader
	path string
	most int64
	left int64
}

func atMost(r io.Reader, path string, most int64) io.Reader { return &bounded{r, path, most, most} }

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, tooLong(b.path, b.most)
	}
	return n, err
}
