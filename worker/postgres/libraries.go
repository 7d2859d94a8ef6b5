package postgres

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// preloads are the settings that list libraries which the server loads by itself.
// local_preload_libraries is not taken over: it is for developers, and a session
// that misses one fails.
var preloads = []string{"shared_preload_libraries", "session_preload_libraries"}

// libraryName is a library of the installation. Anything with a path in it could
// be a file from elsewhere: the server cleans "$libdir/../x" to a path.
var libraryName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_+-]*$`)

// libraryList takes a value of such a setting apart, as SplitDirectoriesString
// does but for its paths. A list that the server itself would refuse gives names
// that are none.
func libraryList(value string) []string {
	var list []string
	for _, name := range strings.Split(value, ",") {
		name = strings.Trim(strings.TrimSpace(name), `"`)
		name = strings.TrimSuffix(strings.TrimPrefix(name, "$libdir/"), ".so")
		if name != "" && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// chooseLibraries decides which libraries the restored server loads, of those that
// the original had loaded and those that its files say.
func (r *restoration) chooseLibraries() {
	r.libraries, r.kept = map[string][]string{}, map[string]bool{}
	needed := r.resourceManagers()
	for _, setting := range preloads {
		if r.o.Live {
			r.wantLibraries(setting)
			continue
		}
		for _, name := range libraryList(r.o.Part.Preload[setting] + "," + r.values[setting]) {
			if !r.keepLibrary(setting, name, len(needed) > 0) {
				continue
			}
			r.libraries[setting] = append(r.libraries[setting], name)
			r.kept[name] = true
		}
	}
	if r.bin == "" && len(r.kept) > 0 {
		r.done.before("with PostgreSQL, install what brings these libraries, which it will load, or take them out of postgresql.auto.conf: %s", strings.Join(sortedNames(r.kept), ", "))
	}
	if len(needed) > 0 && !r.o.Live && len(r.libraries[preloads[0]]) == 0 {
		r.done.warn("the WAL has records of resource managers that PostgreSQL itself has not (ids %s), and no library is known that brings them: recovery will stop there: take the extension's library into shared_preload_libraries, in the last lines of postgresql.auto.conf, before the start", numbers(needed))
	}
}

func (r *restoration) keepLibrary(setting, name string, needed bool) bool {
	l, isKnown := known[name]
	switch {
	case !libraryName.MatchString(name):
		r.done.note("%s: %q is no plain name of a library and was left out", setting, name)
		return false
	case isKnown && (l.fate == harmless || l.fate == silenced):
		if r.bin == "" || r.hasLibrary(name) {
			return true
		}
		r.done.note("%s: library %s is not installed here and was left out: install it and take it in again before use", setting, name)
		return false
	case needed && setting == preloads[0] && (!isKnown || l.fate == manager):
		// Without it recovery would stop, so it stays though it may be missing here.
		r.done.warn("library %s is loaded by the restored server, since the WAL has records that PostgreSQL itself cannot replay: whatever worker it has runs too; keep this server away from the network", name)
		if r.bin != "" && !r.hasLibrary(name) {
			r.done.before("install the extension that brings the library %s: the WAL cannot be replayed without it", name)
		}
		return true
	case isKnown:
		r.done.note("%s: library %s was left out: it has workers that act by themselves, or needs more than this host may have: take it in again before use", setting, name)
	default:
		r.done.note("%s: library %s was left out: it is not known to be quiet: take it in again before use", setting, name)
	}
	return false
}

// wantLibraries names, for a live server, the libraries without which it does not
// start here.
func (r *restoration) wantLibraries(setting string) {
	value, recorded := r.o.Part.Preload[setting]
	if !recorded {
		value = r.values[setting]
	}
	for _, name := range libraryList(value) {
		if r.bin != "" && !(libraryName.MatchString(name) && r.hasLibrary(name)) {
			r.done.before("install the extension that brings the library %s, or take it out of %s: PostgreSQL does not start without it", name, setting)
		}
	}
}

func (r *restoration) hasLibrary(name string) bool {
	for _, dir := range []string{filepath.Join(r.bin, "../lib"), filepath.Join(r.bin, "../lib/postgresql"), filepath.Join(r.bin, "../lib64")} {
		if _, err := os.Stat(filepath.Join(dir, name+".so")); err == nil {
			return true
		}
	}
	return false
}
