package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
)

// Set is a set that was found on disk.
type Set struct {
	Manifest *set.Manifest
	Dir      string // where its files lie
	Source   string // the manifest, or the archive whose copy of it is used
	Notes    []string

	copied bool              // Manifest comes from an archive's copy: it has no hashes
	text   *text             // the manifest as it was read
	files  *archive.List     // that it lists; Manifest itself has them not
	paths  map[string]string // archives by kind; "" for one that is not beside a copied manifest
	before []Damage          // what was found wrong on the way
	// manifest is what is wrong with the manifest beside an archive whose copy is used. It
	// keeps nobody from what the archives hold.
	manifest []Damage
}

// ID is the set's id.
func (s *Set) ID() set.ID { return set.ID(s.Manifest.Set) }

// Open finds a set. what is the path of its manifest or of one of its archives, or
// its id, which is looked up in dir. An archive with its manifest beside it stands
// for the whole set. A set that is not there wraps ErrNotFound, a manifest of a
// version that this program does not know set.ErrUnknownVersion; a manifest that
// cannot be used is a *DamagedError.
func Open(ctx context.Context, what, dir string) (*Set, error) {
	st, err := os.Stat(what)
	if id, bad := set.ParseID(what); err != nil && bad == nil {
		return openID(ctx, id, dir)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, refusal{ErrNotFound, fmt.Sprintf("open set %q: there is no such file, and it is no set id such as 202109232027_10-0-0-147420; `worker list` shows what there is", what)}
	case err != nil:
		return nil, fmt.Errorf("open set: %w", err)
	case st.IsDir():
		return nil, refusal{ErrUsage, fmt.Sprintf("open set %q: it is a directory; give a manifest, an archive, or a set id with --dir %s", what, what)}
	case !st.Mode().IsRegular():
		return nil, refusal{ErrUsage, fmt.Sprintf("open set %q: it is not a regular file; give a manifest or an archive", what)}
	case strings.HasSuffix(what, ".proof.json"):
		return nil, refusal{ErrUsage, fmt.Sprintf("open set %q: that is the proof of a set; give the manifest, without .proof", what)}
	case isInstructionName(filepath.Base(what)):
		return nil, refusal{ErrUsage, fmt.Sprintf("open set %q: those are the instructions of a set; give the manifest, with .json instead", what)}
	}
	path, err := filepath.Abs(what)
	if err != nil {
		return nil, fmt.Errorf("open set: %w", err)
	}
	packed, err := isArchive(path)
	if err != nil {
		return nil, fmt.Errorf("open set: %w", err)
	}
	if packed {
		return openArchive(ctx, path)
	}
	return openManifest(path)
}

func isInstructionName(base string) bool {
	id, ok := set.IDOfName(base)
	return ok && (base == id.TextName() || base == id.ScriptName())
}

// isArchive tells an archive by its name or by gzip's magic number (RFC 1952).
func isArchive(path string) (bool, error) {
	if strings.HasSuffix(path, ".tar.gz") {
		return true, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var head [2]byte
	if _, err := io.ReadFull(f, head[:]); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return false, err
	}
	return head == [2]byte{0x1f, 0x8b}, nil
}

func openID(ctx context.Context, id set.ID, dir string) (*Set, error) {
	if dir == "" {
		return nil, refusal{ErrUsage, fmt.Sprintf("open set %s: say where it lies by --dir DIR", id)}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open set: %w", err)
	}
	if manifest := filepath.Join(dir, id.ManifestName()); exists(manifest) {
		return openManifest(manifest)
	}
	for _, name := range []string{id.MainName(), id.EventBusName()} {
		if path := filepath.Join(dir, name); exists(path) {
			return openArchive(ctx, path)
		}
	}
	return nil, refusal{ErrNotFound, fmt.Sprintf("open set %s: it is not in %s; `worker list --dir %s` shows what there is", id, dir, dir)}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func openManifest(path string) (*Set, error) {
	f, err := set.OpenRegular(path)
	if err != nil {
		return nil, fmt.Errorf("open set: %w", err)
	}
	defer f.Close()
	text, err := keepText(f)
	if err != nil {
		return nil, fmt.Errorf("open set: %w", err)
	}
	m, files, err := decode(text, path)
	if err != nil {
		return nil, err
	}
	s := &Set{Manifest: m, files: files, Dir: filepath.Dir(path), Source: path, text: text, paths: map[string]string{}}
	if id, ok := set.IDOfName(filepath.Base(path)); ok && string(id) != m.Set {
		s.before = append(s.before, Damage{Entry: filepath.Base(path), Problem: fmt.Sprintf("it is the manifest of set %s, not of the one that its name says: give the path of an archive, and the copy in it is used", m.Set)})
	}
	for _, a := range m.Archives {
		s.paths[a.Kind] = filepath.Join(s.Dir, a.Name)
	}
	return s, nil
}

// decode reads a manifest's text. What is wrong with it, but for a version that is
// unknown, is damage.
func decode(t *text, from string) (*set.Manifest, *archive.List, error) {
	files := &archive.List{}
	m, err := set.ScanManifest(t.open(), from, files.Add)
	if err == nil || errors.Is(err, set.ErrUnknownVersion) {
		return m, files, err
	}
	id, _ := set.IDOfName(filepath.Base(from))
	problem := strings.TrimPrefix(err.Error(), "read manifest "+from+": ")
	return nil, nil, &DamagedError{Set: string(id), Doing: "open the manifest " + from, Damage: []Damage{{Entry: filepath.Base(from), Problem: problem}}, Total: 1,
		Remedy: "every archive of a set carries a copy of the manifest: give an archive instead"}
}

// openArchive takes the manifest beside the archive where it can be read and is of the
// set that the archive's name says, else the copy of it in an archive.
func openArchive(ctx context.Context, path string) (*Set, error) {
	var notes []string
	var wrong []Damage
	dir, base := filepath.Split(path)
	id, named := set.IDOfName(base)
	beside := named && exists(filepath.Join(dir, id.ManifestName()))
	if beside {
		s, err := openManifest(filepath.Join(dir, id.ManifestName()))
		var d *DamagedError
		switch {
		case err == nil && s.ID() == id, errors.Is(err, set.ErrUnknownVersion):
			return s, err
		case err == nil:
			notes, wrong = []string{fmt.Sprintf("the manifest %s is of another set, %s: its copy in the archive is used", id.ManifestName(), s.ID())}, s.before
		case errors.As(err, &d):
			notes, wrong = []string{fmt.Sprintf("the manifest %s is damaged: its copy in the archive is used", id.ManifestName())}, d.Damage
		default:
			notes = []string{fmt.Sprintf("%v; its copy in the archive is used", err)}
		}
	}
	s, err := openCopies(ctx, path, id)
	if err != nil {
		return nil, err
	}
	s.Notes, s.manifest = append(notes, s.Notes...), wrong
	if !beside {
		s.note("the manifest %s is not beside the archive, its copy in the archive is used", s.ID().ManifestName())
	}
	s.note("the archives' sizes and SHA-256 could not be checked")
	for _, a := range s.Manifest.Archives {
		if s.paths[a.Kind] == "" {
			s.note("%s is not beside the archive and was not checked", a.Name)
		}
	}
	return s, nil
}

// openCopies takes the copy of the manifest in the archive at path; where that archive has
// none that can be read, or one of another set than id, that in the set's other archive. id
// is empty where the archive's name tells none.
func openCopies(ctx context.Context, path string, id set.ID) (*Set, error) {
	paths := []string{path}
	for _, name := range []string{id.MainName(), id.EventBusName()} {
		if other := filepath.Join(filepath.Dir(path), name); id != "" && other != path && exists(other) {
			paths = append(paths, other)
		}
	}
	var first error
	var foreign *Set
	for _, p := range paths {
		s, err := openCopy(ctx, p)
		if err != nil {
			if ended(ctx) != nil || errors.Is(err, set.ErrUnknownVersion) {
				return nil, err
			}
			first = cmp.Or(first, err)
			continue
		}
		if id != "" && s.ID() != id {
			foreign = cmp.Or(foreign, s)
			continue
		}
		if p != path {
			s.note("%s has no copy of the manifest that can be used: that in %s is", filepath.Base(path), filepath.Base(p))
		}
		return s, nil
	}
	if foreign == nil {
		return nil, first
	}
	base := filepath.Base(foreign.Source)
	foreign.before = append(foreign.before, Damage{Entry: base, Problem: fmt.Sprintf("it is an archive of set %s, not of the one that its name says: bring that one's, or give this one its own name", foreign.ID())})
	return foreign, nil
}

func openCopy(ctx context.Context, path string) (*Set, error) {
	text, seen, err := readCopy(ctx, path)
	if err != nil {
		return nil, err
	}
	m, files, err := decode(text, path+":"+set.ManifestCopy)
	if err != nil {
		return nil, err
	}
	s := &Set{Manifest: m, files: files, Dir: filepath.Dir(path), Source: path, copied: true, text: text, paths: map[string]string{}}
	s.place(path, seen)
	return s, nil
}

// place finds out which of the set's archives the one at path is, and where the other lies.
func (s *Set) place(path string, seen prefixes) {
	given := ""
	for _, a := range s.Manifest.Archives {
		if a.Name == filepath.Base(path) {
			given = a.Kind
		}
	}
	if given == "" { // it was renamed
		given = set.MainArchive
		if !seen.main && (seen.bus || s.Manifest.EventBus != nil) {
			given = set.EventBusArchive
		}
	}
	for _, a := range s.Manifest.Archives {
		beside := filepath.Join(s.Dir, a.Name)
		switch {
		case a.Kind == given:
			s.paths[a.Kind] = path
		case exists(beside):
			s.paths[a.Kind] = beside
		}
	}
}

func (s *Set) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}
