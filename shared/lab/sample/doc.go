// Package sample makes data to back up, and compares what a restore gave with it:
// for the demo and the bench. No product binary links it.
//
// The comparisons take nothing from the product but the set's manifest: rows are
// read by SQL, records by an ordinary consumer, files by lstat and read.
package sample

import (
	"fmt"
	"sort"
)

// maxDifferences bounds what one comparison lists.
const maxDifferences = 10

// Differences gives what two descriptions, by name, do not share: one line each.
func Differences(source, restored map[string]string) []string {
	var names []string
	for name := range source {
		names = append(names, name)
	}
	for name := range restored {
		if _, ok := source[name]; !ok {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	var out []string
	for _, name := range names {
		a, inSource := source[name]
		b, inRestored := restored[name]
		switch {
		case a == b && inSource == inRestored:
			continue
		case !inRestored:
			out = append(out, fmt.Sprintf("%q is missing", name))
		case !inSource:
			out = append(out, fmt.Sprintf("%q is not in the source", name))
		default:
			out = append(out, fmt.Sprintf("%q is %s, not %s", name, b, a))
		}
		if len(out) == maxDifferences {
			return append(out, "…")
		}
	}
	return out
}
