package postgres

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"catalog-backup/shared/set"
)

// readOrigin records what a restored server has to find alike, or has to be told:
// libraries that sort text, libraries that the server loads, subscriptions.
func (f *Facts) readOrigin(ctx context.Context, c *pgx.Conn) error {
	f.Preload = map[string]string{}
	for _, name := range preloads {
		var value string
		// What is set for our own session is not the server's.
		err := c.QueryRow(ctx, "select setting from pg_catalog.pg_settings where name = $1 and source in ('default', 'environment variable', 'configuration file', 'command line')", name).Scan(&value)
		if errors.Is(err, pgx.ErrNoRows) {
			continue
		}
		if err != nil {
			return queryError(ctx, name, err)
		}
		f.Preload[name] = value
	}
	// Where none of them may log in, nothing printed for it works: then it is initdb's.
	if err := c.QueryRow(ctx, `select coalesce((select rolname::text from pg_catalog.pg_roles where oid = 10 or rolsuper
		order by rolsuper and rolcanlogin desc, oid = 10 desc, rolname = session_user desc, oid limit 1), '')`).Scan(&f.Superuser); err != nil {
		return queryError(ctx, "a superuser that may log in", err)
	}
	rows, err := c.Query(ctx, "select d.datname::text, s.subname::text from pg_catalog.pg_subscription s join pg_catalog.pg_database d on d.oid = s.subdbid order by 1, 2")
	if err != nil {
		return queryError(ctx, "the subscriptions", err)
	}
	if f.Subscriptions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[set.Subscription]); err != nil {
		return queryError(ctx, "the subscriptions", err)
	}
	return f.readCollations(ctx, c)
}

// readCollations finds the versions of the libraries that sort text: glibc, of which
// needs.go says whether anything depends on it, and ICU where the server is linked
// with it.
func (f *Facts) readCollations(ctx context.Context, c *pgx.Conn) error {
	var version string
	if f.VersionNum >= 130000 { // before, PostgreSQL knew no version of the C library
		err := c.QueryRow(ctx, "select coalesce(max(pg_catalog.pg_collation_actual_version(oid)), '') from pg_catalog.pg_collation where collprovider = 'c'").Scan(&version)
		if err != nil {
			return queryError(ctx, "the version of its C library", err)
		}
	}
	libc, icu := loadedLibraries(f.DataDirectory)
	f.Collations = nil
	if version = firstOf(version, libc); version != "" {
		f.Collations = append(f.Collations, set.Collation{Provider: "libc", Version: version})
	}
	if icu != "" {
		f.Collations = append(f.Collations, set.Collation{Provider: "icu", Version: icu})
	}
	return nil
}

// loadedLibraries looks at the running server's process, wherever its libraries lie
// and whatever container it is in; "" = not there or not seen from here. The
// versions of ICU that SQL tells are those of its tables, which no other program of
// a host can name; so ICU is told by its own major version.
func loadedLibraries(data string) (libc, icu string) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return "", ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 0 {
		return "", ""
	}
	process := fmt.Sprintf("/proc/%d", pid)
	at, err1 := os.Stat(filepath.Join(process, "cwd")) // the server's is its data directory
	home, err2 := os.Stat(data)
	maps, err3 := os.ReadFile(filepath.Join(process, "maps"))
	if err1 != nil || err2 != nil || err3 != nil || !os.SameFile(at, home) {
		return "", ""
	}
	for _, line := range strings.Split(string(maps), "\n") {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		if m := icuLibrary.FindStringSubmatch(filepath.Base(f[5])); m != nil {
			icu = m[1]
		}
		if libc == "" && glibcFile.MatchString(filepath.Base(f[5])) {
			content, err := readLimited(filepath.Join(process, "root", f[5]), 64<<20)
			if m := glibcVersion.FindSubmatch(content); err == nil && m != nil {
				libc = string(m[1])
			}
		}
	}
	return libc, icu
}

var (
	glibcFile    = regexp.MustCompile(`^libc(\.so\.6|-2\.\d+\.so)$`)
	glibcVersion = regexp.MustCompile(`GNU C Library [^\n]*release version (\d+\.\d+)`)
)

var icuLibrary = regexp.MustCompile(`^libicui18n\.so\.(\d+)(\.\d+)*$`)

// icuOf is the major version of the ICU that a program is linked with; "" = none,
// or it cannot be told.
func icuOf(program string) string {
	file, err := elf.Open(program)
	if err != nil {
		return ""
	}
	defer file.Close()
	libraries, _ := file.ImportedLibraries()
	for _, name := range libraries {
		if m := icuLibrary.FindStringSubmatch(name); m != nil {
			return m[1]
		}
	}
	return ""
}

// hereVersion is the version of this host's library, as a manifest has it; "" = it
// cannot be told.
func (r *restoration) hereVersion(ctx context.Context, provider string) string {
	if provider == "icu" {
		if r.bin == "" {
			return ""
		}
		return icuOf(filepath.Join(r.bin, "postgres"))
	}
	var out bytes.Buffer
	if r.o.Runner.Run(ctx, Command{Path: "/usr/bin/getconf", Args: []string{"GNU_LIBC_VERSION"}, Env: childEnv(""), Dir: "/", Stdout: &out, Stderr: &out}) != nil {
		return ""
	}
	version, ok := strings.CutPrefix(strings.TrimSpace(out.String()), "glibc ")
	if !ok {
		return ""
	}
	return version
}

// otherCollations lists what the server itself finds different; it knows the C
// library's versions of collations from 13 on, of databases from 15 on.
const otherCollations = `select collname, collprovider, collversion, pg_catalog.pg_collation_actual_version(oid) as here from pg_catalog.pg_collation where collversion <> pg_catalog.pg_collation_actual_version(oid)`

// compareCollations warns where this host sorts text otherwise than the original,
// or lacks one of its locales.
func (r *restoration) compareCollations(ctx context.Context) error {
	if len(r.o.Part.Collations) == 0 {
		r.done.note("the set does not say with which versions of glibc and ICU its text was sorted: if this host has others than the original, REINDEX every database before use")
	}
	for _, c := range r.o.Part.Collations {
		name := map[string]string{"libc": "glibc", "icu": "ICU"}[c.Provider]
		if name == "" {
			continue
		}
		here := r.hereVersion(ctx, c.Provider)
		switch {
		case here == "":
			r.done.note("text was sorted by %s %s; which one this host's PostgreSQL has cannot be told: if it is another, REINDEX every database before use", name, c.Version)
		case here != c.Version:
			r.done.warn("the original sorted text by %s %s, this host has %s: indexes on text may be wrong, which loses rows from answers and lets duplicates in: on the started server run REINDEX DATABASE in every database (%s), check unique text columns and partition bounds, and then ALTER DATABASE … REFRESH COLLATION VERSION; what differs: %s",
				name, c.Version, here, r.reindexdb(), r.psql(r.database(), "-c "+shellQuote(otherCollations)))
		}
	}
	r.missingLocales(ctx)
	return ended(ctx, "compare collations")
}

// reindexdb is the command that makes all indexes anew.
func (r *restoration) reindexdb() string {
	return r.psql(r.home(), "-qo /dev/null -c "+shellQuote(waitPromoted)) + " && " +
		r.asOwner(fmt.Sprintf("%s %s%s --all --maintenance-db=%s", quietSession, r.program("reindexdb"), r.address(), shellQuote(r.home())))
}

// missingLocales warns of databases that no session can enter here, since PostgreSQL
// refuses a database whose locale the operating system does not know, and of
// collations that fail.
func (r *restoration) missingLocales(ctx context.Context) {
	var out bytes.Buffer
	if r.o.Runner.Run(ctx, Command{Path: "/usr/bin/locale", Args: []string{"-a"}, Env: childEnv(""), Dir: "/", Stdout: &out, Stderr: &bytes.Buffer{}}) != nil {
		return
	}
	here := map[string]bool{"c": true, "posix": true, "": true}
	for _, name := range strings.Fields(out.String()) {
		here[plainLocale(name)] = true
	}
	missing := func(name, who, until string) {
		if here[plainLocale(name)] {
			return
		}
		here[plainLocale(name)] = true
		r.done.warn("the locale %q, which %s needs, is not on this host: %s until the locale is made (Debian: uncomment it in /etc/locale.gen, then /usr/sbin/locale-gen; it needs the package locales)", name, who, until)
	}
	for _, d := range r.o.Part.Databases {
		for _, name := range []string{d.Collate, d.Ctype} {
			missing(name, fmt.Sprintf("database %q", d.Name), "nobody can connect to it")
		}
	}
	if n := r.o.Part.Needs; n != nil {
		for _, l := range n.Locales {
			missing(l.Name, "a collation in "+inDatabases(l), "queries and indexes with that collation fail")
		}
	}
}

// plainLocale gives a locale's name as the C library compares it: the charset
// without case and dashes.
func plainLocale(name string) string {
	language, charset, _ := strings.Cut(name, ".")
	charset, modifier, _ := strings.Cut(charset, "@")
	if charset == "" {
		return strings.ToLower(name)
	}
	return strings.ToLower(language + "." + strings.NewReplacer("-", "", "_", "").Replace(charset) + "@" + modifier)
}
