package main

import (
	"fmt"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
)

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
	words := exit.Size(*r.BytesDone)
	if r.BytesTotal != nil {
		words += " of " + exit.Size(*r.BytesTotal)
	}
	if f, ok := fraction(r); ok {
		words += fmt.Sprintf(" (%.0f%%)", 100*f)
	}
	if r.Rate != nil {
		words += ", " + exit.Size(*r.Rate) + "/s"
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
