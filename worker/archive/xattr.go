package archive

import (
	"fmt"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// maxXattrs bounds the attributes of one file, in bytes, so that the extended
// header stays one that every reader takes (1 MiB).
const maxXattrs = 900 << 10

// attrSource is where the attributes of one thing are read from.
type attrSource struct {
	list func(buf []byte) (int, error)
	get  func(name string, buf []byte) (int, error)
}

// ofFile reads those of an open file or directory.
func ofFile(f *os.File) attrSource {
	fd := int(f.Fd())
	return attrSource{func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) }}
}

// ofPath reads those of what lies at path, of a symbolic link its own.
func ofPath(path string) attrSource {
	return attrSource{func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(path, name, b) }}
}

// ofLink reads those of a symbolic link, which cannot be opened. Through /proc no path
// is walked a second time and none is too long; where /proc is missing its path serves.
func ofLink(at int, base, path string) attrSource {
	short := fmt.Sprintf("/proc/self/fd/%d/%s", at, base)
	var st unix.Stat_t
	if unix.Lstat(short, &st) == nil {
		path = short
	}
	return ofPath(path)
}

// attributes are the extended attributes of one thing.
type attributes struct {
	values   map[string]string
	tooLarge int   // how many were left out, since they are
	fault    error // why others could not be read; nil: none
}

// read reads all attributes that can be read. That a file system has none is no fault.
func (src attrSource) read() (a attributes) {
	var small [1024]byte
	names, err := growing(small[:], src.list)
	if err == unix.ENOTSUP {
		return a
	}
	if err != nil {
		a.fault = fmt.Errorf("list: %w", err)
		return a
	}
	if len(names) == 0 {
		return a
	}
	total := 0
	for _, name := range strings.Split(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		var small [256]byte
		v, err := growing(small[:], func(b []byte) (int, error) { return src.get(name, b) })
		if err == unix.ENODATA {
			continue // removed meanwhile
		}
		if err != nil {
			a.fault = fmt.Errorf("%s: %w", name, err)
			continue
		}
		if total += len(name) + len(v) + 64; total > maxXattrs {
			a.tooLarge++
			continue
		}
		if a.values == nil {
			a.values = map[string]string{}
		}
		a.values[name] = string(v)
	}
	return a
}

// growing calls get with larger and larger buffers until the value fits.
func growing(b []byte, get func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(b)
		if err == unix.EINTR {
			continue
		}
		if err != unix.ERANGE {
			return b[:max(n, 0)], err
		}
		b = make([]byte, 4*len(b))
	}
}

// sortedXattrs gives the names in the order to set them, those that chmod would
// change or that need the final mode last.
func sortedXattrs(attrs map[string]string) (before, after []string) {
	for name := range attrs {
		if strings.HasPrefix(name, "system.posix_acl_") {
			after = append(after, name)
		} else {
			before = append(before, name)
		}
	}
	sort.Strings(before)
	sort.Strings(after)
	return before, after
}
