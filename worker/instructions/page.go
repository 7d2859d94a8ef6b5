package instructions

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// width is the longest line of the text; names and commands longer than that stay whole.
const width = 80

// page is a text that grows line by line.
type page struct{ b strings.Builder }

func (p *page) blank() { p.b.WriteByte('\n') }

// head begins a section.
func (p *page) head(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(&p.b, "\n%s\n%s\n", text, strings.Repeat("-", len(text)))
}

// say writes a paragraph, its lines after the first under the text of the first.
func (p *page) say(format string, args ...any) { p.wrap("", "", fmt.Sprintf(format, args...)) }

// item is one of a list.
func (p *page) item(format string, args ...any) { p.wrap("- ", "  ", fmt.Sprintf(format, args...)) }

// fact is a name and what it is.
func (p *page) fact(name, format string, args ...any) {
	p.wrap(fmt.Sprintf("  %-20s ", name), strings.Repeat(" ", 23), fmt.Sprintf(format, args...))
}

// command is a line to type. One that is too long goes on in the next, between words.
func (p *page) command(format string, args ...any) {
	line := "    " + fmt.Sprintf(format, args...)
	for utf8.RuneCountInString(line) > width {
		at := strings.LastIndexByte(line[:width-1], ' ')
		if strings.TrimSpace(line[:max(at, 0)]) == "" {
			break
		}
		p.b.WriteString(line[:at] + " \\\n")
		line = "      " + line[at+1:]
	}
	p.b.WriteString(line + "\n")
}

func (p *page) wrap(first, next, text string) {
	line, empty := first, true
	for _, word := range strings.Fields(printable(text)) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			p.b.WriteString(strings.TrimRight(line, " ") + "\n")
			line, empty = next, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	p.b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// printable keeps what came from outside from acting on a terminal. Broken UTF-8 and
// what does not show becomes a question mark; the manifest has the name as it is.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r == utf8.RuneError || !unicode.IsGraphic(r) {
			return '?'
		}
		return r
	}, s)
}
