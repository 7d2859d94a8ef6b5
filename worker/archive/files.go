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

// AddFiles stores the configured files, each as set.FilesPrefix and its real absolute
// path, in byte order of the paths within a directory, and records each. After the walk
// two kinds come a second time: directories that changed since they were listed are
// listed once more, and what is new in them is stored; files that were disturbed while
// they were read are read once more. What was stored before becomes a second entry of
// the same name (in a tar the last one counts) and is recorded as it was stored last.
func AddFiles(ctx context.Context, w *Writer, o FilesOptions, p stage.Progress, record func(set.File) error) (stage.Findings, error) {
	f, err := plant(o)
	if err != nil {
		return stage.Findings{}, err
	}
	defer f.close()
	f.walk.seen = newSeen(o.Now)
	a := newAdder(w, p)
	a.allowUnreadable = o.AllowUnreadable
	if record != nil {
		a.first = record
	}
	if a.anew = o.Replace; a.anew == nil {
		a.anew = a.first
	}
	a.entry = func(n *node) string { return entryName(set.FilesPrefix, n.path) }
	readers := o.Readers
	if readers <= 0 {
		readers = 8
	}
	use := func(it *item) error { return a.add(ctx, &it.node, it.small) }
	if err = readAhead(ctx, readers, f.each, use); err == nil {
		err = readAhead(ctx, readers, f.again, use)
	}
	if err == nil {
		err = a.readAgain(ctx)
	}
	if err != nil {
		return stage.Findings{}, err
	}
	if n := f.walk.seen.over; n > 0 {
		a.said.warnings = append(a.said.warnings, &said{what: fmt.Sprintf("%d directories were not looked at a second time, since there are more than %d names: what was moved into them while the backup ran is not stored", n, f.walk.seen.most)})
	}
	return a.said.findings(), nil
}

// adder stores nodes. It is used by one goroutine.
type adder struct {
	w               *Writer
	p               stage.Progress
	first           func(set.File) error // takes the record of what was not recorded before
	anew            func(set.File) error // takes one that may have been
	entry           func(*node) string
	class           func(*node) Class
	allowUnreadable bool
	strict          bool      // whatever is not a plain stored file is an error (AddTree)
	last            bool      // the second reading: no third one follows
	prior           *set.File // in the second reading, the record of the first; may be nil
	links           map[inode]*linked
	firsts          map[string]*linked // the same by path
	renewed         map[string]bool    // paths recorded after the first walk
	again           []secondRead
	said            tally
	owners          owners
}

func newAdder(w *Writer, p stage.Progress) *adder {
	if p == nil {
		p = stage.NoProgress{}
	}
	return &adder{w: w, p: p, links: map[inode]*linked{}, firsts: map[string]*linked{}, renewed: map[string]bool{}, owners: owners{map[uint32]string{}, map[uint32]string{}},
		first: func(set.File) error { return nil }, anew: func(set.File) error { return nil }, class: func(*node) Class { return Auto }}
}

// record hands on what was stored of a node.
func (a *adder) record(n *node, rec set.File) error {
	if n.replaces || a.last {
		a.renewed[n.path] = true
	}
	if n.replaces {
		return a.anew(rec)
	}
	return a.first(rec)
}

// add stores what the walk has found.
func (a *adder) add(ctx context.Context, n *node, s *smallFile) error {
	if n.err != nil {
		return a.notSeen(ctx, n)
	}
	a.late(n)
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

// late says what the second listing found.
func (a *adder) late(n *node) {
	if n.late.more {
		say := a.said.warn
		if n.late.young {
			say = a.said.note
		}
		say("directories that took the place of others while the backup ran: what only the former ones held is in the set too, and comes back among what is there now", n.path)
	}
	switch {
	case n.late.old:
		a.said.warn("moved while the backup ran into directories that had been listed, found when those were listed once more (what was moved again after that may be missing)", n.path)
	case n.late.second && n.replaces:
		a.said.note("replaced while the backup ran, stored as they were last", n.path)
	case n.late.first:
		a.said.note("made or renamed in their directory while the backup ran, stored too", n.path)
	}
}

func (a *adder) header(n *node, k Kind) *Header {
	return &Header{Name: a.entry(n), Kind: k, Mode: int64(n.st.Mode & 07777), UID: int(n.st.Uid), GID: int(n.st.Gid),
		User: a.owners.user(n.st.Uid), Group: a.owners.group(n.st.Gid), ModTime: modTime(&n.st)}
}

func (a *adder) dir(ctx context.Context, n *node, what string) error {
	h := a.header(n, Dir)
	switch {
	case n.self != nil:
		a.attributes(n, h, ofFile(n.self.f).read())
	case n.parent:
		a.attributes(n, h, ofPath(n.path).read())
	}
	if err := a.w.Entry(ctx, h, nil, Auto); err != nil {
		return err
	}
	rec := a.file(n, kindDir, what)
	rec.Parent = n.parent
	return a.record(n, rec)
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
	if n.link != "" && n.link != target {
		a.said.warn("symbolic links on the way to configured paths lead elsewhere by now, stored as they were when the run began", n.path)
		target = n.link
	}
	h := a.header(n, Symlink)
	h.Link = target
	a.attributes(n, h, ofLink(n.at.fd(), n.base, n.path).read())
	a.supersede(n.path, nil)
	if err := a.w.Entry(ctx, h, nil, Auto); err != nil {
		return err
	}
	rec := a.file(n, kindSymlink, "")
	rec.Target, rec.TargetBytes = text(target)
	return a.record(n, rec)
}

// attributes puts into the header what could be read. The backup's own staging
// (strict) has none that mean anything.
func (a *adder) attributes(n *node, h *Header, x attributes) {
	h.Xattrs = x.values
	if x.tooLarge > 0 {
		a.said.warn(fmt.Sprintf("extended attributes beyond %d KiB not stored", maxXattrs>>10), n.path)
	}
	if x.fault != nil && !a.strict {
		a.said.warn("extended attributes that could not be read, not stored", n.path+" ("+x.fault.Error()+")")
	}
}

// regular stores a file, or a link to it if it was stored under another name.
func (a *adder) regular(ctx context.Context, n *node, s *smallFile) error {
	if n.st.Nlink > 1 {
		if l := a.links[inodeOf(&n.st)]; l != nil && l.path != n.path && a.sameFile(l, n) {
			return a.hardLink(ctx, n, l)
		}
	}
	if s != nil {
		return a.smallFile(ctx, n, s)
	}
	return a.largeFile(ctx, n)
}

func (a *adder) smallFile(ctx context.Context, n *node, s *smallFile) error {
	if s.err != nil {
		return a.notOpened(n, s.err)
	}
	n.st = s.st
	h := a.header(n, Regular)
	h.Size = int64(len(s.data))
	a.attributes(n, h, s.attrs)
	a.supersede(n.path, a.links[inodeOf(&n.st)])
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
	a.attributes(n, h, ofFile(f).read())
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
	c.stale = !a.last && !a.strict
	if c.drop = a.strict; !a.strict { // AddTree keeps no records
		c.sum = newFileHash(h)
	}
	a.supersede(n.path, a.links[inodeOf(&n.st)])
	if err := a.w.Entry(ctx, h, c, a.class(n)); err != nil {
		return a.readFault(n, err)
	}
	after, err := fstat(f)
	if err != nil {
		return fmt.Errorf("look at %s after reading: %w", show(n.path), err)
	}
	rec := a.file(n, kindFile, disturbance(&st, &after))
	rec.Size, rec.Holes = h.Size, h.Size-h.Stored()
	if c.sum != nil {
		rec.SHA256, rec.SHA256Of = c.sum.hex(), c.sum.of
	}
	switch {
	case c.fault != nil && c.stale && errors.Is(c.fault, unix.ESTALE):
		rec.Changed = changed // read again
	case c.fault != nil:
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
	if n.st.Nlink > 1 || a.firsts[n.path] != nil {
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
			if l := a.firsts[n.path]; l != nil {
				l.renewed = true
			}
			return nil
		}
		a.said.warn("changed in both reads, stored as read last", n.path)
	}
	return a.record(n, rec)
}
