package postgres

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"catalog-backup/shared/set"
)

// maxInfo bounds backup.info and archive.info, which are kept by pgBackRest at
// some kilobytes for a repository with one backup.
const maxInfo = 16 << 20

// infoFile checks backup.info or archive.info, or the copy of one.
func (v *Verifier) infoFile(name, rel string, src *source) {
	sum := sha256.New()
	tee := io.TeeReader(io.LimitReader(src, maxInfo), sum)
	fault := ""
	backup := strings.Contains(rel, "/backup.info")
	sawLabel := false
	err := readInfo(tee, func(section, key string, value []byte) error {
		switch {
		case section == "db" && key == "db-system-id" && string(value) != v.part.SystemIdentifier:
			fault = fmt.Sprintf("it is of the cluster with the system identifier %s, the manifest says %s", value, v.part.SystemIdentifier)
		case section == "backup:current" && key == v.part.Label:
			sawLabel = true
			fault = firstOf(fault, v.currentBackup(value))
		case section == "backup:current":
			fault = firstOf(fault, fmt.Sprintf("it lists backup %q, which this set does not hold", key))
		case section == "cipher":
			fault = firstOf(fault, "it is encrypted, which our sets never are")
		}
		return nil
	})
	if src.fail != nil {
		return
	}
	if err == nil && backup && !sawLabel {
		fault = firstOf(fault, fmt.Sprintf("it does not list backup %s", v.part.Label))
	}
	v.infoDone(name, rel, sum.Sum(nil), tee, firstOf(infoProblem(err), fault), src)
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func infoProblem(err error) string {
	if err == nil {
		return ""
	}
	var damaged errInfo
	if errors.As(err, &damaged) {
		return damaged.problem
	}
	return err.Error()
}

// currentBackup compares backup.info's line about our backup with our manifest.
func (v *Verifier) currentBackup(value []byte) string {
	var b struct {
		Start string `json:"backup-archive-start"`
		Stop  string `json:"backup-archive-stop"`
		LSN   string `json:"backup-lsn-start"`
		Size  int64  `json:"backup-info-size"`
	}
	if json.Unmarshal(value, &b) != nil {
		return fmt.Sprintf("its line about backup %s is not readable", v.part.Label)
	}
	if b.Start != v.part.StartWAL || b.Stop != v.part.StopWAL || b.LSN != v.part.StartLSN || b.Size != v.part.Size {
		return "it disagrees with the manifest about WAL range or size"
	}
	return ""
}

// infoDone remembers an info file and compares it with its twin.
func (v *Verifier) infoDone(name, rel string, sum []byte, rest io.Reader, problem string, src *source) {
	if n, _ := io.Copy(io.Discard, rest); n > 0 && problem == "" && src.fail == nil {
		problem = "it goes on after its end"
	}
	if src.fail != nil {
		return
	}
	if problem != "" {
		v.damage(name, "%s", problem)
	}
	seen := infoSeen{ok: problem == ""}
	copy(seen.sum[:], sum)
	v.info[rel] = seen
	twin := rel + ".copy"
	if base, isCopy := strings.CutSuffix(rel, ".copy"); isCopy {
		twin = base
	}
	if other, ok := v.info[twin]; ok && other.ok && seen.ok && other.sum != seen.sum {
		v.damage(name, "it differs from its twin %s", twin)
	}
}

// manifestFile reads backup.manifest or its copy; the first good one counts.
func (v *Verifier) manifestFile(name, rel string, src *source) {
	sum := sha256.New()
	tee := io.TeeReader(src, sum)
	m, err := readManifest(tee)
	if src.fail != nil {
		return
	}
	v.infoDone(name, rel, sum.Sum(nil), tee, infoProblem(err), src)
	if err != nil || v.manifest != nil {
		return
	}
	v.manifest = m
	v.bundles = m.bundles()
	v.single = map[string]*manifestFile{}
	for i := range m.files {
		if f := &m.files[i]; f.bundle == 0 && !f.foreign {
			v.single[f.name] = f
		}
	}
	for _, p := range m.problems {
		v.damage(name, "%s", p)
	}
	v.agree(name, m)
}

// agree compares our manifest with pgBackRest's.
func (v *Verifier) agree(name string, m *manifest) {
	p := v.part
	for _, c := range []struct{ what, ours, theirs string }{
		{"label", p.Label, m.label},
		{"system identifier", p.SystemIdentifier, fmt.Sprint(m.systemID)},
		{"server version", fmt.Sprint(p.ServerVersionNum / 10000), m.dbVersion},
		{"start LSN", p.StartLSN, m.lsnStart},
		{"stop LSN", p.StopLSN, m.lsnStop},
		{"first WAL segment", p.StartWAL, m.archiveStart},
		{"last WAL segment", p.StopWAL, m.archiveStop},
		{"compression", p.CompressType, m.compressType},
		{"size", fmt.Sprint(p.Size), fmt.Sprint(m.size)},
		{"size in the repository", fmt.Sprint(p.RepoSize), fmt.Sprint(m.repoSize)},
		{"number of tablespaces", fmt.Sprint(len(p.Tablespaces)), fmt.Sprint(len(m.tablespaces))},
		{"number of files with wrong pages", fmt.Sprint(len(p.PageErrors)), fmt.Sprint(len(m.pageErrors))},
	} {
		if c.ours != c.theirs {
			v.damage(name, "%s: it says %q, the set's manifest %q", c.what, c.theirs, c.ours)
		}
	}
	for _, t := range p.Tablespaces {
		if _, ok := m.tablespaces[fmt.Sprint(t.OID)]; !ok {
			v.damage(name, "it knows no tablespace %d, which the set's manifest lists", t.OID)
		}
	}
}

// Finish reports what is missing. It is called once, after the last entry.
func (v *Verifier) Finish() error {
	defer v.inflate.close()
	for _, rel := range repoFirst(v.part.Stanza, v.part.Label) {
		if _, ok := v.info[rel]; !ok {
			v.damage(set.PostgresRepo+rel, "it is missing")
		}
	}
	for _, c := range v.part.Config {
		if entry, err := configEntry(c.Path); err == nil && !v.seen[entry] {
			v.damage(entry, "it is missing")
		}
	}
	v.missingWAL()
	v.told()
	if v.manifest == nil {
		return nil
	}
	missing := 0
	for i := range v.manifest.files {
		f := &v.manifest.files[i]
		if f.found || !v.manifest.stored(f) {
			continue
		}
		if missing++; missing <= 100 {
			v.damage(v.entryOf(f), "%s is missing", f.name)
		}
	}
	if missing > 100 {
		v.damage(set.PostgresRepo, "%d more files are missing", missing-100)
	}
	return nil
}

func (v *Verifier) entryOf(f *manifestFile) string {
	dir := set.PostgresRepo + "backup/" + v.part.Stanza + "/" + v.part.Label + "/"
	if f.bundle > 0 {
		return fmt.Sprintf("%sbundle/%d", dir, f.bundle)
	}
	return dir + f.name + v.ext
}

func (v *Verifier) missingWAL() {
	first, n, err := segmentRange(v.part.StartWAL, v.part.StopWAL, v.part.WALSegmentSize)
	if err != nil {
		v.damage(set.PostgresRepo+"archive", "the manifest's WAL range: %v", err)
		return
	}
	if _, err := newWALHistory(v.part); err != nil {
		v.damage(set.PostgresRepo+"archive", "the manifest's WAL range: %v", err)
	}
	missing := 0
	for i := range n {
		name := segment{first.timeline, first.number + uint64(i)}.name(v.part.WALSegmentSize)
		if v.wal[name] {
			continue
		}
		if missing++; missing <= 100 {
			v.damage(fmt.Sprintf("%sarchive/%s/*/%s/%s", set.PostgresRepo, v.part.Stanza, name[:16], name), "WAL segment %s is missing", name)
		}
	}
	if missing > 100 {
		v.damage(set.PostgresRepo+"archive", "%d more WAL segments are missing", missing-100)
	}
}

// told reports what the WAL says about the backup: every byte is as it was backed up, and
// yet a restored server would not be what was there.
func (v *Verifier) told() {
	h := v.history
	if h == nil {
		return
	}
	h.finish()
	say := func(entry, format string, args ...any) {
		v.report(set.Damage{Entry: entry, Problem: fmt.Sprintf(format, args...), Restorable: true})
	}
	if h.problem != "" {
		say(set.PostgresRepo+"archive", "%s: a restored server would not get there", h.problem)
	}
	for i, e := range h.events {
		if i == 100 {
			say(set.PostgresRepo+"archive", "%d more tablespaces or databases were made or dropped while the backup was made", len(h.events)+h.more-i)
			break
		}
		say(h.segmentOf(v.part, e.at), "while the backup was made, %s%s", e.say(""), e.meaning())
	}
	if found := h.customManagers(); h.joined == h.segments && v.part.WALResourceManagers != nil && !slices.Equal(found, v.part.WALResourceManagers) {
		v.damage(set.PostgresRepo+"archive", "the WAL needs the resource managers %v, the set's manifest says %v", found, v.part.WALResourceManagers)
	}
}
