package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"catalog-backup/shared/run"
)

// printable makes a text that came from outside safe for a terminal and one line
// long: control characters and broken UTF-8 are shown as escapes.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n' || r == '\r' || r == '\t':
			b.WriteByte(' ')
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// size writes a number of bytes in binary units.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v := float64(n)
	u := -1
	for v >= 1024 && u < len(units)-1 {
		v /= 1024
		u++
	}
	if v >= 100 {
		return fmt.Sprintf("%.0f %s", v, units[u])
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

// span writes a length of time in its two leading units.
func span(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	s := int64(d / time.Second)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s%86400/3600)
}

// fraction is how much of the stage is done, 0 to 1; false where that is unknown.
func fraction(r run.Record) (float64, bool) {
	if r.BytesDone == nil || r.BytesTotal == nil || *r.BytesTotal <= 0 {
		return 0, false
	}
	return min(1, max(0, float64(*r.BytesDone)/float64(*r.BytesTotal))), true
}

// left is how long the stage will still take at its rate; false where that is unknown.
func left(r run.Record) (time.Duration, bool) {
	if _, ok := fraction(r); !ok || r.Rate == nil || *r.Rate <= 0 {
		return 0, false
	}
	s := float64(max(0, *r.BytesTotal-*r.BytesDone)) / float64(*r.Rate)
	const most = 1000 * 24 * 3600
	return time.Duration(min(s, most) * float64(time.Second)), s < most
}

// progress puts bytes, percent, rate and ETA of the stage into words; "" where nothing is known.
func progress(r run.Record) string {
	if r.BytesDone == nil {
		return ""
	}
	words := size(*r.BytesDone)
	if r.BytesTotal != nil {
		words += " of " + size(*r.BytesTotal)
	}
	if f, ok := fraction(r); ok {
		words += fmt.Sprintf(" (%.0f%%)", 100*f)
	}
	if r.Rate != nil {
		words += ", " + size(*r.Rate) + "/s"
	}
	if d, ok := left(r); ok {
		words += ", ETA " + span(d)
	}
	return words
}

// optional turns a text that may be missing into what JSON shows of it.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// array makes JSON show an empty array, never null.
func array(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
