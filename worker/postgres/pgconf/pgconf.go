// Package pgconf reads postgresql.conf as the server reads it: by the lexical
// rules of PostgreSQL's src/backend/utils/misc/guc-file.l, which are the same
// from 10 to 18. A token never spans lines, so a file is read line by line.
package pgconf

import "strings"

// Kind is what a line is to the server.
type Kind int

// Kinds of lines.
const (
	Blank   Kind = iota // nothing, or only a comment
	Setting             // a setting or an include directive
	Invalid             // the server would not start with it
)

// Line is one line, read.
type Line struct {
	Kind  Kind
	Name  string // in lower case: the server does not tell cases apart
	Value string // without quotes and escapes
}

// Lines cuts a file into its lines. Only a line feed ends one: a carriage return
// is white space to the server. Joined by "\n" they are the file again.
func Lines(content string) []string { return strings.Split(content, "\n") }

// Parse reads one line: a name, an equal sign that may be left out, a value, and
// nothing else but white space and a comment.
func Parse(line string) Line {
	if strings.ContainsRune(line, 0) {
		return Line{Kind: Invalid} // C's strings would end there; no editor writes it
	}
	s := scanner{rest: line}
	kind, name := s.next()
	switch kind {
	case end:
		return Line{Kind: Blank}
	case id, qualifiedID:
	default:
		return Line{Kind: Invalid}
	}
	kind, value := s.next()
	if kind == equals {
		kind, value = s.next()
	}
	switch kind {
	case quoted:
		value = unquote(value)
	case id, bare, number:
	default: // a value such as a.b must be quoted: it is a qualified name to the lexer
		return Line{Kind: Invalid}
	}
	if kind, _ := s.next(); kind != end {
		return Line{Kind: Invalid}
	}
	return Line{Kind: Setting, Name: lower(name), Value: value}
}

// Quote gives a setting's line.
func Quote(name, value string) string {
	return name + " = '" + strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(value) + "'"
}

type token int

const (
	end token = iota
	id
	qualifiedID
	quoted
	bare // UNQUOTED_STRING
	number
	equals
	wrong
)

// scanner gives the tokens of one line, the longest match each; where two are as
// long, the one that guc-file.l lists first.
type scanner struct{ rest string }

func (s *scanner) next() (token, string) {
	s.rest = strings.TrimLeft(s.rest, " \t\r")
	if s.rest == "" || s.rest[0] == '#' {
		return end, ""
	}
	kind, n := s.longest()
	text := s.rest[:n]
	s.rest = s.rest[n:]
	return kind, text
}

func (s *scanner) longest() (token, int) {
	c := s.rest[0]
	switch {
	case c == '=':
		return equals, 1
	case c == '\'':
		if n := quotedLen(s.rest); n > 0 {
			return quoted, n
		}
	case letter(c):
		plain := run(s.rest, 0, letterOrDigit)
		qualified := 0
		if plain+1 < len(s.rest) && s.rest[plain] == '.' && letter(s.rest[plain+1]) {
			qualified = run(s.rest, plain+1, letterOrDigit)
		}
		free := run(s.rest, 0, func(c byte) bool { return letterOrDigit(c) || strings.IndexByte("-._:/", c) >= 0 })
		switch {
		case free > max(plain, qualified):
			return bare, free
		case qualified > 0:
			return qualifiedID, qualified
		}
		return id, plain
	default:
		if n := max(integerLen(s.rest), realLen(s.rest)); n > 0 {
			return number, n
		}
	}
	return wrong, 1
}

// quotedLen is the length of \'([^'\\\n]|\\.|\'\')*\' at the beginning of s, 0 if
// there is none.
func quotedLen(s string) int {
	found := 0
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '\'':
			found = i + 1
			if i+1 == len(s) || s[i+1] != '\'' {
				return found
			}
			i++
		}
	}
	return found
}

// integerLen is the length of {SIGN}?({DIGIT}+|0x{HEXDIGIT}+){UNIT_LETTER}*.
func integerLen(s string) int {
	from := sign(s)
	to := run(s, from, digit)
	if to == from {
		return 0
	}
	to = run(s, to, asciiLetter)
	if strings.HasPrefix(s[from:], "0x") {
		if hex := run(s, from+2, hexDigit); hex > from+2 {
			to = max(to, run(s, hex, asciiLetter))
		}
	}
	return to
}

// realLen is the length of {SIGN}?{DIGIT}*"."{DIGIT}*([Ee]{SIGN}?{DIGIT}+)?.
func realLen(s string) int {
	to := run(s, sign(s), digit)
	if to == len(s) || s[to] != '.' {
		return 0
	}
	to = run(s, to+1, digit)
	if to < len(s) && (s[to] == 'e' || s[to] == 'E') {
		from := to + 1 + sign(s[to+1:])
		if exponent := run(s, from, digit); exponent > from {
			return exponent
		}
	}
	return to
}

// unquote takes quotes and escapes away, as DeescapeQuotedString of guc-file.l
// (GUC_scanstr) does. A \0 ends the value there.
func unquote(s string) string {
	var b strings.Builder
	s = s[1 : len(s)-1]
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\'':
			i++ // of two, one
		case c == '\\':
			i++
			switch c = s[i]; c {
			case 'b':
				c = '\b'
			case 'f':
				c = '\f'
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			case '0', '1', '2', '3', '4', '5', '6', '7':
				v := 0
				for k := 0; k < 3 && i < len(s) && s[i] >= '0' && s[i] <= '7'; k++ {
					v = v<<3 + int(s[i]-'0')
					i++
				}
				i--
				c = byte(v)
			}
		}
		if c == 0 {
			break
		}
		b.WriteByte(c)
	}
	return b.String()
}

// run is the index of the first byte of s from i on that is none of those.
func run(s string, i int, of func(byte) bool) int {
	for i < len(s) && of(s[i]) {
		i++
	}
	return i
}

func sign(s string) int {
	if s != "" && (s[0] == '-' || s[0] == '+') {
		return 1
	}
	return 0
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func hexDigit(c byte) bool { return digit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }

func asciiLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// letter counts the bytes of other alphabets too.
func letter(c byte) bool { return asciiLetter(c) || c == '_' || c >= 0x80 }

func letterOrDigit(c byte) bool { return letter(c) || digit(c) }

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
