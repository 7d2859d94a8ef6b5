package archive

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// badDisk is a file on a disk that cannot read some of its sectors.
type badDisk struct {
	*os.File
	bad func(sector int64) error
}

func (d badDisk) ReadAt(p []byte, at int64) (int, error) {
	for pos := at - at%sector; pos < at+int64(len(p)); pos += sector {
		if err := d.bad(pos / sector); err != nil {
			n, _ := d.File.ReadAt(p[:max(0, pos-at)], at)
			return n, &os.PathError{Op: "read", Path: d.Name(), Err: err}
		}
	}
	return d.File.ReadAt(p, at)
}

func (s *salvageSource) onDisk(t *testing.T, content []byte) *os.File {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	return f
}

// What lies in sectors that a disk cannot read is zeros; all else is read as ever.
func TestSectorsThatCannotBeRead(t *testing.T) {
	s := newSalvageSource(t)
	r := rand.New(rand.NewPCG(3, 4))
	sectors := (int64(len(s.raw)) + sector - 1) / sector
	for range 40 {
		from := r.Int64N(sectors)
		to := min(sectors, from+1+r.Int64N(5))
		disk := badDisk{s.onDisk(t, s.raw), func(n int64) error {
			if n >= from && n < to {
				return unix.EIO
			}
			return nil
		}}
		what := fmt.Sprintf("sectors %d to %d of %d", from, to, sectors)
		x := &Reader{u: unpack("a", disk, true), mend: &mending{s: Salvage{Fits: func(h, _ *Header) bool { _, ok := s.byName[h.Name]; return ok }, Bare: func(*Header) bool { return false }}}}
		got := map[string]string{}
		for {
			h, err := x.Next()
			if err == io.EOF {
				break
			}
			require.NoError(t, err, what)
			if text, err := io.ReadAll(x.Data()); err == nil {
				got[h.Name] = string(text)
			}
		}
		sum, err := x.Finish()
		require.NoError(t, err, what)
		require.Equal(t, int64(len(s.raw)), sum.Size, what)
		n, err := x.Unread()
		require.ErrorIs(t, err, unix.EIO, what)
		require.Equal(t, (to-from)*sector, n, what)
		require.NoError(t, x.Close())

		zeroed := bytes.Clone(s.raw)
		clear(zeroed[from*sector : min(to*sector, int64(len(zeroed)))])
		_, content, _ := salvaged(t, zeroed, s.byName)
		require.Equal(t, content, got, what)
	}
}

// Anything but a sector that is bad may be over at the next try, and is an error; so is
// a bad sector for a reader that does not salvage.
func TestReadErrorsThatAreNone(t *testing.T) {
	s := newSalvageSource(t)
	for salvage, errno := range map[bool]unix.Errno{true: unix.ESTALE, false: unix.EIO} {
		disk := badDisk{s.onDisk(t, s.raw), func(n int64) error {
			if n == 7 {
				return errno
			}
			return nil
		}}
		x := &Reader{u: unpack("a", disk, salvage)}
		if salvage {
			x.mend = &mending{}
		}
		var err error
		for err == nil {
			if _, err = x.Next(); err == nil {
				_, err = io.Copy(io.Discard, x.Data())
			}
		}
		require.ErrorIs(t, err, errno)
		_, err = x.Finish()
		require.ErrorIs(t, err, errno)
		_, err = x.Unread()
		require.NoError(t, err)
		require.NoError(t, x.Close())
	}
}
