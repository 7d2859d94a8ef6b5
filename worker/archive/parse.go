package archive

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// This file reads tar headers: ustar, pax, GNU's long names and base-256 numbers,
// and GNU sparse 1.0. What our writer never makes (global pax headers, older sparse
// formats, volumes) is refused. It is our own reader, not archive/tar's, since that
// one hides the extents of sparse files, which a restore and the hash of files with
// huge holes need, and since damage must be named with its place.

// rawHeader is one header block.
type rawHeader struct {
	flag byte
	size int64
	h    Header
}

func parseBlock(b *[blockSize]byte) (*rawHeader, error) {
	if err := checkSum(b); err != nil {
		return nil, err
	}
	r := &rawHeader{flag: b[156]}
	r.h.Name = cString(b[0:100])
	r.h.Link = cString(b[157:257])
	var fault error
	number := func(what string, field []byte) int64 {
		n, err := parseNumber(field)
		if err != nil && fault == nil {
			fault = fmt.Errorf("%s: %w", what, err)
		}
		return n
	}
	r.h.Mode = number("mode", b[100:108]) & 07777
	uid, gid := number("uid", b[108:116]), number("gid", b[116:124])
	r.size = number("size", b[124:136])
	r.h.ModTime = time.Unix(number("mtime", b[136:148]), 0)
	if fault == nil && (uid < 0 || gid < 0 || r.size < 0) {
		fault = fmt.Errorf("negative owner or size")
	}
	if fault != nil {
		return nil, fault
	}
	r.h.UID, r.h.GID = int(uid), int(gid)
	if string(b[257:262]) == "ustar" {
		r.h.User, r.h.Group = cString(b[265:297]), cString(b[297:329])
		if string(b[257:263]) == "ustar\x00" { // POSIX; GNU keeps other things there
			if prefix := cString(b[345:500]); prefix != "" {
				r.h.Name = prefix + "/" + r.h.Name
			}
		}
	}
	return r, nil
}

func checkSum(b *[blockSize]byte) error {
	want, err := parseNumber(b[148:156])
	if err != nil {
		return fmt.Errorf("tar header without a checksum")
	}
	var sum, signed int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
		signed += int64(int8(c)) // some old programs summed so
	}
	if want != sum && want != signed {
		return fmt.Errorf("the checksum of a tar header is wrong")
	}
	return nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// parseNumber reads octal digits or GNU's base-256.
func parseNumber(b []byte) (int64, error) {
	if len(b) > 0 && b[0]&0x80 != 0 {
		var flip byte
		if b[0]&0x40 != 0 {
			flip = 0xff
		}
		var n uint64
		for i, c := range b {
			c ^= flip
			if i == 0 {
				c &= 0x7f
			}
			if n>>56 != 0 {
				return 0, fmt.Errorf("number out of range")
			}
			n = n<<8 | uint64(c)
		}
		if n>>63 != 0 {
			return 0, fmt.Errorf("number out of range")
		}
		if flip == 0xff {
			return ^int64(n), nil
		}
		return int64(n), nil
	}
	s := strings.Trim(string(b), " \x00")
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 8, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is no octal number", s)
	}
	return int64(n), nil
}

// parsePAX reads the records of an extended header.
func parsePAX(b []byte) (map[string]string, error) {
	out := map[string]string{}
	for len(b) > 0 {
		sp := bytes.IndexByte(b[:min(len(b), 12)], ' ')
		if sp <= 0 {
			return nil, fmt.Errorf("pax record without a length")
		}
		n, err := strconv.ParseUint(string(b[:sp]), 10, 31)
		if err != nil || int(n) > len(b) || int(n) < sp+3 || b[n-1] != '\n' {
			return nil, fmt.Errorf("pax record with a wrong length")
		}
		k, v, ok := strings.Cut(string(b[sp+1:n-1]), "=")
		if !ok || k == "" || strings.IndexByte(k, 0) >= 0 {
			return nil, fmt.Errorf("pax record without a keyword")
		}
		out[k] = v
		b = b[n:]
	}
	return out, nil
}

// applyPAX lets the extended header's records override the block's fields.
func (r *rawHeader) applyPAX(pax map[string]string) error {
	for k, v := range pax {
		var err error
		switch k {
		case "path", "GNU.sparse.name":
			if k == "path" && pax["GNU.sparse.name"] != "" {
				break
			}
			r.h.Name = v
		case "linkpath":
			r.h.Link = v
		case "uname":
			r.h.User = v
		case "gname":
			r.h.Group = v
		case "uid":
			r.h.UID, err = parseID(v)
		case "gid":
			r.h.GID, err = parseID(v)
		case "size":
			var n uint64
			n, err = strconv.ParseUint(v, 10, 63)
			r.size = int64(n)
		case "mtime":
			r.h.ModTime, err = parseTime(v)
		default:
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				if r.h.Xattrs == nil {
					r.h.Xattrs = map[string]string{}
				}
				r.h.Xattrs[xattrUnescape.Replace(name)] = v
			}
		}
		if err != nil {
			return fmt.Errorf("pax record %s: %w", k, err)
		}
	}
	for _, s := range []string{r.h.Name, r.h.Link, r.h.User, r.h.Group} {
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("a name has a NUL byte")
		}
	}
	return nil
}

func parseID(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return int(n), err
}

// parseTime is the reverse of formatTime.
func parseTime(s string) (time.Time, error) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 63)
	if err != nil {
		return time.Time{}, err
	}
	frac = (frac + "000000000")[:9]
	ns, err := strconv.ParseUint(frac, 10, 31)
	if err != nil {
		return time.Time{}, err
	}
	if strings.HasPrefix(whole, "-") {
		return time.Unix(sec, -int64(ns)), nil
	}
	return time.Unix(sec, int64(ns)), nil
}

// maxExtents bounds the sparse map of one entry; the writer makes at most mostExtents.
const maxExtents = 1 << 20

// parseSparseMap reads GNU's format 1.0 from the head of an entry's body and tells
// how many bytes it took.
func parseSparseMap(r io.Reader, body int64) ([]Extent, int64, error) {
	var block [blockSize]byte
	var rest []byte
	var used int64
	number := func() (int64, error) {
		for {
			if i := bytes.IndexByte(rest, '\n'); i >= 0 {
				n, err := strconv.ParseUint(string(rest[:i]), 10, 63)
				rest = rest[i+1:]
				return int64(n), err
			}
			if used+blockSize > body || len(rest) > 32 {
				return 0, fmt.Errorf("sparse map has no end")
			}
			if _, err := io.ReadFull(r, block[:]); err != nil {
				return 0, err
			}
			used += blockSize
			rest = append(append([]byte(nil), rest...), block[:]...)
		}
	}
	count, err := number()
	if err != nil {
		return nil, used, err
	}
	if count > maxExtents {
		return nil, used, fmt.Errorf("sparse map of %d extents, more than %d", count, maxExtents)
	}
	list := []Extent{} // not nil: sparse, if without any data
	for range count {
		off, err := number()
		if err != nil {
			return nil, used, err
		}
		n, err := number()
		if err != nil {
			return nil, used, err
		}
		list = append(list, Extent{off, n})
	}
	return list, used, nil
}
