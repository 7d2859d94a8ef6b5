package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

// FilesOptions say which files are stored.
type FilesOptions struct {
	Paths   []string // absolute; directories or files
	Exclude []string // patterns, see CheckPatterns
	// Never are the backup's own directories (dump, temp, state). They are stored as
	// empty directories at most and never entered, whatever path, symbolic link or bind
	// mount leads to them.
	Never []string
	// AllowUnreadable makes a file that can't be read a warning instead of a failure.
	AllowUnreadable bool
	// Readers is how many goroutines read small files ahead; default 8.
	Readers int
}

// root is one configured path.
type root struct {
	path   string
	link   bool // a symbolic link
	target inode
}

// forest is the configured paths, checked, and a walk over them.
type forest struct {
	roots []root
	walk  walk
}

// plant checks the options. Its errors are permanent: they need another configuration.
func plant(o FilesOptions) (*forest, error) {
	ps, err := compilePatterns(o.Exclude)
	if err != nil {
		return nil, stage.Permanentf("files.exclude: %w", err)
	}
	f := &forest{walk: walk{patterns: ps, never: map[inode]string{}, neverAt: map[string]bool{}, entered: map[inode]bool{}, done: map[string]bool{}}}
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
	for _, p := range o.Paths {
		if !filepath.IsAbs(p) {
			return nil, stage.Permanentf("files.paths: %s is not an absolute path: write it from / on", show(p))
		}
		p = filepath.Clean(p)
		if _, twice := f.walk.done[p]; twice {
			continue
		}
		f.walk.done[p] = false
		r, err := f.root(p)
		if err != nil {
			return nil, err
		}
		f.roots = append(f.roots, r)
	}
	sort.Slice(f.roots, func(i, j int) bool {
		a, b := f.roots[i], f.roots[j]
		if a.link != b.link {
			return b.link // links last: where they lead may have been stored by then
		}
		return a.path < b.path
	})
	return f, nil
}

func (f *forest) root(p string) (root, error) {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		if gone(err) {
			return root{}, stage.Permanentf("files.paths: %s does not exist: create it or take it out of the configuration", show(p))
		}
		return root{}, stage.Permanentf("files.paths: %s cannot be looked at: %w: let the worker read it or take it out of the configuration", show(p), err)
	}
	r := root{path: p, target: inodeOf(&st)}
	var l unix.Stat_t
	if err := unix.Lstat(p, &l); err == nil && l.Mode&unix.S_IFMT == unix.S_IFLNK {
		r.link = true
		f.walk.entered[r.target] = false
	}
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return root{}, stage.Permanentf("files.paths: %s: %w", show(p), err)
	}
	for _, up := range ancestors(real) {
		var st unix.Stat_t
		if err := unix.Stat(up, &st); err != nil {
			continue
		}
		if name, ok := f.walk.never[inodeOf(&st)]; ok {
			return root{}, stage.Permanentf("files.paths: %s lies in %s, a directory of the backup itself: back up other paths or move that directory", show(p), name)
		}
	}
	return r, nil
}

// ancestors lists path and all directories above it.
func ancestors(path string) []string {
	out := []string{path}
	for path != "/" {
		path = filepath.Dir(path)
		out = append(out, path)
	}
	return out
}

// each walks all configured paths. A path within another one is stored once, with
// the outer one, unless a pattern keeps the outer walk from it. A configured path that
// is a symbolic link is followed, this once; it is stored as the directory (or
// file) that it leads to, or as the link if that is stored under its own name.
func (f *forest) each(ctx context.Context, emit func(*node) error, note func(string)) error {
	f.walk.emit = emit
	for _, r := range f.roots {
		if f.walk.done[r.path] {
			continue
		}
		if err := f.one(ctx, r, note); err != nil {
			return err
		}
	}
	return nil
}

func (f *forest) one(ctx context.Context, r root, note func(string)) error {
	path := r.path
	follow := r.link && !f.walk.entered[r.target]
	if follow {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return stage.Permanentf("files.paths: %s: %w", show(path), err)
		}
		note(fmt.Sprintf("the configured path %s is a symbolic link; what it leads to, %s, is stored under its name", show(path), show(real)))
		path = real
	}
	dir, base := filepath.Split(path)
	if base == "" {
		dir, base = "/", "."
	}
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("files.paths: %s: %w", show(r.path), err)
	}
	at := newDirHandle(d)
	defer at.release()
	st, err := statAt(at.fd(), base)
	if err != nil {
		return fmt.Errorf("files.paths: %s: %w", show(r.path), err)
	}
	return f.walk.tree(ctx, r.path, at, base, st)
}

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
	}, func(string) {})
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
