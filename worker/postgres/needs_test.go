package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// TestWhatABackupTells: what databases need of their host, what is in no backup, and
// what lies outside of the data directory, of a server with databases of all kinds.
func TestWhatABackupTells(t *testing.T) {
	out := place(t)
	write := func(name, text string) string {
		path := filepath.Join(out, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	hba := write("pg_hba.conf", "local \\\n refused all reject\nlocal @\"my dbs\",@plain all trust\nlocal \"@literal\" all trust\nlocal @gone all trust\nlocal all all trust # @no\nlocal replication all trust\n")
	dbs, plain := write("my dbs", "app @\"nested list\"\n"), write("plain", "postgres\n")
	nested, gone := write("nested list", "app\n"), write("gone", "x\n")
	big, long := write("big.conf", "work_mem = '5MB'\n"), write("long.conf", "")
	behind := write("behind.conf", "maintenance_work_mem = '70MB'\n")
	crt, key := write("x.crt", "x"), write("x.key", "x")
	p := lab.Postgres(t, lab.WithConf("hba_file = '"+hba+"'", "include = '"+big+"'", "include = '"+long+"'", "include_if_exists = '/nowhere/x.conf'",
		"ssl_cert_file = '"+crt+"'", "ssl_key_file = '"+key+"'", "ssl_ca_file = ''", "ssl_crl_file = 'inside.crl'"))
	// The server need not read these again.
	require.NoError(t, os.Remove(gone))
	write("big.conf", strings.Repeat("# "+strings.Repeat("x", 2<<20)+"\n", 9))
	write("long.conf", "# "+strings.Repeat("x", 2<<20)+"\ninclude 'behind.conf'\n")
	p.Psql("create database app; create database refused; create database closed allow_connections false; create database bytes encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0")
	p.PsqlIn("bytes", "set client_encoding = sql_ascii; create database \"caf\xe9\"; create unlogged table u (i int)")
	p.PsqlIn("caf\xe9", "create unlogged table u (i int)")
	p.PsqlIn("app", `create extension pg_trgm; create table t (x text); create index on t using gin (x gin_trgm_ops);
		create collation of_no_use (provider = libc, locale = 'C'); create collation de (provider = libc, locale = 'C.UTF-8');
		create text search dictionary mine (template = simple, stopwords = english); create unlogged table u (i int); create unlogged table v (i int)`)
	p.Psql("select pg_create_physical_replication_slot('standby')")

	w := newWork(t)
	o := options(p)
	f, found, err := Preflight(t.Context(), o, w)
	require.NoError(t, err)
	o.Runner = slowRunner{w: w, during: func([]int) { p.Psql("create database late") }}
	part, more, err := Backup(t.Context(), o, w, f, stage.NoProgress{})
	require.NoError(t, err)
	require.Empty(t, append(found.Warnings, more.Warnings...))

	require.Equal(t, &set.Needs{
		Locales:      []set.Need{{Name: "C.UTF-8", Databases: []string{"app"}}},
		Extensions:   []set.Need{{Name: "pg_trgm", Version: "1.6", Databases: []string{"app"}}},
		Libraries:    []set.Need{{Name: "$libdir/pg_trgm", Extension: "pg_trgm", Databases: []string{"app"}}},
		Dictionaries: []set.Need{{Name: "mine", Databases: []string{"app"}}},
		Unseen:       2,
	}, part.Needs)
	var names []string
	for _, d := range part.Databases {
		names = append(names, d.Name)
	}
	require.Contains(t, names, "late")
	notes := strings.Join(more.Notes, "\n")
	require.Regexp(t, `2 of 9 databases were not looked into.*"refused" \(pg_hba.conf rejects`, notes)
	require.Contains(t, notes, `"closed" (it allows no connections)`)
	require.Contains(t, notes, "the rows of 4 unlogged tables")
	require.Contains(t, notes, "replication slots are not in a backup (standby)")
	require.Contains(t, notes, `"caf\xe9", is not in UTF-8`)

	var paths []string
	for _, c := range part.Config {
		paths = append(paths, c.Path)
	}
	require.ElementsMatch(t, []string{hba, dbs, plain, nested, long, behind}, paths)
	notes = strings.Join(found.Notes, "\n")
	require.Contains(t, notes, "are not stored; keep them on their own, or make new ones: ssl_cert_file "+crt+", ssl_key_file "+key)
	require.NotContains(t, notes, "inside.crl")
	require.Contains(t, notes, hba+" names "+gone+", which is not there")
	require.NotContains(t, notes, "literal")
	require.NotContains(t, notes, "nowhere")
	require.Contains(t, notes, big+" is not stored: it is too large")
	grown := &stage.Findings{}
	left, err := copyConfig(t.Context(), []set.ConfigFile{{Path: big, Kind: "include"}}, place(t), grown)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Contains(t, grown.Notes[0], big+" is not stored: it is too large")
	require.Empty(t, verify(t, part, entries(t, w, part)))

	t.Run("a host without them", func(t *testing.T) { lackingHost(t, w, part) })
	t.Run("a small host", func(t *testing.T) { glibcMatters(t, p) })
	t.Run("a dangling link", func(t *testing.T) { danglingLink(t, p) })
}

// lackingHost restores where a library and a locale are not.
func lackingHost(t *testing.T, w Work, part *set.Postgres) {
	bin, err := lab.PGBinDir()
	require.NoError(t, err)
	here := place(t)
	require.NoError(t, os.Mkdir(here+"/lib", 0o755))
	require.NoError(t, os.Symlink(bin, here+"/bin"))
	require.NoError(t, os.Mkdir(here+"/own", 0o755))
	for _, program := range []string{"postgres", "pg_ctl", "pg_controldata"} {
		require.NoError(t, os.Symlink(filepath.Join(bin, program), filepath.Join(here, "own", program)))
	}
	require.NoError(t, os.WriteFile(here+"/lib/plpgsql.so", nil, 0o644))
	other := *part
	needs := *part.Needs
	needs.Locales = append([]set.Need{{Name: "xx_YY.UTF-8", Databases: []string{"app"}, More: 3}}, needs.Locales...)
	other.Needs = &needs
	r, _ := restoreWith(t, w, &other, func(o *RestoreOptions) { o.Installations = []string{here + "/own"} })
	warnings, before := strings.Join(r.Warnings, "\n"), strings.Join(r.Before, "\n")
	const library = `$libdir/pg_trgm of the extension pg_trgm (in "app")`
	require.Contains(t, warnings, "libraries that the databases use are not on this host; functions, types and indexes that need them fail until they are: "+library)
	require.Contains(t, before, "install the extensions' packages that bring these libraries: "+library)
	require.Contains(t, warnings, `the locale "xx_YY.UTF-8", which a collation in "app" and 3 more needs, is not on this host: queries and indexes with that collation fail`)
	require.NotContains(t, warnings, "C.UTF-8")
	require.Contains(t, strings.Join(r.Notes, "\n"), `"mine" in "app"`)
	odd := &restoration{o: RestoreOptions{Part: &set.Postgres{Databases: []set.Database{{Name: "caf\ufffd"}}}}}
	require.NotContains(t, odd.database(), "caf")

	says := func(change func(*restoration)) *Restored {
		r := &restoration{o: RestoreOptions{Part: part}, done: &Restored{}, bin: bin}
		change(r)
		require.NoError(t, r.missingLibraries(t.Context()))
		return r.done
	}
	require.Empty(t, append(says(func(*restoration) {}).Warnings, says(func(*restoration) {}).Before...))
	require.Contains(t, says(func(r *restoration) { r.bin = "" }).Before[0], "with PostgreSQL, install the extensions' packages")
	require.NoError(t, os.Remove(here+"/lib/plpgsql.so"))
	unknown := says(func(r *restoration) { r.bin = here + "/own" })
	require.Empty(t, unknown.Warnings)
	require.Contains(t, unknown.Notes[0], "cannot be told")
	older := *part
	older.Needs = nil
	require.Equal(t, &Restored{}, says(func(r *restoration) { r.o.Part = &older }))
}

// glibcMatters: its version is recorded where a collation of any database needs it,
// and where that cannot be told.
func glibcMatters(t *testing.T, p *lab.PG) {
	o := options(p)
	look := func() *set.Postgres {
		cfg, err := o.parseDSN()
		require.NoError(t, err)
		conn, err := connect(t.Context(), cfg)
		require.NoError(t, err)
		defer closeConn(conn.PgConn())
		f := &Facts{}
		require.NoError(t, f.readServer(t.Context(), conn, cfg, Options{}, &stage.Findings{}))
		part := &set.Postgres{}
		(&backup{o: o, f: f, found: &stage.Findings{}}).look(t.Context(), part)
		return part
	}
	glibc := set.Collation{Provider: "libc", Version: strings.TrimPrefix(shell(t, "getconf", "GNU_LIBC_VERSION"), "glibc ")}
	require.Contains(t, look().Collations, glibc, "of databases that were not looked into")
	p.Psql("drop database refused")
	p.Psql("drop database closed")
	require.NotContains(t, look().Collations, glibc)
	p.PsqlIn("app", "update pg_collation set collcollate = 'de_DE.UTF-8' where collname = 'de'")
	part := look()
	require.Contains(t, part.Collations, glibc)
	require.Contains(t, part.Needs.Locales, set.Need{Name: "de_DE.UTF-8", Databases: []string{"app"}})
}

// danglingLink: what a person has to mend is not tried again (explain_test.go has the
// others of its kind).
func danglingLink(t *testing.T, p *lab.PG) {
	link := filepath.Join(p.DataDir, "link")
	require.NoError(t, os.Symlink("/nowhere/file", link))
	o, w := options(p), newWork(t)
	f, _, err := Preflight(t.Context(), o, w)
	require.NoError(t, err)
	_, _, err = Backup(t.Context(), o, w, f, stage.NoProgress{})
	permanentWith(t, err, "code 41", link, "leads nowhere")
}
