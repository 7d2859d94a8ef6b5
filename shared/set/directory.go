package set

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrUnknownVersion is wrapped by the error for a manifest of a version that
// this program does not know.
var ErrUnknownVersion = errors.New("unknown manifest version")

// maxManifest bounds what is read as a manifest: some ten million files.
const maxManifest = 4 << 30

// DecodeManifest reads and checks a manifest, from where says whence for errors. All
// of its list of files comes into memory; ScanManifest reads it without.
func DecodeManifest(r io.Reader, from string) (*Manifest, error) {
	files := []File{}
	m, err := ScanManifest(r, from, func(f *File) error {
		files = append(files, *f)
		return nil
	})
	if err == nil && m.Files != nil && m.Files.Entries != nil {
		m.Files.Entries = files
	}
	return m, err
}

// ReadHead reads the manifest at path without its list of files, which may be long. Of
// one that is refused, whose it is is given with the error where that could be read.
// fs.ErrNotExist says that nothing has that name.
func ReadHead(path string) (*Manifest, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	defer f.Close()
	var r io.Reader = f
	if endsAsJSON(f) {
		r = &untilEntries{r: f}
	}
	return ScanManifest(atMost(r, path, MaxHead), path, nil)
}

// untilEntries gives a manifest up to its list of files, which comes last, and closes
// it there: the list of a million files is not read to show the rest. Quotes within
// strings are escaped, so that the key cannot be mistaken. A file that does not end as
// JSON does is given as it is, for the decoder to refuse.
type untilEntries struct {
	r     io.Reader
	ready []byte // to be given
	held  []byte // the end of what was read, which may be the beginning of the key
	err   error
}

var entriesKey = []byte(`"entries": [`)

func (u *untilEntries) Read(p []byte) (int, error) {
	for len(u.ready) == 0 {
		if u.err != nil {
			return 0, u.err
		}
		u.fill()
	}
	n := copy(p, u.ready)
	u.ready = u.ready[n:]
	return n, nil
}

func (u *untilEntries) fill() {
	chunk := make([]byte, 64<<10)
	n, err := u.r.Read(chunk)
	text := append(u.held, chunk[:n]...)
	if at := bytes.Index(text, entriesKey); at >= 0 {
		u.ready, u.err = append(text[:at+len(entriesKey)], "]}}"...), io.EOF
		return
	}
	if err != nil {
		u.ready, u.err = text, err
		return
	}
	hold := max(0, len(text)-len(entriesKey)+1)
	u.ready, u.held = text[:hold], bytes.Clone(text[hold:])
}

func endsAsJSON(f *os.File) bool {
	fi, err := f.Stat()
	if err != nil {
		return false
	}
	tail := make([]byte, min(fi.Size(), 16))
	if _, err := f.ReadAt(tail, fi.Size()-int64(len(tail))); err != nil {
		return false
	}
	return bytes.HasSuffix(bytes.Join(bytes.Fields(tail), nil), []byte("]}}"))
}

// check refuses names that would become wrong paths.
func (m *Manifest) check(from string) error {
	if _, err := ParseID(m.Set); err != nil {
		return fmt.Errorf("read manifest %s: %w", from, err)
	}
	for _, a := range m.Archives {
		if id, ok := IDOfName(a.Name); !ok || string(id) != m.Set {
			return fmt.Errorf("read manifest %s: %q is no archive of set %s", from, a.Name, m.Set)
		}
		if a.Kind != MainArchive && a.Kind != EventBusArchive {
			return fmt.Errorf("read manifest %s: archive %s is of unknown kind %q", from, a.Name, a.Kind)
		}
	}
	for _, x := range m.Instructions {
		if want := map[string]string{TextEntry: ID(m.Set).TextName(), ScriptEntry: ID(m.Set).ScriptName()}[x.Entry]; want == "" || x.Name != want {
			return fmt.Errorf("read manifest %s: %q (%q) are no instructions of set %s", from, x.Name, x.Entry, m.Set)
		}
	}
	if len(m.Archives) == 0 {
		return fmt.Errorf("read manifest %s: it names no archive", from)
	}
	return nil
}

// ReadManifest reads the manifest at path.
func ReadManifest(path string) (*Manifest, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	defer f.Close()
	return DecodeManifest(f, path)
}

// Size is the size of the set's files together, but for the manifest.
func (m *Manifest) Size() int64 {
	var n int64
	for _, x := range m.Instructions {
		n += x.Size
	}
	for _, a := range m.Archives {
		n += a.Size
	}
	return n
}

// Archive finds the archive of a kind.
func (m *Manifest) Archive(kind string) (Archive, bool) {
	for _, a := range m.Archives {
		if a.Kind == kind {
			return a, true
		}
	}
	return Archive{}, false
}

// Parts names what the set covers, for a table.
func (m *Manifest) Parts() []string {
	parts := []string{}
	if m.Postgres != nil {
		parts = append(parts, "postgres")
	}
	if m.EventBus != nil {
		parts = append(parts, "eventbus")
	}
	if m.Files != nil {
		parts = append(parts, "files")
	}
	return parts
}

// WriteFile writes a file the safe way: temporary name, fsync, rename,
// fsync of the directory. Mode 0600 whatever the umask. It replaces path.
func WriteFile(path string, content []byte) error {
	return WriteFileFrom(path, bytes.NewReader(content))
}

// WriteFileFrom is WriteFile for content that is read until its end.
func WriteFileFrom(path string, content io.Reader) error {
	return writeFileFrom(path, content, os.Rename)
}

// writeFileFrom writes a temporary file, which name gives its name in one step.
func writeFileFrom(path string, content io.Reader, name func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.new")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = name(f.Name(), path)
	}
	if err == nil {
		err = SyncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// SyncDir makes renames in dir durable. A file system that cannot sync directories
// (it answers EINVAL) is taken as it is.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// IsPart tells whether a base name is that of an archive being written for run.
func IsPart(base, run string) bool {
	return strings.HasPrefix(base, ".") && strings.Contains(base, "."+run+".") && strings.HasSuffix(base, ".part")
}

// PartName is the name of an archive while the attempt with that hold (fence and token) writes it.
func PartName(final, run, hold string) string {
	return fmt.Sprintf(".%s.%s.%s.part", final, run, hold)
}
