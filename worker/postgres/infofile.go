package postgres

import (
	"bufio"
	"bytes"
	"crypto/sha1" // pgBackRest's format, not a choice of ours
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
)

// maxInfoLine bounds one line of an info file. A line holds one file's entry;
// the longest are lists of bad pages.
const maxInfoLine = 32 << 20

// maxInfoKey bounds a key: a file's path.
const maxInfoKey = 16 << 10

// errInfo is damage of the file itself, as against an error in reading it.
type errInfo struct{ problem string }

func (e errInfo) Error() string { return e.problem }

func infoErrorf(format string, args ...any) error { return errInfo{fmt.Sprintf(format, args...)} }

// readInfo reads one of pgBackRest's info files (backup.info, archive.info,
// backup.manifest): INI with JSON values, and calls emit for every value in
// order. It checks the file's own checksum: the SHA-1 over
// {"section":{"key":value,…},…} in the file's order and spelling, without the
// checksum itself (pgBackRest, src/info/info.c, infoLoadCallback; format 5).
// Damage is an errInfo; errors of r and of emit are returned as they are.
func readInfo(r io.Reader, emit func(section, key string, value []byte) error) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	sum := newInfoSum()
	var section, recorded string
	format := ""
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) && len(line) == 0 {
			break
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(line) == 0 {
			continue
		}
		if line[0] == '[' && line[len(line)-1] == ']' {
			section = string(line[1 : len(line)-1])
			continue
		}
		key, value, ok := splitInfoLine(line)
		if !ok || section == "" {
			return infoErrorf("line %d is not of the form key=value", n)
		}
		if section == "backrest" && key == "backrest-checksum" {
			if json.Unmarshal(value, &recorded) != nil {
				return infoErrorf("its own checksum is not readable")
			}
			continue
		}
		if section == "backrest" && key == "backrest-format" {
			format = string(value)
		}
		sum.add(section, key, value)
		if err := emit(section, key, value); err != nil {
			return err
		}
	}
	switch got := sum.hex(); {
	case recorded == "":
		return infoErrorf("it ends without its own checksum: cut short")
	case recorded != got:
		return infoErrorf("its own checksum is wrong: it says %s, its content gives %s", recorded, got)
	case format != "5":
		return infoErrorf("it has pgBackRest's format %q, only 5 is known", format)
	}
	return nil
}

// readLine reads up to a newline, which it drops. A last line without one comes
// with io.EOF.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err == nil {
		return line[:len(line)-1], nil
	}
	full := bytes.Clone(line)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(full) > maxInfoLine {
			return nil, infoErrorf("a line is longer than %d bytes", maxInfoLine)
		}
		line, err = r.ReadSlice('\n')
		full = append(full, line...)
	}
	if err == nil {
		full = full[:len(full)-1]
	}
	return full, err
}

// splitInfoLine splits at the first = after which valid JSON follows, since a
// key (a file's name) may contain =.
func splitInfoLine(line []byte) (key string, value []byte, ok bool) {
	for at := 0; at < maxInfoKey; {
		i := bytes.IndexByte(line[at:], '=')
		if i < 0 {
			return "", nil, false
		}
		at += i
		if at > 0 && json.Valid(line[at+1:]) {
			return string(line[:at]), line[at+1:], true
		}
		at++
	}
	return "", nil, false
}

// infoSum computes the checksum of an info file.
type infoSum struct {
	hash    hash.Hash
	section string
	begun   bool
}

func newInfoSum() *infoSum {
	s := &infoSum{hash: sha1.New()}
	s.write("{")
	return s
}

func (s *infoSum) write(text string) { io.WriteString(s.hash, text) }

func (s *infoSum) add(section, key string, value []byte) {
	switch {
	case !s.begun:
		s.write(`"` + section + `":{`)
	case section != s.section:
		s.write(`},"` + section + `":{`)
	default:
		s.write(",")
	}
	s.begun, s.section = true, section
	s.write(`"` + infoEscape.Replace(key) + `":`)
	s.hash.Write(value)
}

func (s *infoSum) hex() string {
	s.write("}}")
	return hex.EncodeToString(s.hash.Sum(nil))
}

// infoEscape writes a key as pgBackRest's JSON writer does (src/common/type/json.c):
// these and nothing else are escaped.
var infoEscape = strings.NewReplacer(
	`"`, `\"`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`, "\b", `\b`, "\f", `\f`)
