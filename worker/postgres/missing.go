package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"catalog-backup/shared/set"
)

// missingLibraries says which libraries of the databases' functions, types and
// indexes this host lacks: the server starts without them, and fails where they are
// used.
func (r *restoration) missingLibraries(context.Context) error {
	n := r.o.Part.Needs
	if n == nil { // the set is older: it does not say
		return nil
	}
	var missing []string
	for _, l := range n.Libraries {
		if r.bin != "" && r.hasLibraryOf(l.Name) {
			continue
		}
		missing = append(missing, libraryOf(l))
	}
	list := first(missing, 20)
	// Every installation has that of PL/pgSQL: where it is not found, the rest cannot be.
	switch known := r.hasLibrary("plpgsql"); {
	case len(missing) == 0:
	case r.bin == "":
		r.done.before("with PostgreSQL, install the extensions' packages that bring the libraries that the databases use: %s", list)
	case !known:
		r.done.note("the databases use these libraries; where this host's PostgreSQL has its own cannot be told, so see that they are there: %s", list)
	default:
		r.done.warn("libraries that the databases use are not on this host; functions, types and indexes that need them fail until they are: %s", list)
		r.done.before("install the extensions' packages that bring these libraries: %s", list)
	}
	if len(n.Dictionaries) > 0 {
		var named []string
		for _, d := range n.Dictionaries {
			named = append(named, fmt.Sprintf("%q in %s", d.Name, inDatabases(d)))
		}
		r.done.note("these text search dictionaries read files of the original's installation (tsearch_data), which are in no backup: bring them if they are not those of PostgreSQL itself: %s", first(named, namedDatabases))
	}
	if n.Unseen > 0 {
		r.done.note("%d databases could not be looked into when the backup was made: libraries and locales that they need may be missing here without a word", n.Unseen)
	}
	return nil
}

// libraryOf is a library in words.
func libraryOf(l set.Need) string {
	if l.Extension != "" {
		return fmt.Sprintf("%s of the extension %s (in %s)", l.Name, l.Extension, inDatabases(l))
	}
	return fmt.Sprintf("%s (in %s)", l.Name, inDatabases(l))
}

// inDatabases names the databases that need it.
func inDatabases(n set.Need) string {
	var named []string
	for _, d := range n.Databases {
		named = append(named, strconv.Quote(d))
	}
	s := strings.Join(named, ", ")
	if n.More > 0 {
		s += fmt.Sprintf(" and %d more", n.More)
	}
	return s
}

// hasLibraryOf looks for a library as CREATE FUNCTION names it (dfmgr.c): below
// $libdir, by an absolute path, or in dynamic_library_path, which is $libdir unless
// set; with or without its suffix.
func (r *restoration) hasLibraryOf(name string) bool {
	if filepath.IsAbs(name) {
		_, err1 := os.Stat(name)
		_, err2 := os.Stat(name + ".so")
		return err1 == nil || err2 == nil
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "$libdir/"), ".so")
	return filepath.IsLocal(name) && r.hasLibrary(name)
}
