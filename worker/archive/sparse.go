package archive

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// mostExtents bounds the map of a sparse file. A file in more pieces has its small
// holes stored as zeros.
const mostExtents = 32 << 10

// mayHaveHoles tells whether it is worth to look for holes. Fewer blocks than bytes
// can also mean a file system that compresses.
func mayHaveHoles(st *unix.Stat_t) bool {
	return st.Size > smallEntry && st.Blocks*512 < st.Size
}

// sparseExtents finds where a file of the given size has data. nil, if it has no holes
// or the file system cannot tell.
func sparseExtents(f *os.File, size int64) ([]Extent, error) {
	fd := int(f.Fd())
	list := []Extent{}
	var data int64
	minHole := int64(4096)
	for at := int64(0); at < size; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO || (err == nil && start >= size) {
			break // a hole to the end
		}
		if err != nil {
			return nil, nil // EINVAL: it cannot tell; real faults show when the data is read
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return nil, nil
		}
		end = min(end, size)
		if end <= start {
			break // it is being changed at this moment; the check after reading will see that
		}
		list = append(list, Extent{start, end - start})
		data += end - start
		at = end
		for len(list) > mostExtents {
			minHole *= 2
			list = mergeExtents(list, minHole)
		}
	}
	if data == size {
		return nil, nil
	}
	if n := len(list); n == 0 || list[n-1].Offset+list[n-1].Length < size {
		list = append(list, Extent{size, 0}) // as GNU tar does: a hole at the end
	}
	return list, nil
}

// mergeExtents joins what lies less than minHole apart.
func mergeExtents(list []Extent, minHole int64) []Extent {
	out := list[:1]
	for _, e := range list[1:] {
		last := &out[len(out)-1]
		if e.Offset-(last.Offset+last.Length) < minHole {
			last.Length = e.Offset + e.Length - last.Offset
			continue
		}
		out = append(out, e)
	}
	return out
}

// expander turns the data of extents into the file with its holes.
type expander struct {
	data io.Reader
	list []Extent
	at   int64
	size int64
}

func (x *expander) Read(p []byte) (int, error) {
	for len(x.list) > 0 && x.at == x.list[0].Offset+x.list[0].Length {
		x.list = x.list[1:]
	}
	if x.at == x.size {
		return 0, io.EOF
	}
	next := x.size
	if len(x.list) > 0 {
		next = x.list[0].Offset
	}
	if x.at < next {
		n := int(min(int64(len(p)), next-x.at))
		clear(p[:n])
		x.at += int64(n)
		return n, nil
	}
	n, err := x.data.Read(p[:min(int64(len(p)), x.list[0].Offset+x.list[0].Length-x.at)])
	x.at += int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
