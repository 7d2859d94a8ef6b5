package archive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

// Owner is a user and a group by number.
type Owner struct{ UID, GID int }

// ExtractOptions say how entries become files.
type ExtractOptions struct {
	// Strip is taken off the front of every entry's name and of hard links' targets; an
	// entry that lacks it is an error.
	Strip string
	// Owner gives everything to one user. nil: owners as in the archive, by number, which
	// only root can do; else everything belongs to who restores, and a note says so.
	Owner *Owner
	// ThroughLinks puts an entry that lies below a symbolic link of the archive where that
	// link leads, never out of the root; false: it is refused.
	ThroughLinks bool
	// Unnamed describes a directory that the archive has no entry of, by its path below
	// the root ("" for the root), as set on a Header: mode, owner, time (zero: left as it
	// is). nil: such directories are for the owner only.
	Unnamed func(path string) *Header
}

// Extractor makes files of an archive's entries below a root. It never follows a
// symbolic link: every directory on the way is opened by itself from the root down
// (O_NOFOLLOW), and a file is only ever created anew. So neither "..", nor an
// absolute name, nor a link planted by an earlier entry leads outside. A later
// entry of a name takes the earlier one's place.
type Extractor struct {
	o      ExtractOptions
	root   *os.File
	way    *beneath
	target *beneath // to hard links' first names
	isRoot bool
	dirs   []*Header         // their attributes come last
	made   []string          // directories made since an entry lies in them
	thru   map[string]string // symbolic links made, with their targets
	links  []*Header         // hard links whose first name has not come yet
	said   tally
	buf    []byte
}

// NewExtractor extracts below root, an existing directory.
func NewExtractor(root string, o ExtractOptions) (*Extractor, error) {
	x := &Extractor{o: o, isRoot: os.Geteuid() == 0, thru: map[string]string{}, buf: make([]byte, 1<<20)}
	open := func() (*os.File, error) { return os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY, 0) }
	var err error
	if x.root, err = open(); err != nil {
		return nil, fmt.Errorf("restore into %s: %w", root, err)
	}
	link, err := open()
	if err != nil {
		x.root.Close()
		return nil, fmt.Errorf("restore into %s: %w", root, err)
	}
	x.way = &beneath{root: x.root, made: x.mkdir}
	x.target = &beneath{root: link}
	return x, nil
}

// Close gives the open directories back. Finish does it too.
func (x *Extractor) Close() {
	if x.root != nil {
		x.way.close()
		x.target.close()
		x.root = nil
	}
}

// mkdir makes a directory for the owner only; its entry, if one comes, opens it.
func (x *Extractor) mkdir(at int, name string) error {
	if err := unix.Mkdirat(at, name, 0700); err != nil {
		return err
	}
	if err := unix.Fchmodat(at, name, 0700, 0); err != nil { // whatever the umask took away
		return err
	}
	if x.o.Unnamed != nil {
		x.made = append(x.made, strings.Join(append(slices.Clone(x.way.names), name), "/"))
	}
	if x.o.Owner != nil {
		return unix.Fchownat(at, name, x.o.Owner.UID, x.o.Owner.GID, unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// Entry makes the file, directory or link of one entry.
func (x *Extractor) Entry(h *Header, r io.Reader) error {
	if err := checkEntry(h); err != nil {
		return stage.Permanentf("restore: %w: the archive was not made by this program, or was changed: do not use it", err)
	}
	c, err := x.stripped(h)
	if err != nil {
		return stage.Permanentf("restore: %w", err)
	}
	if c.Name == "" { // the stripped directory itself
		if c.Kind == Dir && x.o.Owner == nil {
			x.dirs = append(x.dirs, c)
		}
		return nil
	}
	if x.o.ThroughLinks {
		if c, err = x.behindLinks(c); err != nil {
			return stage.Permanentf("restore: %w", err)
		}
	}
	if err := x.make(c, r); err != nil {
		return fmt.Errorf("restore %s: %w", show(h.Name), explain(err))
	}
	return nil
}

// explain adds the remedy to what commonly goes wrong.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return stage.Permanentf("a symbolic link or a file is in the way of a directory: an archive that needs this could lead out of the target: %w", err)
	case stage.IsFull(err):
		return stage.Permanentf("the target is full: free space there or choose another target: %w", err)
	}
	return err
}

// stripped is a copy of h with the names below the root.
func (x *Extractor) stripped(h *Header) (*Header, error) {
	c := *h
	prefix := strings.TrimSuffix(x.o.Strip, "/")
	if prefix == "" {
		return &c, nil
	}
	cut := func(name string) (string, error) {
		if name == prefix {
			return "", nil
		}
		rest, ok := strings.CutPrefix(name, prefix+"/")
		if !ok {
			return "", fmt.Errorf("entry %s does not lie in %s", show(name), prefix)
		}
		return rest, nil
	}
	var err error
	if c.Name, err = cut(h.Name); err == nil && h.Kind == HardLink {
		c.Link, err = cut(h.Link)
	}
	return &c, err
}

func (x *Extractor) make(h *Header, r io.Reader) error {
	parent, base := splitPath(h.Name)
	dir, err := x.way.dir(parent)
	if err != nil {
		return err
	}
	at := int(dir.Fd())
	switch h.Kind {
	case Dir:
		err := unix.Mkdirat(at, base, 0700)
		if err == unix.EEXIST {
			var st unix.Stat_t
			if st, err = statAt(at, base); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				err = unix.ENOTDIR
			}
		}
		if err == nil {
			x.dirs = append(x.dirs, h)
		}
		return err
	case Symlink:
		err := x.anew(at, base, func() error { return unix.Symlinkat(h.Link, at, base) })
		if err != nil {
			return err
		}
		return x.finishLink(at, base, h)
	case HardLink:
		done, err := x.link(at, base, h)
		if err == nil && !done {
			x.links = append(x.links, h)
		}
		return err
	}
	return x.file(at, base, h, r)
}

// anew creates something where nothing may be: what an earlier entry left goes away.
func (x *Extractor) anew(at int, base string, create func() error) error {
	err := create()
	if err != unix.EEXIST {
		return err
	}
	if err := unix.Unlinkat(at, base, 0); err == unix.EISDIR || err == unix.EPERM {
		return fmt.Errorf("a directory is in the way of a file: %w", unix.EEXIST)
	} else if err != nil {
		return err
	}
	return create()
}

func (x *Extractor) file(at int, base string, h *Header, r io.Reader) error {
	var fd int
	err := x.anew(at, base, func() (err error) {
		fd, err = unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0600)
		return err
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	if err = x.fill(f, h, r); err == nil {
		err = x.finishFile(f, h)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = x.setTime(at, base, h)
	}
	return err
}

// fill writes the content, over the holes of a sparse file.
func (x *Extractor) fill(f *os.File, h *Header, r io.Reader) error {
	data := dataOf(h, r)
	list := h.Sparse
	if list == nil {
		list = []Extent{{0, h.Size}}
	}
	for _, e := range list {
		n, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(f, e.Offset)}, struct{ io.Reader }{io.LimitReader(data, e.Length)}, x.buf)
		if err != nil {
			return err
		}
		if n != e.Length {
			return fmt.Errorf("content ends too early: %w", io.ErrUnexpectedEOF)
		}
	}
	if h.Sparse != nil {
		return f.Truncate(h.Size)
	}
	return nil
}

// finishFile sets what belongs to an open file or directory but the time: the owner
// before the mode, since a change of owner takes setuid away; ACLs after the mode,
// since it would change them.
func (x *Extractor) finishFile(f *os.File, h *Header) error {
	owned, err := x.chown(int(f.Fd()), "", h, unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	before, after := sortedXattrs(h.Xattrs)
	x.setXattrs(h, before, func(name, v string) error { return unix.Fsetxattr(int(f.Fd()), name, []byte(v), 0) })
	mode := uint32(h.Mode)
	if !x.isRoot || !owned {
		if mode&06000 != 0 {
			x.said.note("setuid and setgid taken away, since the owner could not be kept", h.Name)
		}
		mode &^= 06000
	}
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil {
		return err
	}
	x.setXattrs(h, after, func(name, v string) error { return unix.Fsetxattr(int(f.Fd()), name, []byte(v), 0) })
	return nil
}

func (x *Extractor) finishLink(at int, base string, h *Header) error {
	if _, err := x.chown(at, base, h, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	before, after := sortedXattrs(h.Xattrs)
	path := fmt.Sprintf("/proc/self/fd/%d/%s", at, base)
	x.setXattrs(h, append(before, after...), func(name, v string) error { return unix.Lsetxattr(path, name, []byte(v), 0) })
	return x.setTime(at, base, h)
}

// chown tells whether the thing now has the owner that the archive says.
func (x *Extractor) chown(at int, base string, h *Header, flags int) (bool, error) {
	if o := x.o.Owner; o != nil {
		return o.UID == h.UID && o.GID == h.GID, unix.Fchownat(at, base, o.UID, o.GID, flags)
	}
	if !x.isRoot {
		if h.UID != os.Geteuid() || h.GID != os.Getegid() {
			x.said.note("owners not kept, since only root may give files away", h.Name)
			return false, nil
		}
		return true, nil
	}
	if err := unix.Fchownat(at, base, h.UID, h.GID, flags); err != nil {
		x.said.note("owners refused by the system ("+err.Error()+")", h.Name)
		return false, nil
	}
	return true, nil
}

func (x *Extractor) setXattrs(h *Header, names []string, set func(name, value string) error) {
	for _, name := range names {
		if err := set(name, h.Xattrs[name]); err != nil {
			x.said.note("extended attribute "+show(name)+" refused by the system ("+err.Error()+")", h.Name)
		}
	}
}

func (x *Extractor) setTime(at int, base string, h *Header) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}}
	err := unix.UtimesNanoAt(at, base, times, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.EINVAL || err == unix.ERANGE || err == unix.EOPNOTSUPP {
		x.said.note("times refused by the system ("+err.Error()+")", h.Name)
		return nil
	}
	return err
}

// link makes a hard link; false, if its first name is not there yet.
func (x *Extractor) link(at int, base string, h *Header) (bool, error) {
	parent, first := splitPath(h.Link)
	dir, err := x.target.dir(parent)
	var st unix.Stat_t
	if err == nil {
		st, err = statAt(int(dir.Fd()), first)
	}
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("link to %s: %w", show(h.Link), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, stage.Permanentf("link to %s, which is no regular file", show(h.Link))
	}
	err = x.anew(at, base, func() error { return unix.Linkat(int(dir.Fd()), first, at, base, 0) })
	return err == nil, err
}
