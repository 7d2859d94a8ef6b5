package archive

import (
	"fmt"
	gopath "path"
	"slices"
	"strings"
	"unicode/utf8"
)

// Exclude patterns, as in .gitignore, one a string:
//
//	*.tmp          no slash: the base name, at any depth
//	cache/         a slash at the end: directories only
//	logs/old       a slash within: the path from a configured path on
//	/data1/x/y     a slash at the start: the absolute path
//	**/a, a/**, a/**/b   any number of directories; a/** is all below a, not a itself
//	*  ?  [a-z]  [!a]    within one component: any run, one character, one of, none of
//	!keep.tmp      takes an exclusion back; the last pattern that matches decides
//	\x             the character x itself (\!, \*, \\ …)
//
// An excluded directory is not entered, so nothing below it can be taken back. A
// configured path itself is never excluded. What a configured path leads to through a
// symbolic link is excluded by its real name and by the configured one. Case counts. A character is a UTF-8
// character, or one byte where a name is not UTF-8. "#" and spaces mean themselves.

// CheckPatterns tells the first pattern that is wrong, and what is wrong with it.
func CheckPatterns(patterns []string) error {
	_, err := compilePatterns(patterns)
	return err
}

type pattern struct {
	negate   bool
	dirOnly  bool
	baseOnly bool
	absolute bool
	parts    []string // components; "**" stands for any number of them
}

type patterns []pattern

func compilePatterns(list []string) (patterns, error) {
	out := make(patterns, 0, len(list))
	for i, s := range list {
		p, err := compilePattern(s)
		if err != nil {
			return nil, fmt.Errorf("exclude pattern %d, %q: %w", i+1, s, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func compilePattern(s string) (pattern, error) {
	var p pattern
	if strings.IndexByte(s, 0) >= 0 {
		return p, fmt.Errorf("it has a NUL byte, which no name has")
	}
	if rest, ok := strings.CutPrefix(s, "!"); ok {
		p.negate, s = true, rest
	}
	if s == "" {
		return p, fmt.Errorf("it is empty: remove it")
	}
	// A slash inside [...] cannot be meant: a component never holds one.
	if rest, ok := strings.CutSuffix(s, "/"); ok && !strings.HasSuffix(rest, `\`) {
		p.dirOnly, s = true, rest
	}
	if rest, ok := strings.CutPrefix(s, "/"); ok {
		p.absolute, s = true, rest
	}
	if s == "" {
		return p, fmt.Errorf("it names no file: write ** for all")
	}
	p.parts = strings.Split(s, "/")
	for _, part := range p.parts {
		switch part {
		case "":
			return p, fmt.Errorf("it has two slashes in a row: write one")
		case ".", "..":
			return p, fmt.Errorf("the component %q matches nothing: leave it out", part)
		}
		if err := checkGlob(part); err != nil {
			return p, err
		}
	}
	p.baseOnly = !p.absolute && len(p.parts) == 1 && p.parts[0] != "**"
	return p, nil
}

// checkGlob finds what matchGlob could not read.
func checkGlob(g string) error {
	for g != "" {
		switch g[0] {
		case '\\':
			if len(g) == 1 {
				return fmt.Errorf(`a backslash at the end escapes nothing: write \\ for a backslash`)
			}
			_, n := utf8.DecodeRuneInString(g[1:])
			g = g[1+n:]
		case '[':
			_, rest, err := matchSet(g[1:], 'x')
			if err != nil {
				return err
			}
			g = rest
		default:
			g = g[1:]
		}
	}
	return nil
}

// spot is one name of a thing: its absolute path, and its path below a place.
type spot struct{ abs, rel string }

// spots are the names of a directory below root: the real one, and one for each
// configured path that leads to it or above it through a symbolic link.
func (w *walk) spots(path, root string) []spot {
	below := func(top string) (string, bool) {
		if path == top {
			return "", true
		}
		return strings.CutPrefix(path, strings.TrimSuffix(top, "/")+"/")
	}
	rel, _ := below(root)
	out := []spot{{path, rel}}
	for _, p := range w.places {
		if rel, ok := below(p.real); ok && len(p.way) > 0 {
			out = append(out, spot{strings.TrimSuffix(gopath.Join(p.configured, rel), "/"), rel})
		}
	}
	return out
}

// within are the names of what is called name in the directory of these names.
func within(dir []spot, name string) []spot {
	out := make([]spot, len(dir))
	for i, s := range dir {
		out[i] = spot{strings.TrimSuffix(s.abs, "/") + "/" + name, strings.TrimPrefix(s.rel+"/"+name, "/")}
	}
	return out
}

// excludes tells whether the thing of these names is left out.
func (ps patterns) excludes(names []spot, dir bool) bool {
	out := false
	for i := range ps {
		p := &ps[i]
		if p.negate != out || (p.dirOnly && !dir) {
			continue // would change nothing
		}
		if slices.ContainsFunc(names, p.matches) {
			out = !out
		}
	}
	return out
}

func (p *pattern) matches(s spot) bool {
	switch {
	case p.baseOnly:
		return matchGlob(p.parts[0], gopath.Base(s.rel))
	case p.absolute:
		return matchParts(p.parts, strings.Split(strings.TrimPrefix(s.abs, "/"), "/"))
	}
	return matchParts(p.parts, strings.Split(s.rel, "/"))
}

// matchParts matches components. Greedy with one way back suffices: a later "**"
// makes all choices before it as good as any other.
func matchParts(pat, name []string) bool {
	star, from := -1, 0
	i, j := 0, 0
	for j < len(name) {
		switch {
		case i < len(pat) && pat[i] == "**":
			star, from = i, j
			i++
			if i == len(pat) {
				return true // a/**: all below a, and at least one component is left
			}
		case i < len(pat) && matchGlob(pat[i], name[j]):
			i++
			j++
		case star >= 0:
			from++
			i, j = star+1, from
		default:
			return false
		}
	}
	return i == len(pat)
}

// matchGlob matches one component, in the same way with "*".
func matchGlob(pat, name string) bool {
	star, starName := "", ""
	has := false
	for name != "" {
		if pat != "" && pat[0] == '*' {
			pat = strings.TrimLeft(pat, "*")
			star, starName, has = pat, name, true
			continue
		}
		if rest, n := matchOne(pat, name); n > 0 {
			pat, name = rest, name[n:]
			continue
		}
		if !has {
			return false
		}
		_, n := decodeChar(starName)
		starName = starName[n:]
		pat, name = star, starName
	}
	return strings.TrimLeft(pat, "*") == ""
}

// badByte is how a byte that is not UTF-8 counts as a character: beyond all of them.
const badByte = utf8.MaxRune + 1

func decodeChar(s string) (rune, int) {
	r, n := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && n == 1 {
		return badByte + rune(s[0]), 1
	}
	return r, n
}

// matchOne matches one character: what is left of the pattern, and how many bytes
// of name it took; 0 if it does not match.
func matchOne(pat, name string) (string, int) {
	if pat == "" {
		return "", 0
	}
	c, n := decodeChar(name)
	switch pat[0] {
	case '?':
		return pat[1:], n
	case '[':
		if ok, rest, err := matchSet(pat[1:], c); ok && err == nil {
			return rest, n
		}
		return "", 0
	case '\\':
		pat = pat[1:]
	}
	if r, k := decodeChar(pat); r == c {
		return pat[k:], n
	}
	return "", 0
}

// matchSet reads a set whose "[" was read already.
func matchSet(s string, c rune) (hit bool, rest string, err error) {
	unclosed := fmt.Errorf(`"[" without "]": write \[ for a bracket`)
	negate := false
	if s != "" && (s[0] == '!' || s[0] == '^') {
		negate, s = true, s[1:]
	}
	one := func() (rune, bool) {
		if s != "" && s[0] == '\\' {
			s = s[1:]
		}
		if s == "" {
			return 0, false
		}
		r, n := decodeChar(s)
		s = s[n:]
		return r, true
	}
	for first := true; ; first = false {
		if s == "" {
			return false, "", unclosed
		}
		if s[0] == ']' && !first {
			return hit != negate, s[1:], nil
		}
		lo, ok := one()
		if !ok {
			return false, "", unclosed
		}
		hi := lo
		if len(s) > 1 && s[0] == '-' && s[1] != ']' {
			s = s[1:]
			if hi, ok = one(); !ok {
				return false, "", unclosed
			}
			if hi < lo {
				return false, "", fmt.Errorf("the range %q-%q runs backwards", lo, hi)
			}
		}
		if lo <= c && c <= hi {
			hit = true
		}
	}
}
