package instructions

import (
	"bytes"
	"encoding/json"
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

// scalars are the fields of v that are one value, in their order, as its JSON names
// them: what a later version records besides is told as well.
func scalars(v any) [][2]string {
	text, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	_, _ = d.Token()
	var out [][2]string
	for d.More() {
		key, _ := d.Token()
		var value any
		if d.Decode(&value) != nil {
			break
		}
		name, _ := key.(string)
		switch value := value.(type) {
		case string, json.Number, bool:
			if text := fmt.Sprint(value); text != "" {
				out = append(out, [2]string{name, text})
			}
		}
	}
	return out
}
