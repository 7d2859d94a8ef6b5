package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/postgres"
	"catalog-backup/worker/stage"
)

// scan is one pass over one archive.
type scan struct {
	ctx      context.Context
	set      *Set
	kind     string
	name     string
	path     string
	want     set.Archive
	progress stage.Progress

	r     *archive.Reader
	body  guarded
	names *archive.Checker
	pg    *postgres.Verifier
	files *archive.Verifier
	bus   *eventbus.Verifier

	copies int
	silent bool           // behind a damage: what is missing is counted, not listed
	unread map[string]int // by part
	damage []Damage
	kept   map[Damage]int // how many of a kind are in damage
	total  int
	sum    archive.Sum
	need   need
	err    error
}

// need is how much room the parts take when they are restored, in bytes.
type need struct{ repo, config, files, bus int64 }

func (n *need) add(m need) {
	n.repo += m.repo
	n.config += m.config
	n.files += m.files
	n.bus += m.bus
}

func newScan(ctx context.Context, s *Set, a set.Archive, path string, p stage.Progress) *scan {
	return &scan{ctx: ctx, set: s, kind: a.Kind, name: a.Name, path: path, want: a, progress: p, names: archive.NewChecker(),
		unread: map[string]int{}, kept: map[Damage]int{}}
}

// bad adds a finding about an entry, or about the archive itself.
func (x *scan) bad(entry, format string, args ...any) {
	x.add(Damage{Part: partOf(entry), Entry: entry, Problem: fmt.Sprintf(format, args...)})
}

// add keeps a finding. Each part has its own bound, and so have those that forbid a
// restore: a flood of one kind must not hide that there is another.
func (x *scan) add(d Damage) {
	d.Archive = x.name
	x.total++
	kind := Damage{Part: d.Part, Restorable: d.Restorable}
	if x.kept[kind] < maxDamage {
		x.kept[kind]++
		x.damage = append(x.damage, d)
	}
}

// reportOf takes the findings of one part's verifier.
func (x *scan) reportOf(part string) func(set.Damage) {
	return func(d set.Damage) {
		if x.silent {
			x.unread[part]++
			return
		}
		x.add(Damage{Part: part, Entry: d.Entry, Problem: d.Problem, Restorable: d.Restorable})
	}
}

// run reads the archive to its last byte. Its error is one that is no damage.
func (x *scan) run() (err error) {
	if x.r, err = archive.Open(x.path); err != nil {
		return err
	}
	defer x.r.Close()
	x.body = guarded{ctx: x.ctx, r: x.r, progress: x.progress, told: new(int64)}
	x.verifiers()
	for err == nil {
		if err = ended(x.ctx); err != nil {
			return err
		}
		var h *archive.Header
		if h, err = x.r.Next(); err == nil {
			err = x.entry(h)
		}
		x.body.tell()
	}
	broken := x.broken(err)
	if err != io.EOF && !broken {
		return err
	}
	if x.sum, err = x.r.Finish(); err != nil && !broken && !x.broken(err) {
		return err
	}
	x.body.tell()
	return x.finish(broken)
}

// broken reports damage of the archive itself, behind which nothing can be read.
func (x *scan) broken(err error) bool {
	var d *archive.DamageError
	if !errors.As(err, &d) {
		return false
	}
	x.bad(x.name, "%s", inWords(d))
	return true
}

func (x *scan) verifiers() {
	m := x.set.Manifest
	if x.kind == set.EventBusArchive {
		if m.EventBus != nil {
			x.bus = eventbus.NewVerifier(m.EventBus, x.reportOf(EventBusPart))
		}
		return
	}
	if m.Postgres != nil {
		x.pg = postgres.NewVerifier(m.Postgres, x.reportOf(PostgresPart))
	}
	if m.Files != nil {
		x.files = archive.NewVerifier(x.set.files, x.reportOf(FilesPart))
	}
}

// entry hands an entry to the room that it belongs to.
func (x *scan) entry(h *archive.Header) error {
	if err := x.names.Check(h); err != nil {
		x.bad(h.Name, "%v", err)
		return nil
	}
	if x.copies > 0 && h.Name != set.ManifestCopy {
		x.bad(h.Name, "it comes after the copy of the manifest, which is always the last entry")
	}
	switch {
	case h.Name == set.ManifestCopy:
		return x.manifestCopy(h)
	case x.pg != nil && (under(h.Name, set.PostgresRepo) || under(h.Name, set.PostgresConfig)):
		return x.postgres(h)
	case x.files != nil && under(h.Name, set.FilesPrefix):
		x.need.files += room(h)
		return x.files.Entry(h, x.body)
	case x.bus != nil && strings.HasPrefix(h.Name, set.EventBusPrefix):
		if !x.regular(h) {
			return nil
		}
		x.need.bus += room(h)
		return x.bus.Entry(h.Name, h.Size, x.body)
	}
	x.bad(h.Name, "it is in the archive and does not belong there")
	return nil
}

func (x *scan) postgres(h *archive.Header) error {
	if h.Kind == archive.Dir {
		x.need.repo += room(h)
		return nil
	}
	if !x.regular(h) {
		return nil
	}
	if strings.HasPrefix(h.Name, set.PostgresConfig) {
		x.need.config += room(h)
	} else {
		x.need.repo += room(h)
	}
	return x.pg.Entry(h.Name, h.Size, x.body)
}

func (x *scan) regular(h *archive.Header) bool {
	if h.Kind != archive.Regular {
		x.bad(h.Name, "it is no regular file")
	}
	return h.Kind == archive.Regular
}

// room is what an entry takes on a disk with blocks of 4 KiB.
func room(h *archive.Header) int64 { return (h.Stored() + 8191) &^ 4095 }

// manifestCopy holds the archive's copy of the manifest against the manifest.
func (x *scan) manifestCopy(h *archive.Header) error {
	x.copies++
	if !x.regular(h) {
		return nil
	}
	if x.copies > 1 {
		x.bad(h.Name, "it is in the archive twice")
		return nil
	}
	most := 2*x.set.text.size + 1<<20
	if h.Size > most {
		x.bad(h.Name, "it has %d bytes, the manifest itself %d", h.Size, x.set.text.size)
		return nil
	}
	body := &watched{r: x.body}
	problem := differs(x.set.text.open(), body)
	if body.err != nil {
		return body.err
	}
	if problem != "" {
		x.bad(h.Name, "%s", problem)
	}
	return nil
}

// finish reports what never came by, and the file's size and hash. What lies behind
// the place where an archive is broken is said in one line.
func (x *scan) finish(broken bool) error {
	var errs []error
	x.silent = broken
	if x.pg != nil {
		errs = append(errs, x.pg.Finish())
	}
	if x.files != nil {
		errs = append(errs, x.files.Finish())
	}
	if x.bus != nil {
		errs = append(errs, x.bus.Finish())
	}
	for _, part := range AllParts {
		if n := x.unread[part]; n > 0 {
			x.add(Damage{Part: part, Entry: x.name, Problem: fmt.Sprintf("what comes behind that place could not be read: %d entries or pieces of %s could not be checked", n, part)})
		}
	}
	if x.copies == 0 && !broken {
		x.bad(set.ManifestCopy, "it is missing")
	}
	if x.set.copied {
		return errors.Join(errs...)
	}
	if x.sum.Size != x.want.Size {
		x.bad(x.name, "the archive has %d bytes, the manifest says %d", x.sum.Size, x.want.Size)
	}
	if x.sum.SHA256 != x.want.SHA256 {
		x.bad(x.name, "the archive's SHA-256 is %s, the manifest says %s", x.sum.SHA256, x.want.SHA256)
	}
	return errors.Join(errs...)
}

// guarded reads the present entry until ctx ends, and tells how far the archive is read.
type guarded struct {
	ctx      context.Context
	r        *archive.Reader
	progress stage.Progress
	told     *int64
}

func (g guarded) Read(p []byte) (int, error) { return g.read(g.r, p) }

// Data is what the rooms look for to read a sparse entry without its holes.
func (g guarded) Data() io.Reader { return guardedData{g, g.r.Data()} }

func (g guarded) read(r io.Reader, p []byte) (int, error) {
	if err := ended(g.ctx); err != nil {
		return 0, err
	}
	g.tell()
	return r.Read(p)
}

func (g guarded) tell() {
	if g.progress == nil {
		return
	}
	at := g.r.Offset()
	g.progress.Add(at - *g.told)
	*g.told = at
}

type guardedData struct {
	g guarded
	r io.Reader
}

func (d guardedData) Read(p []byte) (int, error) { return d.g.read(d.r, p) }
