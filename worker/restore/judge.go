package restore

import (
	"fmt"
	"slices"
	"strings"

	"catalog-backup/shared/set"
)

// partOf is the part of a set that an entry of an archive belongs to; "" for none.
func partOf(entry string) string {
	switch {
	case under(entry, set.PostgresRepo), under(entry, set.PostgresConfig):
		return PostgresPart
	case under(entry, set.FilesPrefix):
		return FilesPart
	case under(entry, set.EventBusPrefix):
		return EventBusPart
	}
	return ""
}

// forbids tells whether d keeps part from being restored. What is wrong with an archive
// as a whole does not: its size, its SHA-256, its copy of the manifest, entries of no
// part. Every entry of a part is held against checksums of its own, and what is
// missing for such a damage is a finding of the part that misses it.
func (d Damage) forbids(part string) bool {
	if d.Restorable {
		return false
	}
	return d.Part == part || d.Part == "" && d.Archive == ""
}

// judge splits what was found by what it means for a restore of parts: those that
// forbid it, and those that it only warns of. whole are the parts that nothing forbids.
func judge(found []Damage, parts []string) (against, beside []Damage, whole []string) {
	for _, d := range found {
		if slices.ContainsFunc(parts, d.forbids) {
			against = append(against, d)
		} else {
			beside = append(beside, d)
		}
	}
	for _, p := range parts {
		if !slices.ContainsFunc(against, func(d Damage) bool { return d.forbids(p) }) {
			whole = append(whole, p)
		}
	}
	return against, beside, whole
}

// mostWarnings bounds the findings that a restore names among its warnings.
const mostWarnings = 100

// warnOf says in the result what a restore goes on in spite of. total counts all of
// what was found.
func (j *job) warnOf(beside []Damage, total int) {
	for i, d := range beside {
		if i == mostWarnings {
			break
		}
		why := "the set is damaged"
		switch {
		case d.Restorable:
			why = "restored as it was backed up, which is not as it should be"
		case d.Part != "":
			why += " in its part " + d.Part + ", which was not asked for"
		default:
			why += ", not in what was asked for"
		}
		j.result.Warnings = append(j.result.Warnings, fmt.Sprintf("%s: %s", why, d))
	}
	if more := total - min(len(beside), mostWarnings); more > 0 {
		j.result.Warnings = append(j.result.Warnings, plural("the set is damaged: ", int64(more), " more finding")+" (`worker verify` names them)")
	}
}

// remedy says what can be done where some of the wanted parts are damaged.
func remedy(whole []string) string {
	if len(whole) == 0 {
		return "nothing was written: restore another set (`worker verify` names all damage)"
	}
	return fmt.Sprintf("nothing was written: restore another set, or restore the rest by --only %s (`worker verify` names all damage)", strings.Join(whole, ","))
}
