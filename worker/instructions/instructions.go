// Package instructions writes what a set carries for somebody who has nothing but
// its files: a text that says what the set holds and each command to restore it, and
// a script that does it without this program. Both are made of the manifest alone,
// and hold what is in it: no secret.
package instructions

import (
	"cmp"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"catalog-backup/shared/set"
)

//go:embed restore.sh
var program string

// valuesMark is the line of the program that the set's values take the place of.
const valuesMark = "#VALUES#\n"

var settingRE = regexp.MustCompile(`^[a-z_]+$`)

// Script is the program that restores the set with sha256sum, tar, gzip and pgBackRest.
// What comes from the manifest is data in it: quoted, and never part of a command.
func Script(m *set.Manifest) []byte {
	var b strings.Builder
	value := func(name, v string) { fmt.Fprintf(&b, "readonly %s=%s\n", name, quote(v)) }
	number := func(name string, n int64) { fmt.Fprintf(&b, "readonly %s=%d\n", name, n) }
	n := needOf(m)
	value("ID", m.Set)
	value("PARTS", strings.Join(m.Parts(), " "))
	number("NEED_POSTGRES", n.postgres)
	number("NEED_FILES", n.files)
	number("NEED_EVENTBUS", n.eventbus)
	value("DISCARDED", strings.Join(discarded(m.EventBus), " "))
	p := m.Postgres
	if p == nil {
		p = &set.Postgres{}
	}
	number("MAJOR", int64(major(p)))
	number("SEGMENT_MB", p.WALSegmentSize>>20)
	value("PGBACKREST", p.Tool.Version)
	value("SUPERUSER", cmp.Or(p.Superuser, "postgres"))
	value("DATABASE", database(p))
	number("COMMIT_TIMES", map[bool]int64{true: 1}[p.TrackCommitTimestamp])
	value("TABLESPACES", strings.Join(tablespaces(p), " "))
	value("LABEL", p.Label)
	value("START_WAL", p.StartWAL)
	value("STOP_WAL", p.StopWAL)
	value("START_LSN", p.StartLSN)
	value("STOP_LSN", p.StopLSN)
	value("LIMITS", strings.Join(limits(p), " "))
	before, after, _ := strings.Cut(program, valuesMark)
	return []byte(before + b.String() + after)
}

// quote makes one word of a shell, whatever is in s.
func quote(s string) string { return "'" + strings.ReplaceAll(printable(s), "'", `'\''`) + "'" }

// limits are the settings that recovery must not go below, as name=value.
func limits(p *set.Postgres) []string {
	var out []string
	for name, n := range p.Limits {
		if settingRE.MatchString(name) {
			out = append(out, fmt.Sprintf("%s=%d", name, n))
		}
	}
	sort.Strings(out)
	return out
}

// segmentRE is the name of a segment's entry. Where a partition was read anew, each
// further try has a directory of its own, as 0~2 beside 0.
var segmentRE = regexp.MustCompile(`^` + set.EventBusPrefix + `[A-Za-z0-9._-]+/[0-9]+(~[0-9]+)?/[0-9]{20}\.log$`)

// discarded are the entries of the bus archive that are no part of the set.
func discarded(x *set.EventBus) []string {
	var out []string
	if x == nil {
		return nil
	}
	for _, s := range x.Discarded {
		if segmentRE.MatchString(s.Entry) {
			out = append(out, s.Entry)
		}
	}
	return out
}

// database is one that lets sessions in, by a name that psql does not take for an address.
func database(p *set.Postgres) string {
	open := []string{}
	for _, d := range p.Databases {
		if !d.Closed && d.Name != "template0" && databaseRE.MatchString(d.Name) {
			open = append(open, d.Name)
		}
	}
	if len(open) == 0 || slices.Contains(open, "postgres") {
		return "postgres"
	}
	return open[0]
}

var databaseRE = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func tablespaces(p *set.Postgres) []string {
	var out []string
	for _, t := range p.Tablespaces {
		out = append(out, strconv.FormatUint(uint64(t.OID), 10))
	}
	return out
}

func major(p *set.Postgres) int { return p.ServerVersionNum / 10000 }

// need is the room that a restore of each part takes at most, in bytes.
type need struct{ postgres, files, eventbus int64 }

func (n need) all() int64 { return n.postgres + n.files + n.eventbus }

// block is what every file takes in addition, and a segment of the bus as well.
const block = 8192

func needOf(m *set.Manifest) need {
	var n need
	if p := m.Postgres; p != nil {
		n.postgres = p.Size + p.RepoSize + int64(len(p.WAL))*p.WALSegmentSize
	}
	if m.Files != nil {
		n.files = m.Files.Bytes - m.Files.Holes + m.Files.Count*block
	}
	if m.EventBus != nil {
		for _, t := range m.EventBus.Topics {
			for _, p := range t.Partitions {
				n.eventbus += p.Bytes + int64(len(p.Segments))*block
			}
		}
	}
	return n
}

func has(m *set.Manifest, part string) bool { return slices.Contains(m.Parts(), part) }
