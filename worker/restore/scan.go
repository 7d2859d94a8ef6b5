package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
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
	late   []string // entries that came after the last copy
	differ []Damage // what the manifest's copy says otherwise
	breaks int      // of the archive's file
	before int      // breaks when the manifest's copy came
	damage []Damage
	kept   map[Damage]int // how many of a kind are in damage
	total  int
	sum    archive.Sum
	need   need
	// refusal is why PostgreSQL's part cannot be restored on this host.
	refusal error
	err     error

	told map[string]int // instructions that came, by entry
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
	return &scan{ctx: ctx, set: s, kind: a.Kind, name: a.Name, path: path, want: a, progress: p, names: archive.NewChecker(), kept: map[Damage]int{}}
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
		x.add(Damage{Part: part, Entry: d.Entry, Problem: d.Problem, Restorable: d.Restorable})
	}
}

// run reads the archive to its last byte, over what is damaged. Its error is one that is
// no damage.
func (x *scan) run() (err error) {
	if !regularFile(x.path) {
		x.bad(x.name, "it is not a regular file")
		return nil
	}
	if x.r, err = archive.OpenSalvage(x.path, salvage(x.kind, x.broken)); err != nil {
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
		if isDamage(err) {
			err = nil // of this entry, and told
		}
		x.body.tell()
	}
	if err != io.EOF {
		return err
	}
	if x.sum, err = x.r.Finish(); err != nil {
		return err
	}
	x.body.tell()
	if err := x.unread(); err != nil {
		x.bad(x.name, "%v", err)
	}
	return x.finish()
}

// unread says what the disk could not read of the archive.
func (x *scan) unread() error {
	n, err := x.r.Unread()
	if err != nil {
		err = fmt.Errorf("the disk cannot read %d bytes of it, the first %w: copy the archive to another disk, or see to this one", n, err)
	}
	return err
}

func regularFile(path string) bool {
	st, err := os.Stat(path)
	return err != nil || st.Mode().IsRegular()
}

func isDamage(err error) bool {
	var d *archive.DamageError
	return errors.As(err, &d)
}

// broken reports damage of the archive's file. Where it is within an entry, that is lost;
// what is lost between entries is missed by its part.
func (x *scan) broken(entry string, d *archive.DamageError) {
	x.breaks++
	if entry == "" {
		entry = x.name
	}
	x.bad(entry, "%s", inWords(d))
}

// salvage is how an archive of this kind is read, in the verification and in the extraction alike.
// What it leaves out behind a break is missed by the verifier of its part; only the
// loss of a file's extended attributes would be missed by nobody. Files may be archives of
// older sets: a database comes first in its archive, so one behind anything else is in a file.
func salvage(kind string, told func(string, *archive.DamageError)) archive.Salvage {
	return archive.Salvage{Damage: told,
		Bare: func(h *archive.Header) bool { return partOf(h.Name) != FilesPart },
		Fits: func(h, after *archive.Header) bool {
			part := partOf(h.Name)
			if part == PostgresPart && after != nil && partOf(after.Name) != PostgresPart {
				return false
			}
			if part == "" {
				return strings.HasPrefix(h.Name, path.Dir(set.ManifestCopy)+"/")
			}
			return kind == "" || (part == EventBusPart) == (kind == set.EventBusArchive)
		}}
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
	if err := x.names.Check(h); err != nil && !x.files.Through(h, err) {
		x.bad(h.Name, "%v", err)
		return nil
	}
	if x.copies > 0 && h.Name != set.ManifestCopy && len(x.late) < maxDamage {
		x.late = append(x.late, h.Name)
	}
	switch {
	case h.Name == set.ManifestCopy:
		return x.manifestCopy(h)
	case x.isInstruction(h.Name):
		return x.instruction(h)
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
	if x.copies > 1 { // the last one is the archive's own: those before it were in its files
		x.bad(h.Name, "it is in the archive twice")
		x.differ, x.late = nil, nil
	}
	most := 2*x.set.text.size + 1<<20
	if h.Size > most {
		x.bad(h.Name, "it has %d bytes, the manifest itself %d", h.Size, x.set.text.size)
		return nil
	}
	x.before = x.breaks
	body := &watched{r: x.body}
	found := differs(x.set.text.open(), body)
	if body.err != nil {
		return body.err
	}
	for _, d := range found {
		x.differ = append(x.differ, Damage{Part: d.part, Entry: h.Name, Problem: d.problem})
	}
	return nil
}

// copyDiffers reports where the manifest and its copy differ. It is the part that is in
// doubt there, but where the archive is damaged at the copy: then it is the copy.
func (x *scan) copyDiffers() {
	for _, d := range x.differ {
		if x.breaks > x.before {
			d.Part = ""
		}
		x.add(d)
	}
}

// finish reports what never came by, and the file's size and hash.
func (x *scan) finish() error {
	var errs []error
	x.copyDiffers()
	for _, name := range x.late {
		x.bad(name, "it comes after the copy of the manifest, which is always the last entry")
	}
	if x.pg != nil {
		errs = append(errs, x.pg.Finish())
		x.refusal = x.pg.Refusal()
	}
	if x.files != nil {
		// Without a manifest beside the archive its hash is not known: gzip's checksums are.
		intact := x.breaks == 0 && (x.set.copied || x.sum.Size == x.want.Size && x.sum.SHA256 == x.want.SHA256)
		errs = append(errs, x.files.Finish(intact))
	}
	if x.bus != nil {
		errs = append(errs, x.bus.Finish())
	}
	x.untold()
	if x.copies == 0 {
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
