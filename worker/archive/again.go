package archive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
)

// secondRead is a file to be read again after the walk.
type secondRead struct {
	n     *node
	first *set.File // the record of the first reading; nil if nothing was stored
}

// keep copies a node without its open directories.
func keep(n *node) *node {
	return &node{path: n.path, root: n.root, rel: n.rel, base: n.base, st: n.st, replaces: n.replaces}
}

// readAgain reads the files that were disturbed, once, each found anew by its path.
func (a *adder) readAgain(ctx context.Context) error {
	a.last = true
	ways := map[string]*beneath{}
	defer func() {
		for _, b := range ways {
			b.close()
		}
	}()
	for i := 0; i < len(a.again); i++ { // orphans are added on the way
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		s := a.again[i]
		a.again[i] = secondRead{}
		if err := a.once(ctx, s, ways); err != nil {
			return err
		}
	}
	if n := len(a.again); n > 0 {
		a.said.notes = append(a.said.notes, &said{what: fmt.Sprintf("%d files changed while they were read and were read again", n)})
	}
	return nil
}

func (a *adder) once(ctx context.Context, s secondRead, ways map[string]*beneath) error {
	n := s.n
	if a.prior = s.first; a.renewed[n.path] {
		a.prior, n.replaces = nil, true // what was read first does not count any more
	}
	at, err := findAgain(n, ways)
	if err == nil {
		n.at = newDirHandle(at) // belongs to ways, so it is never released
		n.st, err = statAt(int(at.Fd()), n.base)
	}
	if l := a.firsts[n.path]; l != nil && (gone(err) || err == nil && inodeOf(&n.st) != inodeOf(&l.st)) {
		a.orphans(l)
	}
	if gone(err) {
		return a.gone(n)
	}
	if err != nil {
		return a.notOpened(n, err)
	}
	switch n.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return a.regular(ctx, n, nil)
	case unix.S_IFLNK:
		return a.symlink(ctx, n)
	case unix.S_IFDIR:
		n.err = errOtherKind
		return a.notSeen(ctx, n)
	}
	if err := a.special(n); err != nil {
		return err
	}
	return a.gone(n)
}

// findAgain opens the directory that the node lies in, and sets its name there.
func findAgain(n *node, ways map[string]*beneath) (*os.File, error) {
	if n.rel == "" { // the place is a file
		b, err := openWay(filepath.Dir(n.root), ways)
		if err != nil {
			return nil, err
		}
		return b.root, nil
	}
	b, err := openWay(n.root, ways)
	if err != nil {
		return nil, err
	}
	dir, _ := splitPath(n.rel)
	return b.dir(dir)
}

// openWay opens a place, or the directory that it lies in, over no symbolic link.
func openWay(root string, ways map[string]*beneath) (*beneath, error) {
	if b := ways[root]; b != nil {
		return b, nil
	}
	at, base, err := upTo(root, nil)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	f, err := openDirAt(int(at.Fd()), base)
	if err != nil {
		return nil, err
	}
	b := &beneath{root: f}
	ways[root] = b
	return b, nil
}

// readlinkAt reads a symbolic link's target.
func readlinkAt(at int, name string) (string, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(at, name, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// sameFile tells whether st is the archive being written.
func (w *Writer) sameFile(st *unix.Stat_t) (bool, error) {
	var own unix.Stat_t
	if err := unix.Stat(w.path, &own); err != nil {
		return false, writeFault("look at", w.path, err)
	}
	return inodeOf(&own) == inodeOf(st), nil
}
