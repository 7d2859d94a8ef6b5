package postgres

import (
	"crypto/sha1" // pgBackRest's format, not a choice of ours
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"

	"catalog-backup/shared/set"
)

// Verifier checks a repository and the stored configuration while an archive's
// entries stream by. It needs no tool, extracts nothing, and its memory grows
// with the number of files in the cluster, not with their size.
type Verifier struct {
	part   *set.Postgres
	report func(set.Damage)

	manifest *manifest
	bundles  map[int64][]*manifestFile
	single   map[string]*manifestFile // by entry below the label, without extension
	seen     map[string]bool
	info     map[string]infoSeen // by repository path
	wal      map[string]bool
	history  *walHistory               // nil where the manifest's range is none
	listed   map[string]set.WALFile    // by segment
	config   map[string]set.ConfigFile // by entry
	ext      string
	inflate  *decompressor
	early    bool // an entry came before the manifest
	read     int64
}

// infoSeen is what an info file was, so that its copy can be compared.
type infoSeen struct {
	sum [32]byte
	ok  bool
}

// NewVerifier makes a Verifier for the part p of a manifest. Every damage goes
// to report, not only the first.
func NewVerifier(p *set.Postgres, report func(set.Damage)) *Verifier {
	v := &Verifier{
		part: p, report: report,
		seen: map[string]bool{}, info: map[string]infoSeen{}, wal: map[string]bool{},
		config: map[string]set.ConfigFile{}, listed: map[string]set.WALFile{},
	}
	for _, f := range p.WAL {
		v.listed[f.Name] = f
	}
	for _, c := range p.Config {
		entry, err := configEntry(c.Path)
		if err != nil {
			v.damage(set.PostgresConfig, "the manifest lists configuration file %q: %v", c.Path, err)
			continue
		}
		v.config[entry] = c
	}
	v.history, _ = newWALHistory(p) // missingWAL says what is wrong
	v.ext, _ = extension(p.CompressType)
	v.inflate = &decompressor{kind: p.CompressType}
	return v
}

func (v *Verifier) damage(entry, format string, args ...any) {
	v.report(set.Damage{Entry: entry, Problem: fmt.Sprintf(format, args...)})
}

// source remembers an error of the archive's reader, so that it is not taken
// for damage of what is inside.
type source struct {
	r    io.Reader
	n    int64
	fail error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.fail = err
	}
	return n, err
}

// Entry checks one archive entry under set.PostgresRepo or set.PostgresConfig.
// name is the whole entry's name, size what the archive says. Errors of r are
// returned; damage goes to report. The entry is always read to its end.
func (v *Verifier) Entry(name string, size int64, r io.Reader) error {
	if strings.HasSuffix(name, "/") {
		return nil // a directory
	}
	src := &source{r: r}
	if v.seen[name] {
		v.damage(name, "it is in the archive twice")
	} else {
		v.seen[name] = true
		v.entry(name, size, src)
	}
	if src.fail == nil {
		_, _ = io.Copy(io.Discard, src)
	}
	if src.fail != nil {
		return fmt.Errorf("read %s: %w", name, src.fail)
	}
	if src.n != size {
		v.damage(name, "it has %d bytes, the archive announced %d", src.n, size)
	}
	return nil
}

func (v *Verifier) entry(name string, size int64, src *source) {
	if strings.HasPrefix(name, set.PostgresConfig) {
		v.configFile(name, src)
		return
	}
	rel, ok := strings.CutPrefix(name, set.PostgresRepo)
	if !ok || path.Clean(rel) != rel || strings.HasPrefix(rel, "../") {
		v.damage(name, "it does not belong to the Postgres part")
		return
	}
	backup := "backup/" + v.part.Stanza + "/"
	archive := "archive/" + v.part.Stanza + "/"
	label := backup + v.part.Label + "/"
	switch base := strings.TrimSuffix(rel, ".copy"); {
	case base == backup+"backup.info", base == archive+"archive.info":
		v.infoFile(name, rel, src)
	case base == label+"backup.manifest":
		v.manifestFile(name, rel, src)
	case strings.HasPrefix(rel, label+"bundle/"):
		v.bundle(name, strings.TrimPrefix(rel, label+"bundle/"), src)
	case strings.HasPrefix(rel, label):
		v.file(name, strings.TrimPrefix(rel, label), size, src)
	case strings.HasPrefix(rel, archive):
		v.walFile(name, strings.TrimPrefix(rel, archive), src)
	default:
		v.damage(name, "it does not belong to backup %s", v.part.Label)
	}
}

// noManifest tells whether an entry cannot be checked for want of a manifest,
// and says so once.
func (v *Verifier) noManifest(name string) bool {
	if v.manifest != nil {
		return false
	}
	if !v.early {
		v.early = true
		v.damage(name, "it and others could not be checked: no good backup.manifest of %s came before it", v.part.Label)
	}
	return true
}

func (v *Verifier) bundle(name, number string, src *source) {
	if v.noManifest(name) {
		return
	}
	var id int64
	if _, err := fmt.Sscanf(number, "%d", &id); err != nil || fmt.Sprint(id) != number {
		v.damage(name, "it is no bundle's name")
		return
	}
	files, known := v.bundles[id]
	if !known {
		v.damage(name, "backup.manifest knows no such bundle")
		return
	}
	for _, f := range files {
		f.found = true
		if f.offset > src.n {
			v.damage(name, "%d bytes before the slice of %s belong to no file", f.offset-src.n, f.name)
			if _, err := io.CopyN(io.Discard, src, f.offset-src.n); err != nil && src.fail != nil {
				return
			}
		}
		v.slice(name, f, src)
		if src.fail != nil {
			return
		}
	}
	if n, _ := io.Copy(io.Discard, src); n > 0 {
		v.damage(name, "%d bytes at its end belong to no file", n)
	}
}

func (v *Verifier) file(name, rel string, size int64, src *source) {
	if v.noManifest(name) {
		return
	}
	base, ok := strings.CutSuffix(rel, v.ext)
	f := v.single[base]
	if !ok || f == nil {
		v.damage(name, "backup.manifest knows no such file")
		return
	}
	f.found = true
	if size != f.repoSize {
		v.damage(name, "it has %d bytes in the repository, backup.manifest says %d", size, f.repoSize)
	}
	v.slice(name, f, src)
	if n, _ := io.Copy(io.Discard, src); n > 0 && size == f.repoSize {
		v.damage(name, "%d bytes at its end belong to no file", n)
	}
}

// slice checks the next repoSize bytes of src as the stored form of f.
func (v *Verifier) slice(name string, f *manifestFile, src *source) {
	stored := &io.LimitedReader{R: src, N: f.repoSize}
	repoSum := sha1.New()
	tee := io.TeeReader(stored, repoSum)
	problem := v.content(f, tee)
	if src.fail != nil {
		return
	}
	// What the decompressor left unread counts for the repository's checksum.
	_, _ = io.Copy(io.Discard, tee)
	switch {
	case src.fail != nil:
	case stored.N > 0:
		v.damage(name, "%s: cut short, %d of %d bytes are missing", f.name, stored.N, f.repoSize)
	case problem != "":
		v.damage(name, "%s: %s", f.name, problem)
	case f.hasRepo && !slices.Equal(repoSum.Sum(nil), f.repoSum[:]):
		v.damage(name, "%s: its stored bytes differ from backup.manifest's checksum", f.name)
	}
}

func (v *Verifier) content(f *manifestFile, stored io.Reader) string {
	if f.repoSize == 0 && f.size == 0 {
		return ""
	}
	r, err := v.inflate.open(stored, f.bundle > 0 && v.manifest.bundleRaw)
	if err != nil {
		return fmt.Sprintf("not readable as %s: %v", v.part.CompressType, err)
	}
	sum := sha1.New()
	n, err := io.Copy(sum, io.LimitReader(r, f.size+1))
	v.read += n
	switch {
	case err != nil:
		return fmt.Sprintf("not readable as %s after %d of %d bytes: %v", v.part.CompressType, n, f.size, err)
	case n != f.size:
		return fmt.Sprintf("its content has not the %d bytes that backup.manifest says", f.size)
	case f.hasSum && !slices.Equal(sum.Sum(nil), f.sum[:]):
		return "its content differs from backup.manifest's checksum"
	}
	return ""
}

func (v *Verifier) configFile(name string, src *source) {
	c, known := v.config[name]
	if !known {
		v.damage(name, "the manifest lists no such configuration file")
		return
	}
	sum := sha256.New()
	n, _ := io.Copy(sum, src)
	if src.fail != nil {
		return
	}
	if n != c.Size || hex.EncodeToString(sum.Sum(nil)) != strings.ToLower(c.SHA256) {
		v.damage(name, "its content differs from the manifest's size or checksum")
	}
}

// configEntry is the archive entry of a configuration file.
func configEntry(p string) (string, error) {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("it is not a clean absolute path")
	}
	return set.PostgresConfig + p[1:], nil
}

func (v *Verifier) walFile(name, rel string, src *source) {
	part := v.part
	segName, sum, ok := splitWALName(rel, v.ext)
	if !ok {
		v.damage(name, "it is no name of a WAL segment in a repository")
		return
	}
	if m := v.manifest; m != nil && !strings.HasPrefix(rel, fmt.Sprintf("%s-%d/", m.dbVersion, m.dbID)) {
		v.damage(name, "it lies in another archive than %s-%d", m.dbVersion, m.dbID)
	}
	seg, err := parseSegment(segName, part.WALSegmentSize)
	first, n, err2 := segmentRange(part.StartWAL, part.StopWAL, part.WALSegmentSize)
	switch {
	case err != nil:
		v.damage(name, "%v", err)
		return
	case err2 != nil:
		v.damage(name, "the manifest's WAL range: %v", err2)
		return
	case seg.timeline != first.timeline || seg.number < first.number || seg.number-first.number >= uint64(n):
		v.damage(name, "the backup needs no such WAL segment")
		return
	}
	again := v.wal[segName]
	if again {
		v.damage(name, "WAL segment %s is there twice", segName)
	}
	v.wal[segName] = true
	stored := sha256.New()
	v.walContent(name, sum, seg, again, io.TeeReader(src, stored), src)
	// What the decompressor left unread counts for the stored bytes.
	if _, err := io.Copy(stored, src); err == nil {
		v.walStored(name, rel, segName, hex.EncodeToString(stored.Sum(nil)), src.n)
	}
}

// walStored compares a segment as stored with our manifest's list.
func (v *Verifier) walStored(name, rel, segName, sum string, size int64) {
	f, listed := v.listed[segName]
	if !listed {
		v.damage(name, "the manifest does not list WAL segment %s", segName)
		return
	}
	if f.Path != "archive/"+v.part.Stanza+"/"+rel || f.Size != size || !strings.EqualFold(f.SHA256, sum) {
		v.damage(name, "WAL segment %s differs from the manifest's path, size or checksum", segName)
	}
}

func (v *Verifier) walContent(name, sum string, seg segment, again bool, stored io.Reader, src *source) {
	part := v.part
	r, err := v.inflate.open(stored, false)
	if err != nil {
		if src.fail == nil {
			v.damage(name, "not readable as %s: %v", part.CompressType, err)
		}
		return
	}
	check := checkerOf(part, seg)
	if v.history != nil && !again {
		check.records = v.history.reader(seg.number)
	}
	digest := sha1.New()
	read, err := io.Copy(io.MultiWriter(digest, check), io.LimitReader(r, part.WALSegmentSize+1))
	v.read += read
	switch {
	case src.fail != nil:
	case err != nil:
		v.damage(name, "not readable as %s after %d bytes: %v", part.CompressType, read, err)
	case read != part.WALSegmentSize:
		v.damage(name, "it has not the %d bytes of a WAL segment", part.WALSegmentSize)
	case sumHex(digest) != sum:
		v.damage(name, "its content differs from the checksum in its name")
	case check.problem != "":
		v.damage(name, "%s", check.problem)
	case check.records != nil:
		v.history.take(check.records)
	}
}

func sumHex(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// splitWALName takes <archive id>/<16 digits>/<24 digits>-<SHA-1><extension> apart.
func splitWALName(rel, ext string) (segment, sum string, ok bool) {
	parts := strings.Split(rel, "/")
	if len(parts) != 3 || parts[0] == "" {
		return "", "", false
	}
	base, ok := strings.CutSuffix(parts[2], ext)
	segment, sum, cut := strings.Cut(base, "-")
	if !ok || !cut || len(segment) != 24 || len(sum) != 40 || parts[1] != segment[:16] {
		return "", "", false
	}
	return segment, sum, true
}
