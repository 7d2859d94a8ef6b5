package archive

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// blockSize is tar's unit: headers are one block, content is padded to blocks.
const blockSize = 512

// Kind is what an entry is. The values are tar's type flags.
type Kind byte

const (
	Regular  Kind = '0'
	HardLink Kind = '1'
	Symlink  Kind = '2'
	CharDev  Kind = '3' // read, never written
	BlockDev Kind = '4' // read, never written
	Dir      Kind = '5'
	FIFO     Kind = '6' // read, never written
)

// Extent is a stretch of data in a sparse file, in bytes.
type Extent struct{ Offset, Length int64 }

// Header describes one entry.
type Header struct {
	Name    string // path in the archive, without a slash at its start or end; any bytes but NUL
	Kind    Kind
	Size    int64 // of the file's content, holes included; 0 for all but Regular
	Mode    int64 // permission bits with setuid 04000, setgid 02000 and sticky 01000
	UID     int
	GID     int
	User    string // owner's name; may be empty
	Group   string
	ModTime time.Time         // to the nanosecond; may lie before 1970
	Link    string            // target of a Symlink as it is, of a HardLink the entry name of the first
	Xattrs  map[string]string // extended attributes, by full name, POSIX ACLs among them

	// Sparse lists the stretches that hold data, in order and without overlap; the rest
	// of Size is holes. nil for a file stored whole.
	Sparse []Extent
}

// Stored is how many bytes of content the entry's body holds: Size, or for a
// sparse file the sum of its extents.
func (h *Header) Stored() int64 {
	if h.Sparse == nil {
		return h.Size
	}
	var n int64
	for _, e := range h.Sparse {
		n += e.Length
	}
	return n
}

// maxPAX bounds the extended header of one entry. Go's reader takes 1 MiB.
const maxPAX = 1<<20 - blockSize

// encode makes the blocks that go before the content: a pax extended header where
// needed, the ustar header, and for a sparse file its map.
//
// Formats: POSIX.1-2017 pax, section "ustar Interchange Format" and "pax Extended
// Header"; extended attributes as SCHILY.xattr.NAME, which GNU tar (--xattrs) and
// libarchive read; sparse files in GNU tar's format 1.0 (GNU tar manual, appendix
// "Storing Sparse Files").
func (h *Header) encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	name := h.Name
	if h.Kind == Dir {
		name += "/"
	}
	pax := map[string]string{}
	var body int64
	var sparseMap []byte
	if h.Kind == Regular {
		body = h.Stored()
	}
	if h.Sparse != nil {
		sparseMap = encodeSparseMap(h.Sparse)
		body += int64(len(sparseMap))
		pax["GNU.sparse.major"], pax["GNU.sparse.minor"] = "1", "0"
		pax["GNU.sparse.realsize"] = strconv.FormatInt(h.Size, 10)
		if utf8.ValidString(name) {
			pax["GNU.sparse.name"] = name
			name = "GNUSparseFile.0/" + asciiTail(name, 80)
		}
	}

	var b [blockSize]byte
	var long []byte
	if putRaw(b[0:100], name) {
		long = append(long, longName('L', name)...)
	} else {
		putName(b[0:100], "path", name, pax)
	}
	putOctal(b[100:108], h.Mode&07777)
	putID(b[108:116], "uid", h.UID, pax)
	putID(b[116:124], "gid", h.GID, pax)
	if body < 1<<33 {
		putOctal(b[124:136], body)
	} else {
		putOctal(b[124:136], 0)
		pax["size"] = strconv.FormatInt(body, 10)
	}
	putTime(b[136:148], h.ModTime, pax)
	b[156] = byte(h.Kind)
	if putRaw(b[157:257], h.Link) {
		long = append(long, longName('K', h.Link)...)
	} else {
		putName(b[157:257], "linkpath", h.Link, pax)
	}
	copy(b[257:265], "ustar\x0000")
	putName(b[265:297], "uname", h.User, pax)
	putName(b[297:329], "gname", h.Group, pax)
	for k, v := range h.Xattrs {
		pax["SCHILY.xattr."+xattrEscape.Replace(k)] = v
	}
	putChecksum(&b)

	var out []byte
	if len(pax) > 0 {
		ext, err := encodePAX(h, pax)
		if err != nil {
			return nil, err
		}
		out = ext
	}
	out = append(out, long...)
	out = append(out, b[:]...)
	return append(out, sparseMap...), nil
}

// check refuses what can't be written or should never be.
func (h *Header) check() error {
	if err := CheckEntryName(h.Name); err != nil {
		return err
	}
	if strings.HasSuffix(h.Name, "/") {
		return fmt.Errorf("entry name %s ends with a slash", show(h.Name))
	}
	switch h.Kind {
	case Regular:
	case Dir, Symlink, HardLink:
		if h.Size != 0 || h.Sparse != nil {
			return fmt.Errorf("entry %s: only a regular file has a size", show(h.Name))
		}
	default:
		return fmt.Errorf("entry %s: kind %q is never stored", show(h.Name), byte(h.Kind))
	}
	for _, s := range []string{h.Link, h.User, h.Group} {
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("entry %s: %q has a NUL byte", show(h.Name), s)
		}
	}
	if h.Kind == HardLink {
		if err := CheckEntryName(h.Link); err != nil {
			return fmt.Errorf("entry %s: link target: %w", show(h.Name), err)
		}
	}
	if h.UID < 0 || h.GID < 0 || h.Size < 0 {
		return fmt.Errorf("entry %s: negative owner or size", show(h.Name))
	}
	return checkExtents(h.Sparse, h.Size)
}

func checkExtents(list []Extent, size int64) error {
	var at int64
	for _, e := range list {
		if e.Offset < at || e.Length < 0 || e.Length > size-e.Offset {
			return fmt.Errorf("sparse map: extent %d+%d is out of order or beyond the size %d", e.Offset, e.Length, size)
		}
		at = e.Offset + e.Length
	}
	return nil
}

// xattrEscape is how GNU tar writes an attribute's name into a pax keyword, which
// must not hold "=" (xheader.c, xattr_encode_keyword).
var xattrEscape = strings.NewReplacer("%", "%25", "=", "%3D")
var xattrUnescape = strings.NewReplacer("%25", "%", "%3D", "=")

// encodeSparseMap writes GNU's format 1.0: decimal numbers, one a line, the count of
// extents first, padded with NUL to blocks. A file that ends with a hole gets its
// last extent with no length from sparseExtents.
func encodeSparseMap(list []Extent) []byte {
	b := sparseText(list)
	return append(b, make([]byte, padding(int64(len(b))))...)
}

func sparseText(list []Extent) []byte {
	b := strconv.AppendInt(nil, int64(len(list)), 10)
	b = append(b, '\n')
	for _, e := range list {
		b = strconv.AppendInt(b, e.Offset, 10)
		b = append(b, '\n')
		b = strconv.AppendInt(b, e.Length, 10)
		b = append(b, '\n')
	}
	return b
}

// padding is what is missing from n to whole blocks.
func padding(n int64) int64 { return -n & (blockSize - 1) }

// putRaw tells whether s is longer than its field and not UTF-8, and then stores its
// beginning. Such a name has no place in a pax record: bsdtar refuses one, and GNU tar
// does not know the record that would announce it (hdrcharset). GNU's older way for
// long names takes any bytes, and all programs read it, also after a pax header.
func putRaw(field []byte, s string) bool {
	if len(s) <= len(field) || utf8.ValidString(s) {
		return false
	}
	copy(field, s[:len(field)])
	return true
}

// longName is GNU tar's long name ('L') or long link ('K'): an entry whose content
// is the name and a NUL (GNU tar manual, "Basic Tar Format").
func longName(flag byte, name string) []byte {
	var b [blockSize]byte
	copy(b[0:100], "././@LongLink")
	putOctal(b[100:108], 0)
	putOctal(b[108:116], 0)
	putOctal(b[116:124], 0)
	putOctal(b[124:136], int64(len(name)+1))
	putOctal(b[136:148], 0)
	b[156] = flag
	copy(b[257:265], "ustar  \x00") // as GNU tar marks it
	putChecksum(&b)
	out := append(b[:], name...)
	return append(out, make([]byte, 1+padding(int64(len(name)+1)))...)
}

// putName stores s raw where it fits and is ASCII or not UTF-8 at all, which every
// program takes as it is. What is UTF-8 beyond ASCII, or too long, goes to the pax
// record key.
func putName(field []byte, key, s string, pax map[string]string) {
	if len(s) <= len(field) && (isASCII(s) || !utf8.ValidString(s)) {
		copy(field, s)
		return
	}
	copy(field, asciiTail(s, len(field)))
	pax[key] = s
}

// asciiTail is the end of s, at most n bytes, for readers that know no pax.
func asciiTail(s string, n int) string {
	if len(s) > n {
		s = s[len(s)-n:]
		s = strings.TrimLeft(s, "/")
	}
	b := []byte(s)
	for i, c := range b {
		if c < 0x20 || c >= 0x7f {
			b[i] = '_'
		}
	}
	return string(b)
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func putOctal(field []byte, n int64) {
	s := strconv.FormatInt(n, 8)
	w := len(field) - 1
	copy(field, strings.Repeat("0", max(0, w-len(s)))+s)
}

func putID(field []byte, key string, id int, pax map[string]string) {
	if id > 07777777 {
		pax[key] = strconv.Itoa(id)
		id = 0
	}
	putOctal(field, int64(id))
}

func putTime(field []byte, t time.Time, pax map[string]string) {
	sec, ns := t.Unix(), t.Nanosecond()
	if sec >= 0 && sec < 1<<33 && ns == 0 {
		putOctal(field, sec)
		return
	}
	putOctal(field, min(max(sec, 0), 1<<33-1))
	pax["mtime"] = formatTime(sec, ns)
}

// formatTime writes seconds with a fraction. Unix counts the fraction upwards from
// the second below; pax writes a decimal number, so -1 s + 0.75 s is "-0.25".
func formatTime(sec int64, ns int) string {
	if ns == 0 {
		return strconv.FormatInt(sec, 10)
	}
	sign := ""
	if sec < 0 {
		sign, sec, ns = "-", -(sec + 1), 1e9-ns
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, sec, ns), "0")
}

// putChecksum sums the header's bytes with the field itself as spaces.
func putChecksum(b *[blockSize]byte) {
	copy(b[148:156], "        ")
	var sum int64
	for _, c := range b {
		sum += int64(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// encodePAX makes the extended header's own entry.
func encodePAX(h *Header, pax map[string]string) ([]byte, error) {
	keys := make([]string, 0, len(pax))
	for k := range pax {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var body []byte
	for _, k := range keys {
		body = append(body, paxRecord(k, pax[k])...)
	}
	if len(body) > maxPAX {
		return nil, fmt.Errorf("entry %s: names and extended attributes take %d bytes, more than %d", show(h.Name), len(body), maxPAX)
	}
	var b [blockSize]byte
	copy(b[0:100], "PaxHeaders.0/"+asciiTail(h.Name, 80))
	putOctal(b[100:108], 0644)
	putOctal(b[108:116], 0)
	putOctal(b[116:124], 0)
	putOctal(b[124:136], int64(len(body)))
	putOctal(b[136:148], min(max(h.ModTime.Unix(), 0), 1<<33-1))
	b[156] = 'x'
	copy(b[257:265], "ustar\x0000")
	putChecksum(&b)
	out := append(b[:], body...)
	return append(out, make([]byte, padding(int64(len(body))))...), nil
}

// paxRecord is "LENGTH KEY=VALUE\n", where LENGTH counts itself.
func paxRecord(k, v string) string {
	const fixed = 3 // space, equals sign, newline
	n := len(k) + len(v) + fixed
	n += len(strconv.Itoa(n))
	s := strconv.Itoa(n) + " " + k + "=" + v + "\n"
	if len(s) != n { // its own length got one digit longer
		s = strconv.Itoa(len(s)) + " " + k + "=" + v + "\n"
	}
	return s
}
