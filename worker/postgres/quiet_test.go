package postgres

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/postgres/pgconf"
)

// restoreWith is restore with other options.
func restoreWith(t testing.TB, w Work, part *set.Postgres, change func(*RestoreOptions)) (*Restored, string) {
	t.Helper()
	target := filepath.Join(place(t), "odd, name %x {1}", "postgres")
	require.NoError(t, os.MkdirAll(target, 0o755))
	o := RestoreOptions{Part: part, Repo: w.RepoDir(), Target: target, ConfigFrom: w.ConfigDir(), Runner: keptRunner{}}
	change(&o)
	r, err := Restore(t.Context(), o)
	require.NoError(t, err)
	return r, target
}

// TestRestoredSubscriber restores a subscriber while the original is down. Nothing
// may come to it: the original, when it is back, gets every row. Once the printed
// steps are done the block may go, and the slot still stands where it was.
func TestRestoredSubscriber(t *testing.T) {
	publisher := lab.Postgres(t, lab.WithConf("wal_level = logical"))
	subscriber := lab.Postgres(t)
	publisher.Psql("create table t (i int primary key); create publication p for table t")
	subscriber.Psql("create table t (i int primary key)")
	subscriber.Psql(`create subscription "S'ub" connection '` + publisher.DSN() + `' publication p with (slot_name = s)`)
	rows := func(n string) func() bool {
		return func() bool { got, err := subscriber.Query("select count(*) from t"); return err == nil && got == n }
	}
	subscriber.Psql("alter database postgres set session_preload_libraries = 'auto_explain'")
	// Databases whose names psql takes apart, and one that lets nobody in.
	for i, database := range []string{"host=x", `q'uo\"te`, "closed"} {
		subscriber.Psql("create database made")
		subscriber.PsqlIn("made", fmt.Sprintf("create subscription %s connection 'host=/nowhere' publication p with (connect = false, slot_name = 'x%d')", pgx.Identifier{database}.Sanitize(), i))
		subscriber.Psql("alter database made rename to " + pgx.Identifier{database}.Sanitize())
	}
	subscriber.Psql("alter database closed allow_connections false")
	publisher.Psql("insert into t select generate_series(1, 10)")
	require.Eventually(t, rows("10"), 30*time.Second, 50*time.Millisecond)
	w := newWork(t)
	part, _ := backUp(t, options(subscriber), w)
	require.Contains(t, part.Subscriptions, set.Subscription{Database: "postgres", Name: "S'ub"})
	require.Len(t, part.Subscriptions, 4)
	require.NoError(t, subscriber.Stop())
	require.Eventually(t, func() bool { return publisher.Psql("select active from pg_replication_slots") == "f" }, 30*time.Second, 50*time.Millisecond)
	publisher.Psql("insert into t select generate_series(11, 20)")
	stands := publisher.Psql("select confirmed_flush_lsn from pg_replication_slots")

	r, target := restore(t, w, part)
	stop := strings.Replace(r.StartCommand, " -w start", " -m fast -w stop", 1)
	t.Cleanup(func() { _ = exec.Command("sh", "-c", stop).Run() })
	before := strings.Join(r.Before, "\n")
	require.Contains(t, before, "S'ub in postgres")
	require.Contains(t, before, "catalog-backup restore: begin")

	// What is printed is what ends the subscriptions, one line at once after the other.
	_, command, ok := strings.Cut(r.Before[1], "acts by itself: ")
	require.True(t, ok, r.Before[1])
	command, _, _ = strings.Cut(command, "; look in")
	out, err := exec.Command("sh", "-c", r.StartCommand+" >/dev/null && "+command).CombinedOutput()
	require.NoError(t, err, "%s: %s", command, out)
	require.Contains(t, string(out), "session_preload_libraries=auto_explain")
	s := running(t, r)
	require.Equal(t, "f||4", s.query("template1", "select subenabled, subslotname, count(*) from pg_subscription group by 1, 2"))
	// The server itself finds them ended: one that has a slot would be dropped there.
	s.query("template1", "alter database closed allow_connections true")
	s.query("closed", "drop subscription closed")
	// Nor does what the role sets for its sessions keep a printed line from its work.
	s.query("template1", "alter role postgres set local_preload_libraries = 'gone'; alter role postgres set role = pg_monitor; alter role postgres set statement_timeout = 1; alter role postgres set default_transaction_read_only = on")
	out, err = exec.Command("sh", "-c", command).CombinedOutput()
	require.NoError(t, err, "%s: %s", command, out)
	require.Equal(t, "10", s.query("postgres", "select count(*) from t"))
	require.Equal(t, "0", s.query("postgres", "select count(*) from pg_stat_activity where backend_type ~ 'logical replication'"))
	out, err = exec.Command("sh", "-c", r.Psql+" -Atc 'show session_preload_libraries'").CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "\n", string(out), "a printed command loads what a database sets for its sessions")
	auto := filepath.Join(target, "data", "postgresql.auto.conf")
	content, err := os.ReadFile(auto)
	require.NoError(t, err)
	head, _, ok := strings.Cut(string(content), blockBegin)
	require.True(t, ok)
	require.True(t, strings.HasSuffix(string(content), blockEnd+"\n"))
	require.NoError(t, os.WriteFile(auto, []byte(head+"listen_addresses = ''\nunix_socket_directories = '"+s.socket+"'\n"), 0o600))
	shell(t, "sh", "-c", stop)
	s = start(t, r, 0)
	require.Equal(t, "4", s.query("postgres", "show max_logical_replication_workers"))

	require.Equal(t, "false|"+stands, publisher.Psql("select active || '|' || confirmed_flush_lsn from pg_replication_slots"))
	require.NoError(t, subscriber.Start())
	require.Eventually(t, rows("20"), 30*time.Second, 50*time.Millisecond)
}

// TestConfigurationIsAnAllowList restores a cluster whose files are full of ways
// out and of values that no server here takes, while what was in force (limits,
// libraries) stands in no file, as when it was given on the command line.
func TestConfigurationIsAnAllowList(t *testing.T) {
	outside := place(t)
	mark := filepath.Join(outside, "acted")
	require.NoError(t, os.Mkdir(mark, 0o777))
	require.NoError(t, os.Chmod(mark, 0o777))
	p := lab.Postgres(t, lab.WithInitDB("--wal-segsize=64"), lab.WithConf("min_wal_size = 320MB", "max_connections = 300", "max_locks_per_transaction = 256", "max_prepared_transactions = 20", "max_worker_processes = 13", "max_wal_senders = 17",
		"track_commit_timestamp = on", "shared_preload_libraries = 'pg_stat_statements, pg_prewarm'"))
	p.Psql("create table t as select generate_series(1, 100) i; create extension pg_stat_statements")
	for i := range 15 {
		p.Psql("begin; insert into t values (1000); prepare transaction 'p" + string(rune('a'+i)) + "'")
	}
	write := func(name, content string) {
		path := filepath.Join(p.DataDir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	require.NoError(t, os.WriteFile(outside+"/evil.conf", []byte("archive_mode = on\narchive_command = 'touch "+mark+"/archived'\n"), 0o644))
	write("postgresql.conf", strings.Join([]string{
		"max_connections = 10 # stale", "max_prepared_transactions = 30000", "shared_buffers = 2TB", "huge_pages = on", "ssl = on", "SSL_cert_file 'missing.crt'", "lc_messages = 'xx_XX.UTF-8'", "timezone = 'No/Where'",
		"\rmaintenance_work_mem\r=\r33MB", "include\r'" + outside + "/evil.conf'", "work_mem = 1\rinclude 'x'", "include 'parts/more.conf'", "include_dir '.'", "include_dir 'parts'", "include 'missing.conf'",
		"include 'PG_VERSION'", "include 'base/1/1259'", "include_if_exists '../../../../" + outside + "/evil.conf'", "shared_preload_libraries = 'auto_explain, \"unknown_lib\", $libdir/../evil, /tmp/evil.so, pg_cron'",
		"session_preload_libraries = 'basic_archive'", "local_preload_libraries = 'auto_explain'", "log_directory = '" + outside + "/log'", "logging_collector = on", "external_pid_file = '" + mark + "/pid'", "jit_provider = '" + outside + "/x'",
		"dynamic_library_path = '" + outside + "'", "data_directory = '" + outside + "'", "unix_socket_group = 'nobody-there'", "port = 1", "cluster_name = 'not closed", "max_stack_depth = 1GB", "wal_level = minimal",
		"auto_explain.log_min_duration = 5s", "app.tenant = 'x'", "plperl.on_init = 'x'", "superuser_reserved_connections = 400", "future_setting = on", "work_mem = 9MB",
	}, "\n"))
	write("parts/more.conf", "listen_addresses\r=\r'*'\nrandom_page_cost = 2.5\ninclude '../parts/loop.conf'")
	write("parts/loop.conf", "include '../postgresql.conf'\n\x00\ncluster_name = restored")
	appendTo(t, filepath.Join(p.DataDir, "postgresql.auto.conf"), "archive_cleanup_command = 'touch "+mark+"/cleaned'\nrecovery_end_command = 'touch "+mark+"/ended'\neffective_cache_size = 77MB")
	appendTo(t, filepath.Join(p.DataDir, "pg_hba.conf"), "host all all @"+outside+"/none ldap ldapserver=192.0.2.1\n")
	w := newWork(t)
	part, _ := backUp(t, options(p), w)
	require.NoError(t, p.Stop())

	r, target := restoreWith(t, w, part, func(*RestoreOptions) {})
	s := start(t, r, 0)
	require.Equal(t, "100|15", s.query("postgres", "select count(*) || '|' || (select count(*) from pg_prepared_xacts) from t"))
	for setting, want := range map[string]string{
		"max_connections": "300", "max_locks_per_transaction": "256", "max_pred_locks_per_transaction": "64", "max_prepared_transactions": "20", "max_worker_processes": "13", "max_wal_senders": "17", "track_commit_timestamp": "on",
		"huge_pages": "try", "ssl": "off", "archive_mode": "off", "listen_addresses": "", "port": "5432", "logging_collector": "off", "wal_level": "replica", "archive_cleanup_command": "",
		"work_mem": "9MB", "maintenance_work_mem": "33MB", "random_page_cost": "2.5", "cluster_name": "restored", "effective_cache_size": "77MB", "auto_explain.log_min_duration": "5s",
		"shared_preload_libraries": "pg_stat_statements, pg_prewarm, auto_explain", "session_preload_libraries": "", "local_preload_libraries": "", "pg_prewarm.autoprewarm": "off", "max_logical_replication_workers": "0",
		"data_directory": target + "/data", "jit_provider": "llvmjit", "dynamic_library_path": "$libdir", "max_stack_depth": "2MB",
	} {
		require.Equal(t, want, s.query("postgres", "show "+setting), setting)
	}
	notes := strings.Join(r.Notes, "\n")
	for _, word := range []string{"lc_messages", "timezone", "shared_buffers of 2097152 MB", "unknown_lib", `"../evil"`, "pg_cron", "basic_archive", "future_setting (line 37)", "pg_hba.conf.original", "not readable for the server (line 30)", "include (line 10)", "listen_addresses (line 1)", "app.tenant"} {
		require.Contains(t, notes, word)
	}
	require.NotContains(t, notes, "not_closed")
	requireAllowed(t, target)
	out, err := exec.Command("sh", "-c", r.Psql+" -Atc 'select 7'").CombinedOutput()
	require.NoError(t, err, "%s: %s", r.Psql, out)
	require.Equal(t, "7\n", string(out))
	s.query("postgres", "commit prepared 'pa'")
	require.Equal(t, "101", s.query("postgres", "select count(*) from t"))
	left, err := os.ReadDir(mark)
	require.NoError(t, err)
	require.Empty(t, left)
	content, err := os.ReadFile(filepath.Join(target, "data/PG_VERSION"))
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(part.ServerVersionNum/10000)+"\n", string(content))
	shell(t, "sh", "-c", strings.Replace(r.StartCommand, " -w start", " -m fast -w stop", 1))

	// With --live what leads to the original is out of force, and all else stays.
	// The libraries are those that were loaded, whatever the files say.
	loaded := *part
	loaded.Preload = map[string]string{"shared_preload_libraries": "unknown_lib, pg_prewarm"}
	r, target = restoreWith(t, w, &loaded, func(o *RestoreOptions) { o.Live = true })
	require.Contains(t, r.Warnings[0], "--live")
	require.Contains(t, strings.Join(r.Before, "\n"), "the library unknown_lib, or take it out of shared_preload_libraries")
	text, err := os.ReadFile(filepath.Join(target, "data/postgresql.conf"))
	require.NoError(t, err)
	more, err := os.ReadFile(filepath.Join(target, "data/parts/more.conf"))
	require.NoError(t, err)
	auto, err := os.ReadFile(filepath.Join(target, "data/postgresql.auto.conf"))
	require.NoError(t, err)
	require.Contains(t, string(text), "\nssl = on\n")
	require.Contains(t, string(text), "\nport = 1\n")
	require.Contains(t, string(text), "\nshared_preload_libraries = 'auto_explain")
	require.Contains(t, string(more), "listen_addresses\r=\r'*'\n")
	for _, line := range []string{"external_pid_file", "data_directory", "log_directory"} {
		require.Contains(t, string(text), "\n"+retired+line)
	}
	require.Contains(t, string(auto), "\narchive_mode = 'off'\n")
	require.Contains(t, string(auto), "\nmax_connections = '300'\n")
	require.Contains(t, string(auto), "\nshared_preload_libraries = 'unknown_lib, pg_prewarm'\n")
	require.NotContains(t, string(auto), "\nlisten_addresses")
	require.FileExists(t, filepath.Join(target, "data/pg_hba.conf"))
	require.NoFileExists(t, filepath.Join(target, "data/pg_hba.conf.original"))
}

// requireAllowed reads what the restored server reads and wants only settings that
// may stay, but for the block.
func requireAllowed(t testing.TB, target string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(target, "data"), func(path string, e os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".conf") || strings.HasPrefix(e.Name(), "pg_") {
			return err
		}
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		text, _, _ := strings.Cut(string(content), blockBegin)
		for i, line := range pgconf.Lines(text) {
			l := pgconf.Parse(line)
			require.NotEqual(t, pgconf.Invalid, l.Kind, "%s:%d: %q", path, i+1, line)
			require.True(t, l.Kind == pgconf.Blank || allowed[l.Name] || ofQuietLibrary(l.Name) || l.Name == "include" && strings.Contains(l.Value, "parts/"), "%s:%d: %q", path, i+1, line)
		}
		return nil
	})
	require.NoError(t, err)
}
