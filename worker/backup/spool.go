package backup

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"

	"catalog-backup/shared/set"
)

// spool keeps the list of files on disk while it grows: a million of them must
// not fill the worker's memory.
type spool struct {
	f     *os.File
	w     *bufio.Writer
	r     *bufio.Reader
	lines int64
	at    int64          // line that next gives
	last  map[name]int64 // of the paths that were stored anew: the line that counts
	count int64
	bytes int64
	holes int64
}

// name is a path of any bytes, as the manifest has it.
type name struct{ Path, PathBytes string }

func newSpool(path string) (*spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &spool{f: f, w: bufio.NewWriterSize(f, 1<<20), last: map[name]int64{}}, nil
}

func (s *spool) add(f set.File) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	s.lines++
	s.tally(&f, 1)
	_, err = s.w.Write(append(b, '\n'))
	return err
}

// replace adds a file in the place of an earlier one of the same path, if there is one.
func (s *spool) replace(f set.File) error {
	s.last[name{f.Path, f.PathBytes}] = s.lines
	return s.add(f)
}

func (s *spool) tally(f *set.File, sign int64) {
	s.count += sign
	if f.Kind == "file" {
		s.bytes += sign * f.Size
		s.holes += sign * f.Holes
	}
}

// settle takes what was replaced out of the counts.
func (s *spool) settle() error {
	if len(s.last) == 0 {
		return nil
	}
	if err := s.rewind(); err != nil {
		return err
	}
	for ; s.at < s.lines; s.at++ {
		line, err := s.r.ReadBytes('\n')
		if err != nil {
			return err
		}
		var f set.File
		if err := json.Unmarshal(line, &f); err != nil {
			return err
		}
		if !s.counts(&f, s.at) {
			s.tally(&f, -1)
		}
	}
	_, err := s.f.Seek(0, io.SeekEnd)
	return err
}

func (s *spool) rewind() error {
	if err := s.w.Flush(); err != nil {
		return err
	}
	_, err := s.f.Seek(0, io.SeekStart)
	s.r, s.at = bufio.NewReaderSize(s.f, 1<<20), 0
	return err
}

// next gives one entry's JSON, io.EOF after the last.
func (s *spool) next() ([]byte, error) {
	for {
		line, err := s.r.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil, io.EOF
		}
		if err != nil {
			return nil, err
		}
		at := s.at
		s.at++
		if len(s.last) == 0 {
			return line[:len(line)-1], nil
		}
		var f set.File
		if err := json.Unmarshal(line, &f); err != nil {
			return nil, err
		}
		if s.counts(&f, at) {
			return line[:len(line)-1], nil
		}
	}
}

// counts tells whether the file on line at was not replaced by a later one.
func (s *spool) counts(f *set.File, at int64) bool {
	last, ok := s.last[name{f.Path, f.PathBytes}]
	return !ok || last == at
}

func (s *spool) Close() error { return s.f.Close() }
