package archive

import (
	"context"
	"errors"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// inode names a file or directory whatever path leads to it.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

// node is one thing that the walk found. Its at handle is valid until the emit
// that got it returns; who needs it longer holds it.
type node struct {
	path string // absolute
	root string // the place that it was found under
	rel  string // below root; empty for root itself
	at   *dirHandle
	base string // name in at
	st   unix.Stat_t
	self *dirHandle // a directory itself, if it could be opened
	// err says why a thing could not be looked at or a directory not be listed. Then
	// st may be empty.
	err error
	// skipped says why a directory was not entered on purpose.
	skipped string
	parent  bool   // a directory that only leads to a place
	link    string // of a link that leads to a place: its target when the run began
	// replaces says that something may be stored of this path, which this takes the place of.
	replaces bool
	late     late // how it was found by the second listing
}

func (n *node) is(format uint32) bool { return n.st.Mode&unix.S_IFMT == format }

// walk goes through the tree at one configured path, in byte order of the names,
// a directory before what is in it.
type walk struct {
	patterns patterns
	never    map[inode]string  // directories never entered, with their names
	neverAt  map[string]bool   // the same by path, for those that do not exist yet
	places   []place           // whose configured names patterns may use
	links    map[string]string // symbolic links that lead to places, with their targets
	done     map[string]bool   // these, the places and the directories above: was it emitted?
	seen     *seen             // nil: what was listed is not remembered
	emit     func(*node) error
}

// frame is one directory on the way down.
type frame struct {
	dir   *dirHandle // nil: closed for now, since too many were open
	id    inode
	path  string
	rel   string
	names []string
	next  int
	spots []spot
	list  *listing   // to be filled; nil: not remembered
	old   *seenNames // in the second listing: what was there in the first; nil: all is new
	top   bool       // one that is listed a second time
	young bool       // … or that was made since the first listing
}

// pseudo file systems hold no files but a view of the kernel: f_type as in statfs(2).
var pseudo = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.DEVPTS_SUPER_MAGIC: "devpts", unix.DEBUGFS_MAGIC: "debugfs",
	unix.TRACEFS_MAGIC: "tracefs", unix.SECURITYFS_MAGIC: "securityfs", unix.BPF_FS_MAGIC: "bpf",
}

// tree walks from n on.
func (w *walk) tree(ctx context.Context, n *node) error {
	if !n.is(unix.S_IFDIR) {
		return w.emit(n)
	}
	f, err := w.enter(n)
	if f == nil {
		return err
	}
	return w.below(ctx, n.root, f)
}

// below walks through a directory that was entered, and gives it back.
func (w *walk) below(ctx context.Context, root string, first *frame) error {
	stack := []*frame{first}
	defer func() {
		for _, f := range stack {
			f.dir.release()
		}
	}()
	push := func(n *node) error {
		f, err := w.enter(n)
		if f != nil {
			stack = append(stack, f)
			if i := len(stack) - 1 - keepOpen; i > 0 { // the first stays open
				stack[i].dir.release()
				stack[i].dir = nil
			}
		}
		return err
	}
	for len(stack) > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		top := stack[len(stack)-1]
		if top.next == len(top.names) {
			stack = stack[:len(stack)-1]
			w.seen.keep(top.list)
			err := reopen(stack, top)
			top.dir.release()
			if err != nil {
				// Moved away in mid-walk: what is left in it is reported, not passed over.
				up := stack[len(stack)-1]
				up.next = len(up.names)
				if err := w.emit(&node{path: up.path, root: root, rel: up.rel, err: err}); err != nil {
					return err
				}
			}
			continue
		}
		name := top.names[top.next]
		top.names[top.next] = ""
		top.next++
		if err := w.child(root, top, name, push); err != nil {
			return err
		}
	}
	return nil
}

// reopen opens the directory above child again if it was closed for now: through
// ".." where that still leads there, else from the root down.
func reopen(stack []*frame, child *frame) error {
	if len(stack) == 0 || stack[len(stack)-1].dir != nil {
		return nil
	}
	up := stack[len(stack)-1]
	var f *os.File
	err := error(unix.ENOENT)
	if child.dir != nil {
		f, err = openIf(child.dir.fd(), "..", up.id)
	}
	if err != nil {
		way := &beneath{root: stack[0].dir.f}
		defer way.cut(0)
		dir, base := splitPath(strings.TrimPrefix(strings.TrimPrefix(up.rel, stack[0].rel), "/"))
		var at *os.File
		if at, err = way.dir(dir); err == nil {
			f, err = openIf(int(at.Fd()), base, up.id)
		}
	}
	if err != nil {
		return err
	}
	up.dir = newDirHandle(f)
	return nil
}

// openIf opens a directory if it still is the one with the given inode.
func openIf(at int, name string, id inode) (*os.File, error) {
	f, err := openDirAt(at, name)
	if err != nil {
		return nil, err
	}
	if st, err := fstat(f); err != nil || inodeOf(&st) != id {
		f.Close()
		return nil, errMoved
	}
	return f, nil
}

var errMoved = errors.New("the directory was moved while it was read")

// child looks at one name in a directory.
func (w *walk) child(root string, top *frame, name string, push func(*node) error) error {
	n := &node{path: top.path + "/" + name, root: root, rel: name, at: top.dir, base: name}
	if top.path == "/" {
		n.path = "/" + name
	}
	if top.rel != "" {
		n.rel = top.rel + "/" + name
	}
	n.st, n.err = statAt(top.dir.fd(), name)
	isDir := n.err == nil && n.is(unix.S_IFDIR)
	if len(w.patterns) > 0 && w.patterns.excludes(within(top.spots, name), isDir) {
		return nil
	}
	format, thing := typeOf(&n.st), uint64(0)
	if n.err == nil && top.list != nil {
		thing = w.seen.thing(n) // before it is opened: what is there later is another one then
	}
	if w.known(top, n, isDir) {
		return nil
	}
	if n.err == errOtherKind {
		return w.emit(n)
	}
	if stored, awaited := w.done[n.path]; awaited && !n.replaces {
		if stored {
			return nil // under its own name already
		}
		w.done[n.path] = true
	}
	if n.is(unix.S_IFLNK) {
		n.link = w.links[n.path]
	} else if n.err == nil && w.links[n.path] != "" {
		if err := w.emit(&node{path: n.path, root: root, err: errLinkGone}); err != nil {
			return err
		}
	}
	if !isDir {
		if n.err == nil {
			top.list.add(name, format, thing)
		}
		return w.emit(n)
	}
	err := push(n)
	if !gone(n.err) { // else what is there by the second listing is new
		top.list.add(name, format, thing)
	}
	return err
}

// enter opens and lists a directory and emits it. It returns no frame where there
// is nothing to go down into.
func (w *walk) enter(n *node) (*frame, error) {
	if why := w.barred(n); why != "" {
		n.skipped = why
		return nil, w.emit(n)
	}
	f, err := openDirAt(n.at.fd(), n.base)
	if err != nil {
		n.err = err
		return nil, w.emit(n)
	}
	d := newDirHandle(f)
	st, err := fstat(f)
	if err != nil {
		n.err = err
		d.release()
		return nil, w.emit(n)
	}
	if inodeOf(&st) != inodeOf(&n.st) {
		n.st = st // replaced by another directory: look again at what it is
		if why := w.barred(n); why != "" {
			n.skipped = why
			d.release()
			return nil, w.emit(n)
		}
	}
	n.st, n.self = st, d
	var fs unix.Statfs_t
	if unix.Fstatfs(d.fd(), &fs) == nil && pseudo[int64(fs.Type)] != "" {
		n.skipped = "a " + pseudo[int64(fs.Type)] + " file system"
		err := w.emit(n)
		d.release()
		return nil, err
	}
	top := &frame{dir: d, id: inodeOf(&st), path: n.path, rel: n.rel, list: w.seen.open(n.path, n.root, &st)}
	top.names, n.err = readNames(f) // of a directory that breaks off, what came before that
	if len(w.patterns) > 0 {
		top.spots = w.spots(n.path, n.root)
	}
	if n.late.second {
		top.old, top.young = w.seen.at(n.path).index(), n.late.young
		n.late.more = top.old.more(top.names)
	}
	if err := w.emit(n); err != nil {
		d.release()
		return nil, err
	}
	return top, nil
}

func readNames(f *os.File) ([]string, error) {
	names, err := f.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}

// barred says whether a directory is one of those never entered.
func (w *walk) barred(n *node) string {
	if name, ok := w.never[inodeOf(&n.st)]; ok {
		return "it is " + name + ", a directory of the backup itself"
	}
	if w.neverAt[n.path] {
		return "it is a directory of the backup itself"
	}
	return ""
}

// gone tells whether err means that a thing vanished or was replaced between two looks.
// A stale handle (ESTALE) and a bad disk (EIO) say nothing of the kind.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
