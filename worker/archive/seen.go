package archive

import (
	"context"
	"errors"
	"hash/maphash"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A walk lists one directory after the other. What is moved meanwhile from a directory
// not yet listed into one already listed would be in neither. So the walk remembers what
// it saw, and directories that changed since are listed a second time.

// seen is what the first listing saw.
type seen struct {
	now   func() time.Time
	began time.Time // by the clock that gives files their times
	dirs  []*listing
	names int // in all listings
	most  int // names remembered; what is beyond is not looked at again
	over  int // directories that were not remembered
	seed  maphash.Seed
	again bool                // the second listing has begun
	paths map[string]*listing // made when it is first asked for
}

// mostSeen bounds the memory: 16 bytes a name, and some 150 a directory.
const mostSeen = 8 << 20

// granularity is how coarse a file system's times may be: within it a change after the
// listing can leave the directory's times as they were.
const granularity = 2 * time.Second

// listing is a directory as it was when it was listed.
type listing struct {
	s          *seen
	path, root string
	id         inode
	mtim, ctim unix.Timespec
	at         time.Time
	names      []seenName
}

// seenName is one name in a directory, and what it led to. The lowest bits of name are the
// file's type, as in st_mode.
type seenName struct{ name, thing uint64 }

const typeBits = unix.S_IFMT >> 12

func typeOf(st *unix.Stat_t) uint64 { return uint64(st.Mode&unix.S_IFMT) >> 12 }

func (x seenName) is(format uint64) bool { return x.name&typeBits == format>>12 }

// kept tells whether things of this mode are stored: devices, pipes and sockets are not.
func kept(mode uint64) bool {
	format := mode & unix.S_IFMT
	return format == unix.S_IFREG || format == unix.S_IFDIR || format == unix.S_IFLNK
}

func newSeen(now func() time.Time) *seen {
	if now == nil {
		now = time.Now
	}
	return &seen{now: now, began: coarse(), most: mostSeen, seed: maphash.MakeSeed()}
}

// coarse is the kernel's clock as of its last tick, which is what a new file's time is
// taken from.
func coarse() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts); err != nil {
		return time.Now()
	}
	return time.Unix(ts.Unix())
}

// open begins a listing. st was taken before the names are read.
func (s *seen) open(path, root string, st *unix.Stat_t) *listing {
	if s == nil || s.again {
		return nil
	}
	return &listing{s: s, path: path, root: root, id: inodeOf(st), mtim: st.Mtim, ctim: st.Ctim, at: s.now()}
}

// keep remembers a listing that is complete.
func (s *seen) keep(l *listing) {
	if s == nil || l == nil {
		return
	}
	if s.names+len(l.names) > s.most {
		s.over++
		return
	}
	s.names += len(l.names)
	s.dirs = append(s.dirs, l)
}

// at finds the listing of a path.
func (s *seen) at(path string) *listing {
	if s.paths == nil {
		s.paths = make(map[string]*listing, len(s.dirs))
		for _, l := range s.dirs {
			s.paths[l.path] = l
		}
	}
	return s.paths[path]
}

func (l *listing) add(name string, format, thing uint64) {
	if l != nil {
		l.names = append(l.names, seenName{l.hash(name) | format, thing})
	}
}

func (l *listing) hash(name string) uint64 { return maphash.String(l.s.seed, name) &^ typeBits }

// thing names what a name leads to. Its number alone would not do: a file system gives that
// of a thing that is removed to the next one that is made. So it is held together with
// the time that it was made, where the file system keeps that.
func (s *seen) thing(n *node) uint64 {
	if s == nil {
		return 0
	}
	made, _ := born(n)
	return maphash.Comparable(s.seed, [3]int64{int64(n.st.Ino), made.Sec, int64(made.Nsec)})
}

// born is when a thing was made; false, where the file system keeps no such time.
func born(n *node) (unix.StatxTimestamp, bool) {
	var x unix.Statx_t
	err := unix.Statx(n.at.fd(), n.base, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &x)
	return x.Btime, err == nil && x.Mask&unix.STATX_BTIME != 0
}

// seenNames finds the names of one listing.
type seenNames struct {
	l      *listing
	byHash map[uint64]seenName
	things map[uint64]bool
}

// index gives nil for a directory that was not listed before.
func (l *listing) index() *seenNames {
	if l == nil {
		return nil
	}
	x := &seenNames{l: l, byHash: make(map[uint64]seenName, len(l.names)), things: make(map[uint64]bool, len(l.names))}
	for _, n := range l.names {
		x.byHash[n.name&^typeBits], x.things[n.thing] = n, true
	}
	return x
}

// more tells whether there were others than names.
func (x *seenNames) more(names []string) bool {
	if x == nil {
		return false
	}
	still := 0
	for _, name := range names {
		if _, ok := x.byHash[x.l.hash(name)]; ok {
			still++
		}
	}
	return still < len(x.byHash)
}

// changed tells whether the directory may have other names in it than it had.
func (l *listing) changed(st *unix.Stat_t) bool {
	if l.mtim != st.Mtim || l.ctim != st.Ctim {
		return true
	}
	young := l.at.Add(-granularity)
	return time.Unix(st.Mtim.Unix()).After(young) || time.Unix(st.Ctim.Unix()).After(young)
}

// late says how the second listing found a thing.
type late struct {
	second bool // it is one of the second listing's
	first  bool // the topmost of what was found
	young  bool // it was made since the backup began
	old    bool // it is older than the backup, and was in another directory, as far as can be told
	more   bool // a directory in the place of another one, which held what this one does not
}

// known settles, in the second listing, what the first one has seen: true if there is
// nothing more to do with n.
func (w *walk) known(top *frame, n *node, isDir bool) bool {
	if w.seen == nil || !w.seen.again {
		return false
	}
	n.late = late{second: true, first: top.top}
	if n.err != nil {
		return false
	}
	if top.old == nil { // a new directory: what is in it may come from anywhere
		n.late.young = top.young && !w.seen.older(n)
		n.late.old = top.young && !n.late.young
		return false
	}
	x, found := top.old.byHash[top.old.l.hash(n.base)]
	thing := w.seen.thing(n)
	switch {
	case found && x.thing == thing && x.is(uint64(n.st.Mode&unix.S_IFMT)):
		return true
	case found && isDir != x.is(unix.S_IFDIR) && kept(x.name<<12) && kept(uint64(n.st.Mode)):
		n.err = errOtherKind
		return false
	}
	n.replaces = found
	n.late.young = !w.seen.older(n)
	n.late.old = !n.late.young && !top.old.things[thing]
	return false
}

// errOtherKind is about a directory in whose place there now is a file, or the reverse.
// An archive cannot hold both, and what came with the later one would be missing.
var errOtherKind = errors.New("a file took the place of a directory, or a directory that of a file, while the backup ran: another attempt takes what is there then")

// errNotAgain is about a directory that could not be listed a second time.
var errNotAgain = errors.New("it could not be listed a second time")

// older tells whether a thing was there before the backup began: made before, or, where
// the file system keeps no such time, written before.
func (s *seen) older(n *node) bool {
	made := time.Unix(n.st.Mtim.Unix())
	if b, ok := born(n); ok {
		made = time.Unix(b.Sec, int64(b.Nsec))
	}
	return made.Before(s.began)
}

// again lists the directories that changed since they were listed once more, and walks
// through what is new there.
func (f *forest) again(ctx context.Context, emit func(*node) error) error {
	w := &f.walk
	w.emit = emit
	s := w.seen
	s.again = true
	ways := map[string]*beneath{}
	defer func() {
		for _, b := range ways {
			b.close()
		}
	}()
	for _, l := range s.dirs[:len(s.dirs):len(s.dirs)] {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		top, err := w.second(l, ways)
		if err == nil && top != nil {
			err = w.below(ctx, l.root, top)
		} else if err != nil {
			err = emit(&node{path: l.path, root: l.root, err: errNotAgain})
		}
		if err != nil {
			return err
		}
	}
	return f.stillThere()
}

// second lists a directory again; no frame, if there can be nothing new in it.
func (w *walk) second(l *listing, ways map[string]*beneath) (*frame, error) {
	f, err := l.reopen(ways)
	if err != nil {
		if gone(err) { // or moved: then the directory that it is in now has changed
			return nil, nil
		}
		return nil, err
	}
	st, err := fstat(f)
	// Another directory: that is found in the one above, which has changed then, or it is
	// the root of a place (see stillThere). Only what is mounted there changes nothing above.
	another, mounted := inodeOf(&st) != l.id, uint64(st.Dev) != l.id.dev
	if err != nil || another && !mounted || !another && !l.changed(&st) {
		f.Close()
		return nil, err
	}
	top := &frame{dir: newDirHandle(f), id: inodeOf(&st), path: l.path, rel: relTo(l.root, l.path), old: l.index(), top: true}
	if top.names, err = readNames(f); err != nil {
		top.dir.release()
		return nil, err
	}
	if len(w.patterns) > 0 {
		top.spots = w.spots(l.path, l.root)
	}
	return top, nil
}

func (l *listing) reopen(ways map[string]*beneath) (*os.File, error) {
	b, err := openWay(l.root, ways)
	if err != nil {
		return nil, err
	}
	dir, err := b.dir(relTo(l.root, l.path))
	if err != nil {
		return nil, err
	}
	return openDirAt(int(dir.Fd()), ".")
}

// relTo is the path below root; empty for root itself.
func relTo(root, path string) string {
	if path == root {
		return ""
	}
	if root == "/" {
		return path[1:]
	}
	return path[len(root)+1:]
}
