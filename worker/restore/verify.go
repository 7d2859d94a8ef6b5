package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/stage"
)

// Damage is one thing that is wrong with a set.
type Damage struct {
	Archive string `json:"archive"`        // base name; "" for what is not in an archive
	Part    string `json:"part,omitempty"` // as in set.Damage
	Entry   string `json:"entry"`          // entry of the archive, or the file or partition it is about
	Problem string `json:"problem"`
	// Restorable is as in set.Damage: a restore warns and goes on.
	Restorable bool `json:"restorable,omitempty"`
}

func (d Damage) String() string {
	if d.Archive == "" || d.Archive == d.Entry {
		return d.Entry + ": " + d.Problem
	}
	return d.Archive + ": " + d.Entry + ": " + d.Problem
}

// maxDamage bounds the findings that are kept, a part and archive: a set that
// lost its half needs no longer list.
const maxDamage = 1000

// VerifyOptions say what to verify.
type VerifyOptions struct {
	Kinds []string // archives by kind; nil = all
	// Unread takes what the disk cannot read for damage of what lies there. Without it, it
	// is an error: the archive may be good, and another host or cable read it.
	Unread   bool
	Progress stage.Progress // in bytes of the archives; nil = none
	Now      func() time.Time
}

// Report is what a verification found.
type Report struct {
	Set         string   `json:"set"`
	Good        bool     `json:"good"`
	Damage      []Damage `json:"damage"`
	DamageTotal int      `json:"damage_total"`
	Notes       []string `json:"notes"`
	Bytes       int64    `json:"bytes"` // of the archives, as read

	whole bool // nothing was left out
	sums  map[string]archive.Sum
	need  need
	// refusal is why PostgreSQL's part cannot be restored on this host.
	refusal error
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Verify reads every byte of the set's archives, once, and holds it against the
// manifest; nothing is extracted and no tool is needed. Whatever is wrong is in the
// report; an error says that it could not be found out (a disk that cannot be
// read, an end by ctx).
func Verify(ctx context.Context, s *Set, o VerifyOptions) (*Report, error) {
	if o.Progress == nil {
		o.Progress = stage.NoProgress{}
	}
	r := &Report{Set: s.Manifest.Set, Damage: []Damage{}, Notes: append([]string{}, s.Notes...), whole: true, sums: map[string]archive.Sum{}}
	r.add(s.before, len(s.before))
	r.add(s.manifest, len(s.manifest))
	own := contradictions(s.Manifest, s.files, s.copied)
	r.add(own, len(own))
	if o.Kinds == nil { // a restore does not need them
		told := s.instructions()
		r.add(told, len(told))
	}
	scans := s.scans(ctx, o, r)
	var total int64
	for _, x := range scans {
		if st, err := os.Stat(x.path); err == nil {
			total += st.Size()
		}
	}
	o.Progress.Total(total)
	var wait sync.WaitGroup
	for _, x := range scans {
		wait.Go(func() { x.err = x.run() })
	}
	wait.Wait()
	for _, x := range scans {
		if x.err == nil && !o.Unread && x.r != nil {
			x.err = x.unread()
		}
		if x.err != nil {
			return nil, fmt.Errorf("verify %s: %w", x.path, x.err)
		}
		r.add(x.damage, x.total)
		r.Bytes += x.sum.Size
		if x.r != nil {
			r.sums[x.kind] = x.sum
		}
		r.need.add(x.need)
		r.refusal = errors.Join(r.refusal, x.refusal)
	}
	r.Good = r.DamageTotal == 0
	for _, w := range s.Manifest.Warnings {
		r.note("the set was made with a warning: %s", w)
	}
	return r, nil
}

func (r *Report) add(found []Damage, total int) {
	r.Damage = append(r.Damage, found...)
	r.DamageTotal += total
}

// scans are the archives to read. One that is missing is damage, but where only a
// copied manifest tells of it.
func (s *Set) scans(ctx context.Context, o VerifyOptions, r *Report) []*scan {
	var out []*scan
	for _, a := range s.Manifest.Archives {
		path := s.paths[a.Kind]
		switch {
		case !wanted(o.Kinds, a.Kind):
			r.whole = false
		case path == "":
			r.whole = false // said by Open
		default:
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				r.add([]Damage{{Archive: a.Name, Entry: a.Name, Problem: "the archive is missing"}}, 1)
				continue
			}
			out = append(out, newScan(ctx, s, a, path, o.Progress))
		}
	}
	r.whole = r.whole && !s.copied
	return out
}

func wanted(kinds []string, kind string) bool {
	for _, k := range kinds {
		if k == kind {
			return true
		}
	}
	return kinds == nil
}

// contradictions are what in a manifest cannot be true, by itself. Those that are about
// one archive or part say so, since the other parts are none the worse for them.
func contradictions(m *set.Manifest, files *archive.List, copied bool) []Damage {
	var out []Damage
	bad := func(part, archive, format string, args ...any) {
		out = append(out, Damage{Part: part, Archive: archive, Entry: "manifest", Problem: fmt.Sprintf(format, args...)})
	}
	id := set.ID(m.Set)
	kinds := map[string]int{}
	for _, a := range m.Archives {
		kinds[a.Kind]++
		if kinds[a.Kind] == 2 {
			bad("", a.Name, "it names two archives of kind %s", a.Kind)
		}
		if want := map[string]string{set.MainArchive: id.MainName(), set.EventBusArchive: id.EventBusName()}[a.Kind]; a.Name != want {
			bad("", a.Name, "it calls the archive of kind %s %s, not %s", a.Kind, a.Name, want)
		}
		if !copied && (a.Size <= 0 || len(a.SHA256) != 64) {
			bad("", a.Name, "it has no size or no SHA-256 of %s", a.Name)
		}
	}
	switch {
	case kinds[set.MainArchive] == 0:
		bad("", id.MainName(), "it names no main archive")
	case (m.EventBus != nil) != (kinds[set.EventBusArchive] > 0):
		bad(EventBusPart, id.EventBusName(), "an Event Bus part and its archive belong together, and it has only one of them")
	case m.Postgres == nil && m.Files == nil:
		bad("", id.MainName(), "it has neither a Postgres part nor files")
	}
	if m.Files == nil {
		return out
	}
	if n := int64(files.Len()); n != m.Files.Count || files.Bytes != m.Files.Bytes {
		bad(FilesPart, "", "it counts %d files of %d bytes and lists %d of %d", m.Files.Count, m.Files.Bytes, n, files.Bytes)
	}
	return out
}

// Prove writes what r found beside the set. That a proof cannot be written, in a
// read-only place, is only noted; so is that there is none where a part of the set
// was not checked and the rest is good, or where an archive has not the set's name: the set
// itself may lie beside it. A manifest speaks for the set that its name says.
func (s *Set) Prove(r *Report, at time.Time) {
	base := filepath.Base(s.Source)
	id, _ := set.IDOfName(base)
	if id == "" || id != s.ID() && base != id.ManifestName() {
		r.note("no proof was written, since %s has not the name of set %s", base, s.ID())
		return
	}
	if r.Good && !r.whole {
		r.note("no proof was written, since not all of the set was checked")
		return
	}
	p := set.Proof{Kind: "verify", At: at.UTC(), Good: r.Good, DamageTotal: r.DamageTotal}
	for _, d := range r.Damage {
		p.Damage = append(p.Damage, set.Damage{Part: d.Part, Entry: d.Entry, Problem: d.Problem, Restorable: d.Restorable})
	}
	if err := set.AddProof(s.Dir, id, p); err != nil {
		r.note("the proof could not be kept beside the set: %v", err)
	}
}

// ended gives the cause, if ctx has ended.
func ended(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}

func plural(before string, n int64, one string) string {
	if n != 1 {
		one += "s"
	}
	return fmt.Sprintf("%s%d%s", before, n, one)
}
