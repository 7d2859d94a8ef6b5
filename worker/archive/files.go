package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// Kinds of set.File.
const (
	kindFile     = "file"
	kindDir      = "dir"
	kindSymlink  = "symlink"
	kindHardLink = "hardlink"
)

// AddFiles stores the configured files, each as set.FilesPrefix and its absolute
// path, in byte order of the paths within a directory, and records each. A file that was
// disturbed while it was read is read once more after the walk and then stored as a
// second entry of the same name (in a tar the last one counts) and recorded once, as
// it was stored last.
func AddFiles(ctx context.Context, w *Writer, o FilesOptions, p stage.Progress, record func(set.File) error) (stage.Findings, error) {
	f, err := plant(o)
	if err != nil {
		return stage.Findings{}, err
	}
	a := newAdder(w, p)
	a.allowUnreadable = o.AllowUnreadable
	if record != nil {
		a.record = record
	}
	a.entry = func(n *node) string { return entryName(set.FilesPrefix, n.path) }
	readers := o.Readers
	if readers <= 0 {
		readers = 8
	}
	var rootNotes []string
	err = readAhead(ctx, readers, func(ctx context.Context, emit func(*node) error) error {
		return f.each(ctx, emit, func(s string) { rootNotes = append(rootNotes, s) })
	}, func(it *item) error { return a.add(ctx, &it.node, it.small) })
	if err == nil {
		err = a.readAgain(ctx)
	}
	if err != nil {
		return stage.Findings{}, err
	}
	found := a.said.findings()
	found.Notes = append(rootNotes, found.Notes...)
	return found, nil
}

// linked is a file with several names that was stored under the first.
type linked struct {
	path  string // of the first
	entry string
	st    unix.Stat_t
	more  []*Header // entries of the other names
}

// adder stores nodes. It is used by one goroutine.
type adder struct {
	w               *Writer
	p               stage.Progress
	record          func(set.File) error
	entry           func(*node) string
	class           func(*node) Class
	allowUnreadable bool
	strict          bool      // whatever is not a plain stored file is an error (AddTree)
	last            bool      // the second reading: no third one follows
	prior           *set.File // in the second reading, the record of the first; may be nil
	links           map[inode]*linked
	again           []secondRead
	said            tally
	owners          owners
}

func newAdder(w *Writer, p stage.Progress) *adder {
	if p == nil {
		p = stage.NoProgress{}
	}
	return &adder{w: w, p: p, links: map[inode]*linked{}, owners: owners{map[uint32]string{}, map[uint32]string{}},
		record: func(set.File) error { return nil }, class: func(*node) Class { return Auto }}
}

// add stores what the walk has found.
func (a *adder) add(ctx context.Context, n *node, s *smallFile) error {
	if n.err != nil {
		return a.notSeen(ctx, n)
	}
	switch n.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if n.skipped != "" {
			a.said.note("directories not entered ("+n.skipped+")", n.path)
		}
		return a.dir(ctx, n, "")
	case unix.S_IFLNK:
		return a.symlink(ctx, n)
	case unix.S_IFREG:
		return a.regular(ctx, n, s)
	}
	return a.special(n)
}

// special notes what has no content to store.
func (a *adder) special(n *node) error {
	if a.strict {
		return fmt.Errorf("%s is neither a file nor a directory", show(n.path))
	}
	if n.is(unix.S_IFCHR) || n.is(unix.S_IFBLK) {
		a.said.note("devices left out", n.path)
	} else {
		a.said.note("sockets and pipes left out", n.path)
	}
	return nil
}

// notSeen deals with what could not be looked at, or a directory not be listed.
func (a *adder) notSeen(ctx context.Context, n *node) error {
	switch {
	case a.strict:
		return fmt.Errorf("read %s: %w", show(n.path), n.err)
	case n.err == errMoved:
		a.said.warn("directories moved or removed while they were read, what was left in them is not stored", n.path)
		return nil
	case gone(n.err) && n.st.Mode != 0:
		return a.gone(n)
	case gone(n.err):
		a.said.note("vanished before they could be read", n.path)
		return nil
	}
	if err := a.cannotRead(n, n.err); err != nil {
		return err
	}
	if n.is(unix.S_IFDIR) {
		return a.dir(ctx, n, unreadable)
	}
	return a.notStored(n, unreadable)
}

// cannotRead fails, or warns where that is allowed. What the machine lacks for the
// moment is no fault of the file, and a retry may mend it.
func (a *adder) cannotRead(n *node, err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("files: cannot read %s: %w", show(n.path), err)
	}
	if a.strict || !a.allowUnreadable {
		return stage.Permanentf("files: cannot read %s: %w: give the worker the right to read it, exclude it, or set files.allow_unreadable", show(n.path), err)
	}
	a.said.warn("cannot be read, not or not wholly stored", n.path+" ("+err.Error()+")")
	return nil
}

// gone notes and records a thing that vanished.
func (a *adder) gone(n *node) error {
	a.said.note("vanished while the backup ran", n.path)
	return a.notStored(n, vanished)
}

// notStored records a file of which nothing is stored now: what the first reading
// stored counts, if there was one.
func (a *adder) notStored(n *node, what string) error {
	switch {
	case a.prior != nil:
		a.prior.Changed = what
		return a.record(*a.prior)
	case n.st.Mode == 0 || n.is(unix.S_IFREG):
		return a.record(a.file(n, kindFile, what))
	}
	return nil
}

func (a *adder) header(n *node, k Kind) *Header {
	return &Header{Name: a.entry(n), Kind: k, Mode: int64(n.st.Mode & 07777), UID: int(n.st.Uid), GID: int(n.st.Gid),
		User: a.owners.user(n.st.Uid), Group: a.owners.group(n.st.Gid), ModTime: modTime(&n.st)}
}

func (a *adder) dir(ctx context.Context, n *node, what string) error {
	h := a.header(n, Dir)
	if n.self != nil {
		if err := a.attributes(n, h, procPath(n.self.f), false); err != nil {
			return err
		}
	}
	if err := a.w.Entry(ctx, h, nil, Auto); err != nil {
		return err
	}
	return a.record(a.file(n, kindDir, what))
}

func (a *adder) symlink(ctx context.Context, n *node) error {
	target, err := readlinkAt(n.at.fd(), n.base)
	if err != nil {
		switch {
		case gone(err):
			return a.gone(n)
		case err == unix.EINVAL: // no link any more
			return a.notOpened(n, errReplaced)
		}
		n.err = err
		return a.notSeen(ctx, n)
	}
	h := a.header(n, Symlink)
	h.Link = target
	if err := a.attributes(n, h, fmt.Sprintf("/proc/self/fd/%d/%s", n.at.fd(), n.base), true); err != nil {
		return err
	}
	if err := a.w.Entry(ctx, h, nil, Auto); err != nil {
		return err
	}
	rec := a.file(n, kindSymlink, "")
	rec.Target, rec.TargetBytes = text(target)
	return a.record(rec)
}

func (a *adder) attributes(n *node, h *Header, target string, link bool) error {
	attrs, left, err := readXattrs(target, link)
	if err != nil {
		if !a.strict {
			return a.cannotRead(n, err)
		}
		return err
	}
	h.Xattrs = attrs
	a.tooLarge(n, left)
	return nil
}

func (a *adder) tooLarge(n *node, left int) {
	if left > 0 {
		a.said.warn(fmt.Sprintf("extended attributes beyond %d KiB not stored", maxXattrs>>10), n.path)
	}
}

// regular stores a file, or a link to it if it was stored under another name.
func (a *adder) regular(ctx context.Context, n *node, s *smallFile) error {
	if l := a.links[inodeOf(&n.st)]; n.st.Nlink > 1 && l != nil && l.path != n.path &&
		l.st.Size == n.st.Size && l.st.Mtim == n.st.Mtim {
		return a.hardLink(ctx, n, l)
	}
	if s != nil {
		return a.smallFile(ctx, n, s)
	}
	return a.largeFile(ctx, n)
}

func (a *adder) hardLink(ctx context.Context, n *node, l *linked) error {
	h := a.header(n, HardLink)
	h.Link = l.entry
	if err := a.w.Entry(ctx, h, nil, Auto); err != nil {
		return err
	}
	l.more = append(l.more, h)
	rec := a.file(n, kindHardLink, "")
	rec.Size = 0
	rec.Target, rec.TargetBytes = text(l.path)
	return a.record(rec)
}

// notOpened deals with a file that could not be opened or read at the start.
func (a *adder) notOpened(n *node, err error) error {
	switch {
	case a.strict:
		return fmt.Errorf("read %s: %w", show(n.path), err)
	case err == errReplaced && a.last:
		a.said.warn("replaced by something else in both reads, not stored", n.path)
		return a.notStored(n, changed)
	case err == errReplaced:
		a.again = append(a.again, secondRead{n: keep(n)})
		return nil
	case gone(err):
		return a.gone(n)
	}
	if err := a.cannotRead(n, err); err != nil {
		return err
	}
	return a.notStored(n, unreadable)
}

func (a *adder) smallFile(ctx context.Context, n *node, s *smallFile) error {
	if s.err != nil {
		return a.notOpened(n, s.err)
	}
	n.st = s.st
	h := a.header(n, Regular)
	h.Size, h.Xattrs = int64(len(s.data)), s.xattrs
	a.tooLarge(n, s.left)
	if err := a.w.Entry(ctx, h, bytes.NewReader(s.data), a.class(n)); err != nil {
		return err
	}
	a.p.Add(h.Size)
	rec := a.file(n, kindFile, s.changed)
	rec.Size, rec.SHA256 = h.Size, s.sha256
	return a.stored(ctx, n, h, rec)
}

func (a *adder) largeFile(ctx context.Context, n *node) error {
	f, st, err := openFile(n)
	if err != nil {
		return a.notOpened(n, err)
	}
	defer f.Close()
	n.st = st
	if same, err := a.w.sameFile(&st); err != nil || same {
		if same {
			a.said.note("the archive being written left out", n.path)
		}
		return err
	}
	h := a.header(n, Regular)
	h.Size = st.Size
	if err := a.attributes(n, h, procPath(f), false); err != nil {
		return err
	}
	if mayHaveHoles(&st) {
		if h.Sparse, err = sparseExtents(f, st.Size); err != nil {
			return a.notOpened(n, err)
		}
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	count := a.p.Add
	if a.last {
		count = func(int64) {} // it was counted when it was read first
	}
	c := newContent(f, h, a.allowUnreadable, count)
	if c.drop = a.strict; !a.strict { // AddTree keeps no records
		c.sum = newFileHash(h)
	}
	if err := a.w.Entry(ctx, h, c, a.class(n)); err != nil {
		return a.readFault(n, err)
	}
	after, err := fstat(f)
	if err != nil {
		return fmt.Errorf("look at %s after reading: %w", show(n.path), err)
	}
	rec := a.file(n, kindFile, disturbance(&st, &after))
	rec.Size = h.Size
	if c.sum != nil {
		rec.SHA256, rec.SHA256Of = c.sum.hex(), c.sum.of
	}
	if c.fault != nil {
		rec.Changed = unreadable
		if err := a.cannotRead(n, c.fault); err != nil {
			return err
		}
	}
	return a.stored(ctx, n, h, rec)
}

// readFault adds the remedy to an I/O error of a file's own.
func (a *adder) readFault(n *node, err error) error {
	var p *os.PathError
	if errors.As(err, &p) && p.Path == n.path {
		return a.cannotRead(n, err)
	}
	return err
}

// stored records a file that is in the archive, or has it read again.
func (a *adder) stored(ctx context.Context, n *node, h *Header, rec set.File) error {
	if n.st.Nlink > 1 {
		if err := a.remember(ctx, n, h); err != nil {
			return err
		}
	}
	switch rec.Changed {
	case "", unreadable:
	case vanished:
		a.said.note("vanished while the backup ran", n.path)
	default:
		if a.strict {
			return fmt.Errorf("%s was %s while it was read: nothing else may write there", show(n.path), rec.Changed)
		}
		if !a.last {
			a.again = append(a.again, secondRead{n: keep(n), first: &rec})
			return nil
		}
		a.said.warn("changed in both reads, stored as read last", n.path)
	}
	return a.record(rec)
}

// remember makes further names of the file links to this one. After a second
// reading they are written again, since unpacking replaces the file and would leave
// them with the first reading's content.
func (a *adder) remember(ctx context.Context, n *node, h *Header) error {
	id := inodeOf(&n.st)
	l := a.links[id]
	if l == nil || l.path != n.path {
		a.links[id] = &linked{path: n.path, entry: h.Name, st: n.st}
		return nil
	}
	l.st = n.st
	for _, other := range l.more {
		if err := a.w.Entry(ctx, other, nil, Auto); err != nil {
			return err
		}
	}
	return nil
}
