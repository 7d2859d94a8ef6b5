package archive

import (
	"context"
	"errors"
	"os"
	"sort"

	"golang.org/x/sys/unix"
)

// inode names a file or directory whatever path leads to it.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

// node is one thing that the walk found. Its at handle is valid until the emit
// that got it returns; who needs it longer holds it.
type node struct {
	path string // absolute
	root string // the configured path that it was found under
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
}

func (n *node) is(format uint32) bool { return n.st.Mode&unix.S_IFMT == format }

// walk goes through the tree at one configured path, in byte order of the names,
// a directory before what is in it.
type walk struct {
	patterns patterns
	never    map[inode]string // directories never entered, with their names
	neverAt  map[string]bool  // the same by path, for those that do not exist yet
	entered  map[inode]bool   // directories of interest (see roots) that the walk has come to
	done     map[string]bool  // configured paths that an outer walk has come to
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
}

// pseudo file systems hold no files but a view of the kernel: f_type as in statfs(2).
var pseudo = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.DEVPTS_SUPER_MAGIC: "devpts", unix.DEBUGFS_MAGIC: "debugfs",
	unix.TRACEFS_MAGIC: "tracefs", unix.SECURITYFS_MAGIC: "securityfs", unix.BPF_FS_MAGIC: "bpf",
}

// tree walks below root. at holds root under the name base; st is root's.
func (w *walk) tree(ctx context.Context, root string, at *dirHandle, base string, st unix.Stat_t) error {
	n := &node{path: root, root: root, at: at, base: base, st: st}
	w.done[root] = true
	if !n.is(unix.S_IFDIR) {
		return w.emit(n)
	}
	var stack []*frame
	defer func() {
		for _, f := range stack {
			f.dir.release()
		}
	}()
	push := func(n *node) error {
		f, err := w.enter(n)
		if f != nil {
			stack = append(stack, f)
			if i := len(stack) - 1 - keepOpen; i > 0 { // the root stays open
				stack[i].dir.release()
				stack[i].dir = nil
			}
		}
		return err
	}
	if err := push(n); err != nil {
		return err
	}
	for len(stack) > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		top := stack[len(stack)-1]
		if top.next == len(top.names) {
			stack = stack[:len(stack)-1]
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
		dir, base := splitPath(up.rel)
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
	if w.patterns.excludes(n.path, n.rel, isDir) {
		return nil
	}
	if w.done[n.path] {
		return nil // stored under its own name already
	}
	if _, configured := w.done[n.path]; configured {
		if n.err == nil && n.is(unix.S_IFLNK) {
			return nil // its own turn comes, and it is followed then
		}
		w.done[n.path] = true
	}
	if !isDir {
		return w.emit(n)
	}
	return push(n)
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
	if _, ok := w.entered[inodeOf(&st)]; ok {
		w.entered[inodeOf(&st)] = true
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(d.fd(), &fs) == nil && pseudo[int64(fs.Type)] != "" {
		n.skipped = "a " + pseudo[int64(fs.Type)] + " file system"
		err := w.emit(n)
		d.release()
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		n.err = err
	}
	sort.Strings(names)
	if err := w.emit(n); err != nil || n.err != nil {
		d.release()
		return nil, err
	}
	return &frame{dir: d, id: inodeOf(&st), path: n.path, rel: n.rel, names: names}, nil
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
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE)
}
