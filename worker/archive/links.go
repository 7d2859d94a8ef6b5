package archive

import (
	"context"

	"golang.org/x/sys/unix"
)

// linked is a file with several names that was stored under the first.
type linked struct {
	path, root string // of the first
	entry      string
	st         unix.Stat_t // as it was stored
	more       []moreName
	renewed    bool // it is read once more after the walk
}

// moreName is another name of the file, stored as a link to the first.
type moreName struct {
	h          *Header
	path, root string
}

// byName is a node to be found by its path, of which something is stored.
func byName(root, path string) *node {
	_, base := splitPath(path)
	return &node{path: path, root: root, rel: relTo(root, path), base: base, replaces: true}
}

// sameFile tells whether n is another name of what was stored as l: then it becomes a
// link, whatever was written to the file meanwhile. A file that changed since it was
// stored is read once more after the walk, so that all its names end with what it held
// last. The number alone does not tell: a file that is removed leaves its number to
// the next one.
func (a *adder) sameFile(l *linked, n *node) bool {
	if st, err := statAt(n.at.fd(), n.base); err == nil && inodeOf(&st) == inodeOf(&n.st) {
		n.st = st // the walk looked at it some time ago
	}
	now, err := statAt(unix.AT_FDCWD, l.path)
	if err != nil || inodeOf(&now) != inodeOf(&n.st) {
		// The first name is gone, or too long a path. What looks the same was the same file.
		return l.st.Size == n.st.Size && l.st.Mtim == n.st.Mtim && l.st.Mode == n.st.Mode && l.st.Uid == n.st.Uid && l.st.Gid == n.st.Gid
	}
	// Making and removing names changes the time of the status too, and no content.
	written := now.Size != l.st.Size || now.Mtim != l.st.Mtim || (now.Ctim != l.st.Ctim && now.Nlink == l.st.Nlink)
	if written && !l.renewed && !a.last {
		l.renewed = true
		a.again = append(a.again, secondRead{n: byName(l.root, l.path)})
	}
	return true
}

func (a *adder) hardLink(ctx context.Context, n *node, l *linked) error {
	h := a.header(n, HardLink)
	h.Link = l.entry
	a.supersede(n.path, nil)
	if err := a.w.Entry(ctx, h, nil, Auto); err != nil {
		return err
	}
	l.more = append(l.more, moreName{h, n.path, n.root})
	rec := a.file(n, kindHardLink, "")
	rec.Size = 0
	rec.Target, rec.TargetBytes = text(l.path)
	return a.record(n, rec)
}

// remember makes further names of the file links to this one. After a second
// reading they are written again, since unpacking replaces the file and would leave
// them with the first reading's content. What is another file by now is read on its own.
func (a *adder) remember(ctx context.Context, n *node, h *Header) error {
	id := inodeOf(&n.st)
	l := a.links[id]
	if l == nil || l.path != n.path {
		l = &linked{path: n.path, root: n.root, entry: h.Name, st: n.st}
		a.links[id], a.firsts[n.path] = l, l
		return nil
	}
	l.st = n.st
	names := l.more
	l.more = nil
	for _, other := range names {
		if st, err := statAt(unix.AT_FDCWD, other.path); err != nil || inodeOf(&st) != id {
			a.again = append(a.again, secondRead{n: byName(other.root, other.path)})
			continue
		}
		if err := a.w.Entry(ctx, other.h, nil, Auto); err != nil {
			return err
		}
		l.more = append(l.more, other)
	}
	return nil
}

// supersede is told that an entry of path will take the place of an earlier one; by is the
// file that it holds, if that is stored already. No name may stay a link to an
// entry that does not count any more: nothing in the manifest says what that held.
func (a *adder) supersede(path string, by *linked) {
	if l := a.firsts[path]; l != nil && l != by {
		a.orphans(l)
	}
}

// orphans has the other names of a file read on their own: its first name is gone, or
// is another file by now, and what it held last is found under them.
func (a *adder) orphans(l *linked) {
	for _, other := range l.more {
		a.again = append(a.again, secondRead{n: byName(other.root, other.path)})
	}
	delete(a.firsts, l.path)
	if id := inodeOf(&l.st); a.links[id] == l {
		delete(a.links, id)
	}
}
