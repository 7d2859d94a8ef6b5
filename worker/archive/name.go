package archive

import (
	"fmt"
	"strings"
)

// maxName bounds an entry's name in bytes. Paths longer than PATH_MAX (4096)
// exist and are stored; this only keeps a damaged or hostile archive from making
// us allocate without bound.
const maxName = 1 << 20

// CheckEntryName refuses names that could lead out of the directory they are
// unpacked in, or that no program of ours writes: empty, absolute, with an empty,
// "." or ".." component, or with a NUL byte. One slash at the end (a directory's)
// is good. Symbolic links on the way are the Extractor's and the Checker's business.
func CheckEntryName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("entry name is empty")
	case len(name) > maxName:
		return fmt.Errorf("entry name has %d bytes, more than %d", len(name), maxName)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("entry name %s has a NUL byte", show(name))
	case name[0] == '/':
		return fmt.Errorf("entry name %s is absolute", show(name))
	}
	rest := strings.TrimSuffix(name, "/")
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("entry name %s has the component %q, which could lead out of the target", show(name), part)
		}
	}
	if strings.HasSuffix(name, "//") {
		return fmt.Errorf("entry name %s ends with two slashes", show(name))
	}
	return nil
}

// show prints a name for people in one line: as it is where it is plain, quoted
// where it holds control characters or bytes that are not UTF-8, shortened where long.
func show(name string) string {
	const most = 200
	if len(name) > most {
		name = name[:most/2] + "…" + name[len(name)-most/2:]
	}
	q := fmt.Sprintf("%+q", name)
	if plain := q[1 : len(q)-1]; plain == name {
		return name
	}
	return fmt.Sprintf("%q", name)
}
