package postgres

import (
	"bytes"
	"context"
	"debug/elf"
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
		if err := c.QueryRow(ctx, "select current_setting($1)", name).Scan(&value); err != nil {
			return queryError(ctx, name, err)
		}
		f.Preload[name] = value
	}
	if err := c.QueryRow(ctx, "select coalesce((select rolname::text from pg_catalog.pg_roles where oid = 10), '')").Scan(&f.Superuser); err != nil {
		return queryError(ctx, "the first superuser", err)
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

// readCollations asks the server for the version of its C library, and looks into
// its program for that of ICU: the versions that SQL tells of ICU are those of its
// tables, which no other program of a host can name.
func (f *Facts) readCollations(ctx context.Context, c *pgx.Conn) error {
	f.Collations = nil
	if f.VersionNum >= 130000 { // before, PostgreSQL itself knew none of the C library
		query := "select coalesce(max(pg_catalog.pg_collation_actual_version(oid)), '') from pg_catalog.pg_collation where collprovider = 'c'"
		if f.VersionNum >= 150000 {
			query = "select coalesce(max(v), '') from (select pg_catalog.pg_collation_actual_version(oid) v from pg_catalog.pg_collation where collprovider = 'c' union all select pg_catalog.pg_database_collation_actual_version(oid) from pg_catalog.pg_database where datlocprovider = 'c') x"
		}
		var version string
		if err := c.QueryRow(ctx, query).Scan(&version); err != nil {
			return queryError(ctx, "the version of its C library", err)
		}
		if version != "" {
			f.Collations = append(f.Collations, set.Collation{Provider: "libc", Version: version})
		}
	}
	if pid, err := os.ReadFile(filepath.Join(f.DataDirectory, "postmaster.pid")); err == nil {
		line, _, _ := strings.Cut(string(pid), "\n")
		if n, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && n > 0 {
			if version := icuOf(fmt.Sprintf("/proc/%d/exe", n)); version != "" {
				f.Collations = append(f.Collations, set.Collation{Provider: "icu", Version: version})
			}
		}
	}
	return nil
}

var icuLibrary = regexp.MustCompile(`^libicui18n\.so\.(\d+)$`)

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
	host := ""
	if r.socketDir != "" {
		host = " -h " + shellQuote(r.socketDir)
	}
	return r.asOwner(fmt.Sprintf("%s%s -p %d -U %s --all", r.program("reindexdb"), host, quietPort, shellQuote(firstOf(r.o.Part.Superuser, "postgres"))))
}

// missingLocales warns of databases that no session can enter here: PostgreSQL
// refuses a database whose locale the operating system does not know.
func (r *restoration) missingLocales(ctx context.Context) {
	var out bytes.Buffer
	if r.o.Runner.Run(ctx, Command{Path: "/usr/bin/locale", Args: []string{"-a"}, Env: childEnv(""), Dir: "/", Stdout: &out, Stderr: &bytes.Buffer{}}) != nil {
		return
	}
	here := map[string]bool{"c": true, "posix": true, "": true}
	for _, name := range strings.Fields(out.String()) {
		here[plainLocale(name)] = true
	}
	for _, d := range r.o.Part.Databases {
		for _, name := range []string{d.Collate, d.Ctype} {
			if d.Provider == "b" || here[plainLocale(name)] {
				continue
			}
			here[plainLocale(name)] = true
			r.done.warn("the locale %q, which database %q needs, is not on this host: nobody can connect to it until the locale is made (Debian: uncomment it in /etc/locale.gen, then /usr/sbin/locale-gen; it needs the package locales)", name, d.Name)
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
