package archive

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// dirHandle is an open directory that several holders share: the walk, and the
// files found in it that wait to be opened.
type dirHandle struct {
	f    *os.File
	refs atomic.Int32
}

func newDirHandle(f *os.File) *dirHandle {
	d := &dirHandle{f: f}
	d.refs.Store(1)
	return d
}

func (d *dirHandle) fd() int { return int(d.f.Fd()) }

func (d *dirHandle) hold() *dirHandle {
	d.refs.Add(1)
	return d
}

func (d *dirHandle) release() {
	if d != nil && d.refs.Add(-1) == 0 {
		d.f.Close()
	}
}

// openDirAt opens a directory below an open one and follows no symbolic link.
func openDirAt(at int, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := openAt(at, name, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openAt opens for reading, without touching the access time where that is allowed
// (to the file's owner).
func openAt(at int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags|unix.O_NOATIME, 0)
		if err == unix.EPERM {
			fd, err = unix.Openat(at, name, flags, 0)
		}
		if err == unix.EINTR {
			continue
		}
		return fd, err
	}
}

func statAt(at int, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != unix.EINTR {
			return st, err
		}
	}
}

func fstat(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st, err
}

// beneath opens directories below a root, component by component and never over a
// symbolic link or "..", so that it cannot be led out of the root, and so that paths
// may be longer than PATH_MAX. It keeps the last ones open, since consecutive
// entries mostly lie in one directory.
type beneath struct {
	root  *os.File
	names []string
	open  []*os.File // of names; nil where closed again
	made  func(at int, name string) error
}

// keepOpen is how many directories on the way down stay open.
const keepOpen = 64

// dir gives the open directory at path (relative, components separated by one
// slash; empty for the root). It stays valid until the next call. With made set,
// missing directories are made by it.
func (b *beneath) dir(path string) (*os.File, error) {
	var parts []string
	if path != "" {
		parts = strings.Split(path, "/")
	}
	same := 0
	for same < len(parts) && same < len(b.names) && parts[same] == b.names[same] {
		same++
	}
	b.cut(same)
	if same > 0 && b.open[same-1] == nil { // too far up: from the root again
		b.cut(0)
		same = 0
	}
	at := b.root
	if same > 0 {
		at = b.open[same-1]
	}
	for _, name := range parts[same:] {
		if name == "" || name == "." || name == ".." {
			return nil, fmt.Errorf("component %q", name)
		}
		f, err := openDirAt(int(at.Fd()), name)
		if err == unix.ENOENT && b.made != nil {
			if err = b.made(int(at.Fd()), name); err == nil {
				f, err = openDirAt(int(at.Fd()), name)
			}
		}
		if err != nil {
			return nil, err
		}
		b.names, b.open = append(b.names, name), append(b.open, f)
		if i := len(b.open) - 1 - keepOpen; i >= 0 && b.open[i] != nil {
			b.open[i].Close()
			b.open[i] = nil
		}
		at = f
	}
	return at, nil
}

// cut closes all but the first n directories.
func (b *beneath) cut(n int) {
	for _, f := range b.open[n:] {
		if f != nil {
			f.Close()
		}
	}
	b.names, b.open = b.names[:n], b.open[:n]
}

func (b *beneath) close() {
	b.cut(0)
	b.root.Close()
}

// splitPath gives a relative path's directory ("" for none) and base name.
func splitPath(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}
