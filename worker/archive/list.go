package archive

import (
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"strconv"
	"time"

	"catalog-backup/shared/set"
)

// List holds what a manifest says of the files in some 100 bytes a file, however
// long the manifest's text is: directories once, hashes and numbers as they are. A file
// that says something unusual is kept as it is besides. Its zero value is empty.
type List struct {
	Bytes int64 // of the regular files

	records [][]fileRecord // of listChunk each, so that growing copies nothing
	count   int
	dirs    []string
	dirOf   map[string]uint32
	text    []byte // base names, and targets of links
	odd     map[int]*set.File
}

const listChunk = 4096

// fileRecord is one set.File. Its name is that of its archive entry.
type fileRecord struct {
	size, sec         int64
	nsec              int32
	uid, gid          uint32
	dir               uint32 // in dirs
	base, target      uint32 // in text
	baseLen, linkLen  uint16
	mode              uint16
	kind, changed     uint8 // in listKinds and listChanges
	hashed, ofExtents bool
	sum               [32]byte
}

var (
	listKinds   = []string{kindFile, kindDir, kindSymlink, kindHardLink}
	listChanges = []string{"", changed, grown, shrunk, vanished, unreadable}
)

// Len is how many files the list has.
func (l *List) Len() int { return l.count }

// Add adds a file.
func (l *List) Add(f *set.File) error {
	if f.Kind == kindFile {
		l.Bytes += f.Size
	}
	r := l.record(f)
	if l.count%listChunk == 0 {
		l.records = append(l.records, make([]fileRecord, 0, listChunk))
	}
	last := &l.records[len(l.records)-1]
	*last = append(*last, r)
	l.count++
	same := l.file(l.count - 1)
	if !same.ModTime.Equal(f.ModTime) {
		l.keep(f)
		return nil
	}
	same.ModTime = f.ModTime
	if same != *f {
		l.keep(f)
	}
	return nil
}

func (l *List) keep(f *set.File) {
	if l.odd == nil {
		l.odd = map[int]*set.File{}
	}
	c := *f
	l.odd[l.count-1] = &c
}

// record makes the short form as far as f fits into it; Add sees whether it did.
func (l *List) record(f *set.File) fileRecord {
	r := fileRecord{size: f.Size, sec: f.ModTime.Unix(), nsec: int32(f.ModTime.Nanosecond()), uid: uint32(f.UID), gid: uint32(f.GID)}
	if n, err := strconv.ParseUint(f.Mode, 8, 16); err == nil {
		r.mode = uint16(n)
	}
	for i, k := range listKinds {
		if f.Kind == k {
			r.kind = uint8(i)
		}
	}
	for i, c := range listChanges {
		if f.Changed == c {
			r.changed = uint8(i)
		}
	}
	if n, err := hex.Decode(r.sum[:], []byte(f.SHA256[:min(len(f.SHA256), 64)])); err == nil && n == len(r.sum) {
		r.hashed = true
	}
	r.ofExtents = f.SHA256Of == ofExtents
	if path, err := bytesOf(f.Path, f.PathBytes); err == nil {
		dir, base := splitPath(nameOf(path))
		r.dir = l.directory(dir)
		r.base, r.baseLen = l.put(base)
	}
	if target, err := bytesOf(f.Target, f.TargetBytes); err == nil {
		r.target, r.linkLen = l.put(target)
	}
	return r
}

func (l *List) directory(name string) uint32 {
	id, ok := l.dirOf[name]
	if !ok {
		if l.dirOf == nil {
			l.dirOf = map[string]uint32{}
		}
		id = uint32(len(l.dirs))
		l.dirs, l.dirOf[name] = append(l.dirs, name), id
	}
	return id
}

// put keeps s; what is too long for a record is left out.
func (l *List) put(s string) (at uint32, n uint16) {
	const most, all = 1<<16 - 1, 1<<32 - 1
	if len(s) > most || len(l.text)+len(s) > all {
		return 0, 0
	}
	at = uint32(len(l.text))
	l.text = append(l.text, s...)
	return at, uint16(len(s))
}

func (l *List) at(i int) *fileRecord { return &l.records[i/listChunk][i%listChunk] }

// file is the i-th file as it was added.
func (l *List) file(i int) set.File {
	if f := l.odd[i]; f != nil {
		return *f
	}
	r := l.at(i)
	f := set.File{Kind: listKinds[r.kind], Size: r.size, ModTime: time.Unix(r.sec, int64(r.nsec)).UTC(), Mode: fmt.Sprintf("%04o", r.mode),
		UID: int(r.uid), GID: int(r.gid), Changed: listChanges[r.changed]}
	f.Path, f.PathBytes = text(pathOf(string(l.entry(nil, i))))
	f.Target, f.TargetBytes = text(string(l.text[r.target:][:r.linkLen]))
	if r.hashed {
		f.SHA256 = hex.EncodeToString(r.sum[:])
	}
	if r.ofExtents {
		f.SHA256Of = ofExtents
	}
	return f
}

// pathOf is the reverse of nameOf.
func pathOf(name string) string {
	if len(name) < len(set.FilesPrefix) {
		return "/"
	}
	return name[len(set.FilesPrefix)-1:]
}

// entry appends the name of the i-th file's archive entry to b; nothing, if the
// manifest's path cannot be understood.
func (l *List) entry(b []byte, i int) []byte {
	if f := l.odd[i]; f != nil {
		if path, err := bytesOf(f.Path, f.PathBytes); err == nil {
			b = append(b, nameOf(path)...)
		}
		return b
	}
	r := l.at(i)
	if dir := l.dirs[r.dir]; dir != "" {
		b = append(append(b, dir...), '/')
	}
	return append(b, l.text[r.base:][:r.baseLen]...)
}

// nameIndex finds files by the names of their entries. Of two files of one name it
// finds the later one.
type nameIndex struct {
	l     *List
	seed  maphash.Seed
	slots []uint32 // 1 + place in the list; 0: free
	buf   []byte
}

func newNameIndex(l *List) *nameIndex {
	size := 16
	for size < 2*l.count {
		size *= 2
	}
	x := &nameIndex{l: l, seed: maphash.MakeSeed(), slots: make([]uint32, size)}
	var name []byte
	for i := range l.count {
		if name = l.entry(name[:0], i); len(name) > 0 {
			x.slots[x.slot(name)] = uint32(i + 1)
		}
	}
	return x
}

// slot is where the name is, or belongs.
func (x *nameIndex) slot(name []byte) uint64 {
	mask := uint64(len(x.slots) - 1)
	for at := maphash.Bytes(x.seed, name) & mask; ; at = (at + 1) & mask {
		i := x.slots[at]
		if i == 0 {
			return at
		}
		if x.buf = x.l.entry(x.buf[:0], int(i-1)); string(x.buf) == string(name) {
			return at
		}
	}
}

func (x *nameIndex) find(name string) (int, bool) {
	i := x.slots[x.slot([]byte(name))]
	return int(i) - 1, i != 0
}
