package set

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Stream reads a manifest's text one file at a time, so that a long list need not
// be in memory. It takes the fields in any order and any form of JSON.
type Stream struct {
	d      *json.Decoder
	head   bytes.Buffer // the text without the files
	whole  int          // bytes of head up to the end of the last whole field of the manifest
	in     place
	first  bool // no field of the present object has been read
	listed bool
}

// place is where in the text a Stream is.
type place int

const (
	atStart place = iota
	inManifest
	inFiles // the object that has the list
	inList
	atEnd
)

// NewStream reads the manifest that r gives.
func NewStream(r io.Reader) *Stream { return &Stream{d: json.NewDecoder(r)} }

// Next gives the JSON of the next file, good until the next call; io.EOF once the
// whole text was read. Any other error says that it is no manifest, or is r's.
func (s *Stream) Next() (json.RawMessage, error) {
	for {
		var file json.RawMessage
		var err error
		switch s.in {
		case atStart:
			err = s.begin()
		case inManifest, inFiles:
			err = s.field()
		case inList:
			if s.d.More() {
				err = s.d.Decode(&file)
				break
			}
			_, err = s.d.Token()
			s.in = inFiles
		case atEnd:
			if _, err = s.d.Token(); err == nil {
				err = errors.New("more follows behind its end")
			} else if err == io.EOF {
				return nil, io.EOF
			}
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil || file != nil {
			return file, err
		}
	}
}

// Head is the text without the files: all of it once Next has given io.EOF; after
// an error the fields that were whole.
func (s *Stream) Head() []byte {
	if s.in == atEnd {
		return s.head.Bytes()
	}
	return append(append([]byte{}, s.head.Bytes()[:s.whole]...), '}')
}

func (s *Stream) begin() error {
	t, err := s.d.Token()
	if err == nil && t != json.Delim('{') {
		err = errors.New("it is no JSON object")
	}
	s.open(inManifest)
	s.whole = s.head.Len()
	return err
}

func (s *Stream) open(in place) {
	s.head.WriteByte('{')
	s.in, s.first = in, true
}

// field reads one field of the manifest or of its part `files`, or its end.
func (s *Stream) field() error {
	if !s.d.More() {
		return s.end()
	}
	t, err := s.d.Token()
	key, ok := t.(string)
	if err != nil || !ok {
		return errors.Join(err, errors.New("a field has no name"))
	}
	name, err := json.Marshal(key)
	if err != nil {
		return err
	}
	if !s.first {
		s.head.WriteByte(',')
	}
	s.first = false
	s.head.Write(append(name, ':'))
	// As encoding/json finds fields: whatever the case.
	if s.in == inManifest && strings.EqualFold(key, "files") {
		return s.enter('{', key, func() { s.open(inFiles) })
	}
	if s.in == inFiles && strings.EqualFold(key, "entries") {
		return s.enter('[', key, func() {
			s.head.WriteString("[]")
			s.in = inList
		})
	}
	var value json.RawMessage
	if err := s.d.Decode(&value); err != nil {
		return err
	}
	s.head.Write(value)
	s.fieldEnds()
	return nil
}

func (s *Stream) fieldEnds() {
	if s.in == inManifest {
		s.whole = s.head.Len()
	}
}

// enter goes into the object or list that the field has, or takes null.
func (s *Stream) enter(open json.Delim, key string, into func()) error {
	t, err := s.d.Token()
	switch {
	case err != nil:
		return err
	case t == nil:
		s.head.WriteString("null")
		s.fieldEnds()
		return nil
	case t != open:
		return fmt.Errorf("%q is not what it should be", key)
	case open == '[' && s.listed:
		return errors.New("it lists its files twice")
	}
	s.listed = s.listed || open == '['
	into()
	return nil
}

// end closes the present object.
func (s *Stream) end() error {
	if _, err := s.d.Token(); err != nil {
		return err
	}
	s.head.WriteByte('}')
	if s.in == inManifest {
		s.in = atEnd
		return nil
	}
	s.in, s.first = inManifest, false
	s.fieldEnds()
	return nil
}

// ScanManifest reads and checks a manifest; from says whence for errors. Its files go
// to each, one after the other, and are not kept: Files.Entries stays empty. each
// may be nil. A list before a head that is refused has been given to each by then. Of a
// manifest of another version, ErrUnknownVersion, what it is of is given with the error.
func ScanManifest(r io.Reader, from string, each func(*File) error) (*Manifest, error) {
	s := NewStream(io.LimitReader(r, maxManifest))
	err := eachFile(s, each)
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if bad := json.Unmarshal(s.Head(), &head); err == nil {
		err = bad
	}
	switch {
	case err != nil && (head.Format != FormatName || head.Version == FormatVersion || head.Version == 0):
		return nil, fmt.Errorf("read manifest %s: it is damaged or no manifest: %w", from, err)
	case head.Format != FormatName:
		return nil, fmt.Errorf("read manifest %s: its format is %q, not %q: this is no manifest of a backup set", from, head.Format, FormatName)
	case head.Version != FormatVersion:
		return laterManifest(s.Head(), head.Version), fmt.Errorf("read manifest %s: %w %d, this program knows %d: use the catalog-backup that made the set, or a newer one", from, ErrUnknownVersion, head.Version, FormatVersion)
	}
	m := &Manifest{}
	if err := json.Unmarshal(s.Head(), m); err != nil {
		return nil, fmt.Errorf("read manifest %s: it is damaged: %w", from, err)
	}
	return m, m.check(from)
}

// laterManifest is what a manifest of any version says of whose it is.
func laterManifest(text []byte, version int) *Manifest {
	m := &Manifest{Format: FormatName, Version: version}
	fields := map[string]json.RawMessage{}
	_ = json.Unmarshal(text, &fields)
	for name, into := range map[string]*string{"set": &m.Set, "run": &m.Run, "instance": &m.Instance, "node": &m.Node} {
		_ = json.Unmarshal(fields[name], into)
	}
	return m
}

func eachFile(s *Stream, each func(*File) error) error {
	var failed error
	for {
		text, err := s.Next()
		if err == io.EOF {
			return failed
		}
		if err != nil {
			return errors.Join(failed, err)
		}
		if each == nil || failed != nil {
			continue // the version, which may explain it, is still to come
		}
		f := &File{}
		if failed = json.Unmarshal(text, f); failed == nil {
			failed = each(f)
		}
	}
}
