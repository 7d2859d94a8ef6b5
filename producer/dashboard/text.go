package dashboard

import (
	"bytes"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
)

func printable(s string) string { return exit.Printable(s) }

// plain shows control and formatting characters and broken UTF-8 in a finished page as
// escapes. Texts from outside are escaped by html/template; this takes what it leaves:
// characters that turn the direction of the text, or hide in it.
func plain(page []byte) []byte {
	out := bytes.NewBuffer(make([]byte, 0, len(page)))
	for i := 0; i < len(page); {
		r, n := utf8.DecodeRune(page[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(out, `\x%02x`, page[i])
		case r == '\n':
			out.WriteByte('\n')
		case r == '\r' || r == '\t':
			out.WriteByte(' ')
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
			fmt.Fprintf(out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
		i += n
	}
	return out.Bytes()
}

// clock writes an instant for people.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// stampOf writes an instant for <time datetime>.
func stampOf(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// ago says how long before now t was.
func ago(now, t time.Time) string {
	if d := now.Sub(t); d > 0 {
		return standing.Span(d) + " ago"
	}
	return "now"
}
