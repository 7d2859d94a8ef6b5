package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Salvage says how a damaged archive is read on.
type Salvage struct {
	// Fits tells whether an entry that was found behind a break can be one of the archive:
	// what lies there may also be the inside of a file. after is the entry that was read
	// before; nil: none.
	Fits func(h, after *Header) bool
	// Bare tells whether an entry is of use though an extended header of it may be lost, and
	// extended attributes with it. Others are told as damage and left out.
	Bare func(h *Header) bool
	// Damage is told what is wrong: with the content or the attributes of an entry, or with
	// what lies between entries (""). May be nil.
	Damage func(entry string, d *DamageError)
}

// OpenSalvage opens the archive at path to read all of it that can be read: Next goes on
// behind damage, with the next header that can be found, and does not return it. Only
// reading the content of an entry that is cut off gives a *DamageError. The same file
// gives the same entries each time. What the checksum of a gzip member, or the way over
// a break, leaves in doubt must be held against checksums of the entries' own.
func OpenSalvage(path string, s Salvage) (*Reader, error) {
	return open(path, &mending{s: s})
}

// mending is the state of a salvaging Reader.
type mending struct {
	s      Salvage
	pushed []byte       // plain bytes to read before the rest
	lost   *DamageError // a break that follows after pushed
	record *[]byte      // what is read is kept here too
	read   []byte       // of a header

	tried   int64 // bytes that were read as headers in vain
	hunting bool  // for the next header; the damage is told
	broken  bool  // what is read next follows after a break
	failed  error // of the present entry's content

	// Extended attributes are the one thing that only gzip's checksums protect: these
	// are the entries with some since the last member whose checksum was right.
	tagged      int
	firstTagged string
	lastTagged  int64 // where its header ends in the plain stream
}

func (m *mending) tell(entry string, d *DamageError) {
	if m.s.Damage != nil {
		m.s.Damage(entry, d)
	}
}

// raw is Reader.raw. A *DamageError says that bytes are missing here.
func (m *mending) raw(r *Reader, p []byte) (n int, err error) {
	defer func() {
		if m.record != nil {
			*m.record = append(*m.record, p[:n]...)
		}
	}()
	if len(m.pushed) > 0 {
		n = copy(p, m.pushed)
		m.pushed = m.pushed[n:]
		return n, nil
	}
	if d := m.lost; d != nil {
		m.lost, m.broken = nil, true
		return 0, d
	}
	for len(r.have) == 0 {
		x, err := r.more()
		if err != nil {
			return 0, err
		}
		if x.damage != nil {
			m.doubt(x)
			if x.lost {
				m.broken = true
				return 0, x.damage
			}
			if !m.hunting {
				m.tell("", x.damage)
			}
		} else if x.from > m.lastTagged {
			m.tagged = 0
		}
	}
	n = copy(p, r.have)
	r.have = r.have[n:]
	return n, nil
}

// doubt tells of extended attributes that lie in a member that is not as it was.
func (m *mending) doubt(x plain) {
	if m.tagged > 0 && m.lastTagged >= x.from {
		d := *x.damage
		d.What = fmt.Sprintf("the extended attributes of %d entries from this one on may not be as they were: %s", m.tagged, d.What)
		m.tell(m.firstTagged, &d)
	}
	m.tagged = 0
}

// taken notes an entry that Next gives out.
func (m *mending) taken(r *Reader, h *Header) {
	m.failed = nil
	if len(h.Xattrs) == 0 {
		return
	}
	if m.tagged == 0 {
		m.firstTagged = h.Name
	}
	m.tagged++
	m.lastTagged = r.came - int64(len(r.have)+len(m.pushed)) - 1
}

// broke notes that what was read is no good from here on, and tells whether it can go on.
func (m *mending) broke(r *Reader, entry string, err error) bool {
	var d *DamageError
	if !errors.As(err, &d) || isReadError(err) {
		return false
	}
	r.body, r.pad, r.holes = 0, 0, nil
	m.hunting, m.failed = true, err
	m.tell(entry, d)
	return true
}

func (m *mending) next(r *Reader) (*Header, error) {
	for {
		if !m.hunting {
			h, within, err := m.following(r)
			if err == nil {
				m.taken(r, h)
				return h, nil
			}
			if !m.broke(r, within, err) {
				return nil, err
			}
		}
		x := &hunt{m: m, r: r, zeros: m.broken}
		h, err := x.find()
		if err != nil {
			return nil, err
		}
		m.hunting = false
		if !x.unsure || m.s.Bare(h) {
			m.taken(r, h)
			return h, nil
		}
		r.cur = h
		m.tell(h.Name, &DamageError{r.u.path, r.u.offset.Load(), "what comes before it is lost, and extended attributes of it may be", nil})
	}
}

// following reads the header that comes next; within names the entry whose content is not
// whole.
func (m *mending) following(r *Reader) (h *Header, within string, err error) {
	if r.body > 0 {
		within = r.cur.Name
	}
	if err = r.skip(); err != nil {
		return nil, within, err
	}
	m.read = m.read[:0]
	m.record = &m.read
	h, err = r.header()
	m.record = nil
	if err == io.EOF {
		err = m.trailing(r)
	} else if err != nil {
		m.putBack(m.read[min(1, len(m.read)):], err) // another header may begin in what was none
	}
	return h, "", err
}

// putBack has b read again, and then the break that ended it, if it was one.
func (m *mending) putBack(b []byte, err error) {
	m.pushed = append(bytes.Clone(b), m.pushed...)
	if m.broken {
		m.broken = false
		errors.As(err, &m.lost)
	}
}

// trailing reads what follows after the tar's trailer: io.EOF, if it is the end.
func (m *mending) trailing(r *Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := m.raw(r, buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			m.putBack(buf[:n], nil)
			return r.damage("bytes follow after the tar trailer", nil)
		}
		if err != nil {
			return err
		}
	}
}
