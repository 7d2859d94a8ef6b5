package archive

import (
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// maxXattrs bounds the attributes of one file, in bytes, so that the extended
// header stays one that every reader takes (1 MiB).
const maxXattrs = 900 << 10

// readXattrs reads all extended attributes. target is "/proc/self/fd/N" for an
// open file or directory, or "/proc/self/fd/DIR/NAME" for a symbolic link itself: so
// no path is ever walked twice. left counts attributes that were too large.
func readXattrs(target string, link bool) (attrs map[string]string, left int, err error) {
	list, get := unix.Listxattr, unix.Getxattr
	if link {
		list, get = unix.Llistxattr, unix.Lgetxattr
	}
	var small [1024]byte
	names, err := growing(small[:], func(b []byte) (int, error) { return list(target, b) })
	if err == unix.ENOTSUP || err == unix.ENOENT || err == unix.ENOSYS {
		return nil, 0, nil // a file system without any, or /proc is not there
	}
	if err != nil || len(names) == 0 {
		return nil, 0, err
	}
	total := 0
	for _, name := range strings.Split(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		var small [256]byte
		v, err := growing(small[:], func(b []byte) (int, error) { return get(target, name, b) })
		switch {
		case err == unix.ENODATA || err == unix.ENOTSUP || err == unix.EPERM || err == unix.EACCES:
			continue // gone meanwhile, or listed to those who may not read it
		case err != nil:
			return nil, left, fmt.Errorf("extended attribute %s: %w", name, err)
		}
		if total += len(name) + len(v) + 64; total > maxXattrs {
			left++
			continue
		}
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs[name] = string(v)
	}
	return attrs, left, nil
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
