package archive

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// FilesOptions say which files are stored.
type FilesOptions struct {
	Paths []string // absolute; directories or files
	// Places is where Paths led when the run began (ResolvePlaces); nil: where they lead now.
	Places  []set.Place
	Exclude []string // patterns, see CheckPatterns
	// Never are the backup's own directories (dump, temp, state). They are stored as
	// empty directories at most and never entered, whatever path, symbolic link or bind
	// mount leads to them.
	Never []string
	// AllowUnreadable makes a file that can't be read a warning instead of a failure.
	AllowUnreadable bool
	// Replace is given the record of what was stored anew after all others were: it takes
	// the place of an earlier record of the same path, if there is one. nil: record gets it.
	Replace func(set.File) error
	// Now is the clock that directories' times are held against; nil: time.Now.
	Now func() time.Time
	// Readers is how many goroutines read small files ahead; default 8.
	Readers int
}

// forest is the configured paths, checked, and a walk over them.
type forest struct {
	places []place
	roots  map[string]bool     // where the places are: true; steps on the way to them: false
	held   map[string]*os.File // the places that were walked by themselves, open so that no other thing gets their numbers
	walk   walk
}

func (f *forest) close() {
	for _, h := range f.held {
		h.Close()
	}
}

// plant checks the options. Its errors are permanent: they need another configuration.
func plant(o FilesOptions) (*forest, error) {
	ps, err := compilePatterns(o.Exclude)
	if err != nil {
		return nil, stage.Permanentf("files.exclude: %w", err)
	}
	f := &forest{roots: map[string]bool{}, held: map[string]*os.File{}, walk: walk{patterns: ps, never: map[inode]string{}, neverAt: map[string]bool{}, done: map[string]bool{}, links: map[string]string{}}}
	for _, dir := range o.Never {
		dir = filepath.Clean(dir)
		f.walk.neverAt[dir] = true
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err == nil {
			f.walk.never[inodeOf(&st)] = dir
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("look at the backup's own directory %s: %w", dir, err)
		}
	}
	places := o.Places
	if places == nil {
		if places, err = ResolvePlaces(o.Paths); err != nil {
			return nil, err
		}
	}
	for _, x := range places {
		p, err := placeOf(x)
		if err == nil {
			err = f.add(p)
		}
		if err != nil {
			return nil, err
		}
	}
	f.walk.places = f.places
	return f, nil
}

func (f *forest) add(p place) error {
	for _, up := range append(parents(p.real), p.real) {
		var st unix.Stat_t
		if err := unix.Lstat(up, &st); err != nil {
			continue
		}
		if name, ok := f.walk.never[inodeOf(&st)]; ok {
			return stage.Permanentf("files.paths: %s lies in %s, a directory of the backup itself: back up other paths or move that directory", show(p.configured), name)
		}
	}
	f.places = append(f.places, p)
	f.roots[p.real] = true
	f.await(p.real)
	for _, s := range p.way {
		if !f.roots[s.path] {
			f.roots[s.path] = false
		}
		f.await(s.path)
		if s.target != "" {
			f.walk.links[s.path] = s.target
		}
	}
	return nil
}

// await makes the walk keep account of a path and of those above it: each is stored
// once, by the walk that comes by or by itself.
func (f *forest) await(path string) {
	for _, up := range append(parents(path), path) {
		f.walk.done[up] = false
	}
}

// each walks all places, each below its real name. One within another one is stored
// with the outer one, unless a pattern keeps the outer walk from it. What leads there
// is stored too: the directories above, and the symbolic links that the configured path
// has, so that it leads there after a restore. No entry ever lies below a link, since
// no link is followed here.
func (f *forest) each(ctx context.Context, emit func(*node) error) error {
	f.walk.emit = emit
	for _, path := range slices.Sorted(maps.Keys(f.roots)) { // an outer one before those within it
		var err error
		switch {
		case f.walk.done[path]:
		case f.roots[path]:
			err = f.place(ctx, path)
		case f.walk.links[path] != "":
			err = f.link(path)
		default: // a directory on the way
			err = f.directory(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *forest) place(ctx context.Context, path string) error {
	at, n, err := f.reach(path)
	if err != nil {
		return err
	}
	defer at.release()
	f.walk.done[path] = true
	flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if n.is(unix.S_IFDIR) {
		flags |= unix.O_DIRECTORY // what is mounted on demand is mounted now
	}
	fd, err := unix.Openat(at.fd(), n.base, flags, 0)
	if err != nil {
		return moved(path, err)
	}
	f.held[path] = os.NewFile(uintptr(fd), path)
	return f.walk.tree(ctx, n)
}

// stillThere fails where a place's path does not lead any more to the directory that was
// walked: it was replaced, or one above it was. What was moved into the new one before it
// was read is in neither, and no directory that is listed tells of it.
func (f *forest) stillThere() error {
	for _, path := range slices.Sorted(maps.Keys(f.held)) {
		was, err := fstat(f.held[path])
		if err != nil {
			return moved(path, err)
		}
		dir, base, err := upTo(path, nil)
		var is unix.Stat_t
		if err == nil {
			is, err = statAt(int(dir.Fd()), base)
			dir.Close()
		}
		wasDir, isDir := was.Mode&unix.S_IFMT == unix.S_IFDIR, err == nil && is.Mode&unix.S_IFMT == unix.S_IFDIR
		switch {
		case !wasDir && !isDir: // a file that was read, and may be another one or gone by now
		case err != nil:
			return moved(path, err)
		case inodeOf(&was) != inodeOf(&is):
			return fmt.Errorf("files.paths: %s was replaced while it was read, so that what was moved meanwhile may be missing: another attempt reads what is there then; switch directories while no backup runs", show(path))
		}
	}
	return nil
}

// directory emits a directory that a ".." leads out of, without what is in it.
func (f *forest) directory(path string) error {
	at, n, err := f.reach(path)
	if err != nil {
		return err
	}
	defer at.release()
	f.walk.done[path] = true
	n.parent = true
	return f.walk.emit(n)
}

// reach opens the way to path, and emits the directories on it that no walk has come by.
func (f *forest) reach(path string) (*dirHandle, *node, error) {
	dir, base, err := upTo(path, func(way string, dir *os.File) error {
		if f.walk.done[way] {
			return nil
		}
		f.walk.done[way] = true
		st, err := fstat(dir)
		if err != nil {
			return err
		}
		return f.walk.emit(&node{path: way, root: way, st: st, parent: true})
	})
	if err != nil {
		return nil, nil, moved(path, err)
	}
	at := newDirHandle(dir)
	n := &node{path: path, root: path, at: at, base: base}
	if n.st, err = statAt(at.fd(), base); err == nil && n.is(unix.S_IFLNK) && f.walk.links[path] == "" {
		err = errReplaced
	}
	if err != nil {
		at.release()
		return nil, nil, moved(path, err)
	}
	return at, n, nil
}

// moved is about a place that is no longer where it was when the run began.
func moved(path string, err error) error {
	if gone(err) || err == errReplaced {
		return fmt.Errorf("files.paths: %s was there when the run began and is not any more (%w): bring it back, or start the backup again", show(path), err)
	}
	return fmt.Errorf("files.paths: %s: %w", show(path), err)
}

// link emits a symbolic link that leads to a place and that no walk has come by.
func (f *forest) link(path string) error {
	if f.walk.done[path] {
		return nil
	}
	at, n, err := f.reach(path)
	if err != nil && !gone(err) {
		return err
	}
	f.walk.done[path] = true
	if err != nil {
		return f.walk.emit(&node{path: path, root: path, err: errLinkGone})
	}
	defer at.release()
	if !n.is(unix.S_IFLNK) {
		return f.walk.emit(&node{path: path, root: path, err: errLinkGone})
	}
	n.link = f.walk.links[path]
	return f.walk.emit(n)
}

// errLinkGone is about a link that led to a configured path when the run began.
var errLinkGone = errors.New("it is no symbolic link any more")

// EstimateFiles counts what AddFiles would store: bytes of content (of sparse files
// their data only) and entries. It also is the preflight check of the options; a
// path that does not exist, a wrong pattern or, unless that is allowed, a file
// without the right to read it is a permanent error. What turns out to be unreadable
// otherwise is left to AddFiles to report.
func EstimateFiles(ctx context.Context, o FilesOptions) (bytes, count int64, err error) {
	f, err := plant(o)
	if err != nil {
		return 0, 0, err
	}
	defer f.close()
	linked := map[inode]bool{}
	err = f.each(ctx, func(n *node) error {
		if n.err != nil && n.st.Mode == 0 {
			return nil
		}
		switch n.st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if err := unix.Faccessat(n.at.fd(), n.base, unix.R_OK, unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW); err == unix.EACCES && !o.AllowUnreadable {
				return (&adder{}).cannotRead(n, err)
			}
			id := inodeOf(&n.st)
			if n.st.Nlink > 1 && linked[id] {
				break
			}
			if n.st.Nlink > 1 {
				linked[id] = true
			}
			bytes += storedBytes(n)
		case unix.S_IFDIR, unix.S_IFLNK:
		default:
			return nil
		}
		count++
		return nil
	})
	return bytes, count, err
}

// storedBytes is a file's size without its holes.
func storedBytes(n *node) int64 {
	if !mayHaveHoles(&n.st) {
		return n.st.Size
	}
	f, st, err := openFile(n)
	if err != nil {
		return n.st.Size
	}
	defer f.Close()
	h := Header{Size: st.Size}
	h.Sparse, _ = sparseExtents(f, st.Size)
	return h.Stored()
}

// entryName is the archive entry of an absolute path.
func entryName(prefix, path string) string {
	return strings.TrimSuffix(prefix+strings.TrimPrefix(path, "/"), "/")
}
