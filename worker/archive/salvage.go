package archive

import (
	"bytes"
	"errors"
	"io"
)

// An archive is a row of gzip members, and each is decompressed without the others. A
// salvaging unpacker goes on behind damage: a member whose checksum alone is wrong is
// handed on as it is; one whose header is damaged is tried without it, since the members
// of our archives have headers of ten bytes; where a member cannot be decompressed, the
// next bytes that look like the header of a member are tried, and if that was chance,
// the next. What does not belong there is found out by the tar reader behind, which then
// looks for headers of entries that fit.

// memberHead is how the members begin that this program writes: magic, deflate, no flags, no
// time (RFC 1952). The last two bytes are the level's hint and the system.
var memberHead = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0}

const memberHeadSize = 10

// plainHead stands for a header that is damaged.
var plainHead = append(bytes.Clone(memberHead), 0, 255)

// patience bounds how many bytes of the file are decompressed in search of a member, in
// sizes of the file: a file made for it could be tried for ever.
const patience = 4

// resume goes on after err in the member at byte at of the file. Its error is none of the archive.
func (u *unpacker) resume(at int64, err error, out *outlet) error {
	st, serr := u.file.Stat()
	if serr != nil {
		return &readError{serr}
	}
	size := st.Size()
	left := patience*size + 64<<20
	try := func(at int64, head []byte) (int64, error) {
		from := at + int64(len(head))
		src := &counter{r: io.NewSectionReader(u.file, from, max(0, size-from))}
		failed, err := u.members(io.MultiReader(bytes.NewReader(head), src), at, out)
		left -= src.n
		return failed, err
	}
	for err != nil {
		var header *headerError
		if errors.As(err, &header) {
			if err = out.mark(u.classify(err), false); err != nil {
				return err
			}
			failed, terr := try(at, plainHead)
			if terr == nil || failed != at {
				at, err = failed, terr
				continue
			}
			err = terr
		}
		if err == errQuit || isReadError(err) {
			return err
		}
		if err = out.mark(u.classify(err), true); err != nil {
			return err
		}
		if u.oddFlags(at) { // they may have made it skip what is no name or comment
			failed, terr := try(at, plainHead)
			if terr == nil || failed != at {
				at, err = failed, terr
				continue
			}
			if terr == errQuit || isReadError(terr) {
				return terr
			}
		}
		found, ferr := u.nextMember(at+1, size)
		if ferr != nil || found < 0 || left < 0 {
			return ferr
		}
		at, err = try(found, nil)
	}
	return nil
}

// oddFlags tells whether the member at byte at has flags, as no member of ours has.
func (u *unpacker) oddFlags(at int64) bool {
	var head [4]byte
	_, err := u.file.ReadAt(head[:], at)
	return err == nil && bytes.Equal(head[:3], memberHead[:3]) && head[3] != 0
}

// nextMember finds bytes that look like the header of one of our members; -1 for none.
func (u *unpacker) nextMember(from, size int64) (int64, error) {
	buf := make([]byte, 256<<10)
	for from < size {
		n, err := u.file.ReadAt(buf[:min(int64(len(buf)), size-from)], from)
		if err != nil && err != io.EOF {
			return -1, &readError{err}
		}
		for at := 0; ; at++ {
			i := bytes.Index(buf[at:n], memberHead)
			if i < 0 {
				break
			}
			if at += i; at+memberHeadSize > n {
				break
			}
			if buf[at+9] == 255 {
				return from + int64(at), nil
			}
		}
		if n < memberHeadSize {
			return -1, nil
		}
		from += int64(n - memberHeadSize + 1)
	}
	return -1, nil
}
