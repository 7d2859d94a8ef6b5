package postgres

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path"
	"sort"
	"strconv"
	"strings"
)

// manifest is what pgBackRest's backup.manifest says about one backup. The keys
// are those of pgBackRest's src/info/manifest.c.
type manifest struct {
	version           string
	label, backupType string
	prior             string
	archiveStart      string
	archiveStop       string
	lsnStart, lsnStop string
	bundle, bundleRaw bool
	systemID          uint64
	dbID              uint64
	dbVersion         string
	compressType      string
	checksumPage      bool
	tablespaces       map[string]string // oid -> location at the source
	files             []manifestFile
	size, repoSize    int64
	problems          []string // what is wrong with it although its checksum is right
	pageErrors        []pageErrorEntry
	seen              map[string]struct{}
}

// manifestFile is one file of the cluster. Its record is small, since a cluster
// may have a million of them.
type manifestFile struct {
	name     string // pg_data/… or pg_tblspc/…
	size     int64  // of the content
	repoSize int64  // as stored
	offset   int64  // in its bundle
	bundle   int64  // 0 = a file of its own
	sum      [20]byte
	repoSum  [20]byte
	hasSum   bool
	hasRepo  bool // repoSum is known
	foreign  bool // kept in another backup
	found    bool
}

type pageErrorEntry struct {
	name   string
	blocks json.RawMessage
}

// fileEntry is the JSON of one line in [target:file].
type fileEntry struct {
	BundleID     *int64          `json:"bni"`
	BundleOffset *int64          `json:"bno"`
	BlockIncr    *int64          `json:"bi"`
	Checksum     string          `json:"checksum"`
	ChecksumPage *bool           `json:"checksum-page"`
	PageError    json.RawMessage `json:"checksum-page-error"`
	RepoChecksum string          `json:"rck"`
	Reference    string          `json:"reference"`
	RepoSize     *int64          `json:"repo-size"`
	Size         *int64          `json:"size"`
}

// readManifest parses and checks a backup.manifest. Damage of the file is an
// errInfo; a manifest that is consistent but says impossible things comes with
// problems.
func readManifest(r io.Reader) (*manifest, error) {
	m := &manifest{tablespaces: map[string]string{}, seen: map[string]struct{}{}}
	if err := readInfo(r, m.value); err != nil {
		return nil, err
	}
	m.seen = nil
	m.finish()
	return m, nil
}

func (m *manifest) problem(format string, args ...any) {
	if len(m.problems) < 100 {
		m.problems = append(m.problems, fmt.Sprintf(format, args...))
	}
}

func (m *manifest) value(section, key string, value []byte) error {
	var into any
	switch section + "/" + key {
	case "backrest/backrest-version":
		into = &m.version
	case "backup/backup-label":
		into = &m.label
	case "backup/backup-type":
		into = &m.backupType
	case "backup/backup-prior":
		into = &m.prior
	case "backup/backup-archive-start":
		into = &m.archiveStart
	case "backup/backup-archive-stop":
		into = &m.archiveStop
	case "backup/backup-lsn-start":
		into = &m.lsnStart
	case "backup/backup-lsn-stop":
		into = &m.lsnStop
	case "backup/backup-bundle":
		into = &m.bundle
	case "backup/backup-bundle-raw":
		into = &m.bundleRaw
	case "backup:db/db-system-id":
		into = &m.systemID
	case "backup:db/db-id":
		into = &m.dbID
	case "backup:db/db-version":
		into = &m.dbVersion
	case "backup:option/option-compress-type":
		into = &m.compressType
	case "backup:option/option-checksum-page":
		into = &m.checksumPage
	}
	if into != nil {
		if err := json.Unmarshal(value, into); err != nil {
			return infoErrorf("%s in section %s is not readable", key, section)
		}
		return nil
	}
	switch section {
	case "target:file":
		return m.file(key, value)
	case "backup:target":
		return m.target(key, value)
	}
	return nil
}

func (m *manifest) target(key string, value []byte) error {
	var t struct {
		Path string `json:"path"`
		ID   string `json:"tablespace-id"`
	}
	if err := json.Unmarshal(value, &t); err != nil {
		return infoErrorf("target %q is not readable", key)
	}
	if t.ID == "" {
		return nil
	}
	if _, err := strconv.ParseUint(t.ID, 10, 32); err != nil {
		m.problem("tablespace %q has no number", t.ID)
		return nil
	}
	m.tablespaces[t.ID] = t.Path
	return nil
}

func (m *manifest) file(name string, value []byte) error {
	var e fileEntry
	if err := json.Unmarshal(value, &e); err != nil {
		return infoErrorf("the entry of file %q is not readable", name)
	}
	f := manifestFile{name: name, foreign: e.Reference != ""}
	if !safeManifestName(name) {
		m.problem("file name %q leaves the cluster", name)
		return nil
	}
	if _, twice := m.seen[name]; twice {
		m.problem("file %q is listed twice", name)
		return nil
	}
	m.seen[name] = struct{}{}
	if e.Size == nil || *e.Size < 0 {
		m.problem("file %q has no size", name)
		return nil
	}
	f.size, f.repoSize = *e.Size, *e.Size
	if e.RepoSize != nil {
		f.repoSize = *e.RepoSize
	}
	if e.BundleID != nil {
		f.bundle = *e.BundleID
		if f.bundle <= 0 {
			m.problem("file %q has the impossible bundle %d", name, f.bundle)
			return nil
		}
		if e.BundleOffset != nil {
			f.offset = *e.BundleOffset
		}
	}
	if f.repoSize < 0 || f.offset < 0 || f.offset > math.MaxInt64-f.repoSize || f.size > math.MaxInt64-m.size || f.repoSize > math.MaxInt64-m.repoSize {
		m.problem("file %q has an impossible size or offset", name)
		return nil
	}
	if e.BlockIncr != nil {
		m.problem("file %q is stored as a block map, which this version does not read", name)
		return nil
	}
	f.hasSum = decodeSum(&f.sum, e.Checksum)
	f.hasRepo = decodeSum(&f.repoSum, e.RepoChecksum)
	if !f.hasSum && f.size > 0 {
		m.problem("file %q has no checksum", name)
	}
	if e.ChecksumPage != nil && !*e.ChecksumPage {
		m.pageErrors = append(m.pageErrors, pageErrorEntry{name, append(json.RawMessage(nil), e.PageError...)})
	}
	m.size += f.size
	m.repoSize += f.repoSize
	m.files = append(m.files, f)
	return nil
}

func decodeSum(into *[20]byte, text string) bool {
	if len(text) != 40 {
		return false
	}
	n, err := hex.Decode(into[:], []byte(text))
	return err == nil && n == 20
}

// safeManifestName tells whether a file lies in the data directory or in a
// tablespace.
func safeManifestName(name string) bool {
	if path.Clean(name) != name || strings.ContainsRune(name, 0) {
		return false
	}
	return strings.HasPrefix(name, "pg_data/") || strings.HasPrefix(name, "pg_tblspc/")
}

func (m *manifest) finish() {
	switch {
	case !validLabel(m.label):
		m.problem("its label %q is none of pgBackRest's", m.label)
	case m.backupType == "":
		m.problem("it does not say the backup's type")
	}
	if _, err := extension(m.compressType); err != nil {
		m.problem("%v", err)
	}
	for _, f := range m.files {
		if f.foreign {
			m.problem("file %q is kept in another backup, which this set does not hold", f.name)
			break
		}
	}
}

// bundles gives the files of each bundle in the order of their offsets. Slices
// that overlap are reported and left out.
func (m *manifest) bundles() map[int64][]*manifestFile {
	all := map[int64][]*manifestFile{}
	for i := range m.files {
		if f := &m.files[i]; f.bundle > 0 && !f.foreign {
			all[f.bundle] = append(all[f.bundle], f)
		}
	}
	for id, files := range all {
		sort.Slice(files, func(i, j int) bool { return files[i].offset < files[j].offset })
		kept, end := files[:0], int64(0)
		for _, f := range files {
			if f.offset < end {
				m.problem("file %q overlaps another one in bundle %d", f.name, id)
				continue
			}
			kept, end = append(kept, f), f.offset+f.repoSize
		}
		all[id] = kept
	}
	return all
}

// stored tells whether the file must have bytes in the repository: an empty one
// has none when files are bundled, unless it became empty while it was copied.
func (m *manifest) stored(f *manifestFile) bool {
	return !f.foreign && (f.size > 0 || f.repoSize > 0 || f.bundle > 0 || !m.bundle)
}

// validLabel tells whether s is a label of a full backup or one that depends on
// it: 20261123-183800F or 20261123-183800F_20261124-183800I.
func validLabel(s string) bool {
	full, rest, dependent := strings.Cut(s, "F")
	if !isStamp(full) {
		return false
	}
	if rest == "" {
		return true
	}
	return dependent && len(rest) == 17 && rest[0] == '_' && isStamp(rest[1:16]) && (rest[16] == 'I' || rest[16] == 'D')
}

func isStamp(s string) bool {
	if len(s) != 15 || s[8] != '-' {
		return false
	}
	for i, c := range s {
		if i != 8 && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
