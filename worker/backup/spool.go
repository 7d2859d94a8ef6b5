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
	count int64
	bytes int64
}

func newSpool(path string) (*spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &spool{f: f, w: bufio.NewWriterSize(f, 1<<20)}, nil
}

func (s *spool) add(f set.File) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	s.count++
	if f.Kind == "file" {
		s.bytes += f.Size
	}
	_, err = s.w.Write(append(b, '\n'))
	return err
}

func (s *spool) rewind() error {
	if err := s.w.Flush(); err != nil {
		return err
	}
	_, err := s.f.Seek(0, io.SeekStart)
	s.r = bufio.NewReaderSize(s.f, 1<<20)
	return err
}

// next gives one entry's JSON, io.EOF after the last.
func (s *spool) next() ([]byte, error) {
	line, err := s.r.ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) == 0 {
		return nil, io.EOF
	}
	if err != nil {
		return nil, err
	}
	return line[:len(line)-1], nil
}

func (s *spool) Close() error { return s.f.Close() }
