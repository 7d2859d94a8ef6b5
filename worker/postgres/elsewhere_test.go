package postgres

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
)

// TestAnotherHost restores one backup as on hosts that have another major version,
// other libraries, less memory, or lack a locale.
func TestAnotherHost(t *testing.T) {
	p := lab.Postgres(t, lab.WithConf("max_connections = 211", "max_prepared_transactions = 7", "superuser_reserved_connections = 0", "track_commit_timestamp = on"))
	p.Psql("create database app; create role boss; begin; prepare transaction 'x'")
	w := newWork(t)
	part, _ := backUp(t, options(p), w)
	require.Equal(t, "postgres", part.Superuser)
	require.Equal(t, "", part.Preload["shared_preload_libraries"])
	bin, err := lab.PGBinDir()
	require.NoError(t, err)
	glibc := strings.TrimPrefix(shell(t, "getconf", "GNU_LIBC_VERSION"), "glibc ")
	libc, icu := loadedLibraries(p.DataDir)
	require.Equal(t, glibc, libc)
	require.NotEmpty(t, icu)
	require.Equal(t, icuOf(filepath.Join(bin, "postgres")), icu)
	require.Contains(t, part.Collations, set.Collation{Provider: "icu", Version: icu})
	require.NoError(t, p.Stop())

	t.Run("another major version", func(t *testing.T) {
		other := place(t)
		require.NoError(t, os.WriteFile(other+"/pg_ctl", []byte("#!/bin/sh\necho 'pg_ctl (PostgreSQL) 9.6.24'\n"), 0o755))
		require.NoError(t, os.WriteFile(other+"/postgres", nil, 0o755))
		outside := *part // what was set in a file that did not come
		outside.ConfigInForce = map[string]string{"config_file": "/etc/own.conf"}
		r, target := restoreWith(t, w, &outside, func(o *RestoreOptions) { o.Installations = []string{other} })
		require.Contains(t, r.Warnings[0], "is not installed here, and no other major version can start this data directory")
		major := filepath.Base(filepath.Dir(bin))
		require.Contains(t, r.Before[0], "apt-get install postgresql-"+major+", from https://apt.postgresql.org")
		for _, command := range append([]string{r.StartCommand, r.Psql}, r.Before...) {
			for _, program := range []string{"pg_ctl", "psql", "runuser", "reindexdb"} {
				require.NotRegexp(t, `(^|[ |(])`+program+` `, command)
			}
		}
		require.Contains(t, r.StartCommand, "/usr/lib/postgresql/"+major+"/bin/pg_ctl -D '"+target+"/data'")
		// Once that version is installed, what is printed works; the limits are the manifest's.
		r.StartCommand = strings.ReplaceAll(r.StartCommand, "/usr/lib/postgresql/"+major+"/bin", bin)
		require.Equal(t, "211|on", start(t, r, 0).query("app", "select current_setting('max_connections') || '|' || current_setting('track_commit_timestamp')"))
	})
	t.Run("other libraries", func(t *testing.T) {
		other := *part
		other.Collations = []set.Collation{{Provider: "libc", Version: "2.28"}, {Provider: "icu", Version: "63"}, {Provider: "future", Version: "1"}}
		other.Databases = append(append([]set.Database{}, part.Databases...), set.Database{OID: 1, Name: "d", Provider: "c", Collate: "xx_YY.UTF-8", Ctype: "C.UTF-8"})
		r, _ := restoreWith(t, w, &other, func(o *RestoreOptions) { o.Memory = 40 << 20 })
		require.Len(t, r.Warnings, 3)
		require.Contains(t, r.Warnings[0], "the original sorted text by glibc 2.28, this host has "+glibc+": indexes on text may be wrong")
		require.Contains(t, r.Warnings[0], "REINDEX DATABASE")
		require.Contains(t, r.Warnings[1], "ICU 63, this host has "+icu)
		require.Contains(t, r.Warnings[2], `the locale "xx_YY.UTF-8", which database "d" needs, is not on this host`)
		s := start(t, r, 0)
		require.Equal(t, "10MB", s.query("app", "show shared_buffers"))
		require.Contains(t, strings.Join(r.Notes, "\n"), "shared_buffers of 32 MB is more than this host with 40 MB of memory can have: it is 10MB here")
		// Both commands in the warning work as they are printed.
		_, command, _ := strings.Cut(r.Warnings[0], "in every database (")
		command, _, _ = strings.Cut(command, "), check unique")
		_, look, _ := strings.Cut(r.Warnings[0], "what differs: ")
		for _, c := range []string{command, look} {
			out, err := exec.Command("sh", "-c", c).CombinedOutput()
			require.NoError(t, err, "%s: %s", c, out)
		}
	})
	t.Run("in the original's place", func(t *testing.T) {
		r, target := restoreWith(t, w, part, func(o *RestoreOptions) { o.Live = true })
		require.Contains(t, r.Warnings[0], "--live")
		stop := strings.Replace(r.StartCommand, " -w start", " -m immediate -w stop", 1)
		t.Cleanup(func() { _ = exec.Command("sh", "-c", stop).Run() })
		shell(t, "sh", "-c", r.StartCommand)
		// It answers where the original did, as the original did.
		require.Equal(t, target+"/data|211|4|off", p.Psql("select current_setting('data_directory') || '|' || current_setting('max_connections') || '|' || current_setting('max_logical_replication_workers') || '|' || current_setting('archive_mode')"))
	})
	t.Run("an older pgBackRest", func(t *testing.T) {
		dir := place(t)
		require.NoError(t, os.WriteFile(dir+"/pgbackrest", []byte("#!/bin/sh\necho pgBackRest 2.40\n"), 0o755))
		target := filepath.Join(dir, "target")
		require.NoError(t, os.Mkdir(target, 0o700))
		_, err := Restore(t.Context(), RestoreOptions{Part: part, Repo: w.RepoDir(), Target: target, Runner: keptRunner{}, PgBackRest: dir + "/pgbackrest"})
		permanentWith(t, err, "pgBackRest 2.40 knows", "install pgBackRest")
		left, err := os.ReadDir(target)
		require.NoError(t, err)
		require.Empty(t, left)
	})
	t.Run("an older set", func(t *testing.T) {
		older := *part
		older.Collations, older.Databases = nil, []set.Database{{OID: 5, Name: "app", Encoding: "UTF8"}}
		r := &restoration{o: RestoreOptions{Part: &older, Runner: keptRunner{}}, done: &Restored{}, bin: bin}
		require.NoError(t, r.compareCollations(t.Context()))
		require.Empty(t, r.done.Warnings)
		require.Contains(t, strings.Join(r.done.Notes, "\n"), "does not say with which versions of glibc and ICU")
	})
}

// TestServerIsFoundByItsPrograms: an installation is one that has postgres itself,
// not only Debian's client programs.
func TestServerIsFoundByItsPrograms(t *testing.T) {
	bin, err := lab.PGBinDir()
	require.NoError(t, err)
	var version bytes.Buffer
	version.WriteString(shell(t, filepath.Join(bin, "postgres"), "--version"))
	part := &set.Postgres{ServerVersionNum: 150000, ServerVersion: "15.0"}
	if !strings.Contains(version.String(), " 15.") {
		part.ServerVersionNum = 170000
	}
	r := &restoration{o: RestoreOptions{Part: part, Runner: keptRunner{}, Installations: []string{place(t), bin}}, done: &Restored{}}
	require.NoError(t, r.findServer(t.Context()))
	require.Equal(t, bin, r.bin)
	require.Empty(t, r.done.Notes)
	part.ServerVersionNum, part.ServerVersion = part.ServerVersionNum+9999, "15.9999"
	require.NoError(t, r.findServer(t.Context()))
	require.Contains(t, r.done.Notes[0], "the backup is of 15.9999")
}
