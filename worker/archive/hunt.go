package archive

import (
	"bytes"
	"errors"
	"io"
)

// hunt looks behind a break for the next header that fits.
type hunt struct {
	m *mending
	r *Reader
	w []byte // bytes that were read and not yet ruled out

	zeros  bool // nothing but zeros since the break
	run    int  // how many zeros come before w
	unsure bool // an extended header of the one that was found may be lost
}

// mostTried bounds the bytes that are read as headers in vain: an archive made for it
// could be tried for ever.
const mostTried = 1 << 30

// ustar stands at magicAt in every header that this program writes.
const (
	ustar   = "ustar"
	magicAt = 257
)

func (x *hunt) find() (*Header, error) {
	buf := make([]byte, 32<<10)
	x.m.broken = false
	for {
		if x.m.tried > mostTried {
			x.m.tell("", &DamageError{x.r.u.path, x.r.u.offset.Load(), "too much behind it looks like headers and is none: the rest was not read", nil})
			return nil, io.EOF
		}
		n, err := x.m.raw(x.r, buf)
		var d *DamageError
		switch {
		case errors.As(err, &d): // another break: what came before it is ruled out
			x.w, x.zeros, x.run, x.m.broken = x.w[:0], true, 0, false
			continue
		case err != nil:
			return nil, err
		}
		x.w = append(x.w, buf[:n]...)
		if h, err := x.look(); h != nil || err != nil {
			return h, err
		}
	}
}

// look tries every place in w that looks like a header.
func (x *hunt) look() (*Header, error) {
	for len(x.w) >= blockSize {
		i := bytes.Index(x.w[magicAt:], []byte(ustar))
		if i < 0 {
			x.drop(len(x.w) - blockSize + 1)
			return nil, nil
		}
		x.drop(i)
		if len(x.w) < blockSize {
			return nil, nil
		}
		if checkSum((*[blockSize]byte)(x.w)) == nil {
			h, err := x.try(x.w[156] == 'x')
			if h != nil || err != nil {
				return h, err
			}
		}
		x.drop(1)
	}
	return nil, nil
}

// drop rules out the first n bytes of w.
func (x *hunt) drop(n int) {
	kept := bytes.TrimRight(x.w[:n], "\x00")
	if len(kept) > 0 {
		x.zeros, x.run = false, 0
	}
	x.run += n - len(kept)
	x.w = append(x.w[:0], x.w[n:]...)
}

// try reads the header at the begin of w. If it does not fit, or is none, all that was
// read is put back into w.
func (x *hunt) try(extended bool) (*Header, error) {
	// A header comes in one gzip member with its extended ones. So none is lost where only
	// the padding of the entry before comes first, or a block of zeros, which ends no
	// extended header.
	x.unsure = !extended && !x.zeros && x.run < blockSize
	var read []byte
	x.m.pushed = append(x.w, x.m.pushed...)
	x.w, x.m.record = nil, &read
	h, err := x.r.header()
	x.m.record = nil
	x.m.tried += int64(len(read))
	if err == nil && x.m.s.Fits(h, x.r.cur) {
		return h, nil
	}
	x.r.body, x.r.pad, x.r.holes = 0, 0, nil
	var d *DamageError
	if err != nil && !errors.As(err, &d) && err != io.EOF {
		return nil, err
	}
	x.m.putBack(nil, err)
	x.w = read
	return nil, nil
}
