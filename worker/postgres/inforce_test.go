package postgres

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
)

// TestFilesInForce backs up a server whose files have names of their own, beside
// ones of the usual names that it does not read. Its command line names one and
// a library; initdb's role may not log in, its database is gone.
func TestFilesInForce(t *testing.T) {
	p := lab.Postgres(t)
	p.Psql("create role boss superuser login; create role nobody superuser login")
	p.Psql("create database aaa allow_connections false")
	p.Psql("create database app")
	require.NoError(t, p.Stop())
	write := func(name, content string) {
		path := filepath.Join(p.DataDir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	write("custom.conf", "include 'postgresql.conf'\nwork_mem = 9MB\nhba_file = '"+p.DataDir+"/my_hba.conf'\nident_file = '"+p.DataDir+"/own/my_ident.conf'\n")
	write("my_hba.conf", "local all all peer map=m\nlocal replication all peer map=m\n")
	write("own/my_ident.conf", "m postgres boss\n")
	write("pg_ident.conf", "m nobody boss\n")
	pgctl := func(args ...string) {
		out, err := p.Command("pg_ctl", append([]string{"-D", p.DataDir, "-w"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	pgctl("-l", p.SocketDir+"/custom.log", "-o", "-c config_file="+p.DataDir+"/custom.conf -c shared_preload_libraries=auto_explain", "start")
	t.Cleanup(func() { _ = p.Command("pg_ctl", "-D", p.DataDir, "-m", "immediate", "stop").Run() })
	ask := func(account, sql string) (string, error) {
		out, err := exec.Command("runuser", "-u", account, "--", filepath.Join(p.BinDir, "psql"), "-XAtq", "-h", p.SocketDir, "-p", strconv.Itoa(p.Port), "-U", "boss", "-d", "app", "-c", sql).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	_, err := ask("postgres", "drop database postgres")
	require.NoError(t, err)
	_, err = ask("postgres", "alter role postgres nologin")
	require.NoError(t, err)
	w := newWork(t)
	o := options(p)
	o.DSN = strings.NewReplacer("user=postgres", "user=boss", "dbname=postgres", "dbname=app").Replace(p.DSN())
	part, _ := backUp(t, o, w)
	require.Equal(t, map[string]string{"config_file": "custom.conf", "hba_file": "my_hba.conf", "ident_file": "own/my_ident.conf"}, part.ConfigInForce)
	require.Equal(t, "boss", part.Superuser)
	pgctl("-m", "fast", "stop")

	// live starts a server in the original's place; it knows the account postgres only.
	live := func(part *set.Postgres) (*Restored, string) {
		r, _ := restoreWith(t, w, part, func(o *RestoreOptions) { o.Live = true })
		stop := strings.Replace(r.StartCommand, " -w start", " -m immediate -w stop", 1)
		t.Cleanup(func() { _ = exec.Command("sh", "-c", stop).Run() })
		shell(t, "sh", "-c", r.StartCommand)
		said, err := ask("nobody", "select 1")
		require.Error(t, err, said)
		said, err = ask("postgres", "select current_setting('data_directory') || '|' || current_setting('work_mem') || '|' || current_setting('shared_preload_libraries')")
		require.NoError(t, err, said)
		require.Equal(t, r.DataDir+"|9MB|auto_explain", said)
		shell(t, "sh", "-c", stop)
		return r, stop
	}
	r, _ := live(part)
	require.Contains(t, strings.Join(r.Notes, "\n"), "the original read my_hba.conf as its pg_hba.conf")
	outside := *part
	outside.ConfigInForce = map[string]string{"config_file": "custom.conf", "hba_file": "/etc/own/hba.conf", "ident_file": "own/my_ident.conf"}
	r, _ = live(&outside)
	require.Contains(t, strings.Join(r.Warnings, "\n"), "lets in the account postgres by the socket and nobody else")

	r, _ = restoreWith(t, w, part, func(*RestoreOptions) {})
	shell(t, "sh", "-c", r.StartCommand)
	t.Cleanup(func() {
		_ = exec.Command("sh", "-c", strings.Replace(r.StartCommand, " -w start", " -m immediate -w stop", 1)).Run()
	})
	require.Equal(t, "app|boss|9MB", shell(t, "sh", "-c", r.Psql+` -Atc "select current_database() || '|' || current_user || '|' || current_setting('work_mem')"`))
	_, command, _ := strings.Cut(r.Before[1], "acts by itself: ")
	command, _, _ = strings.Cut(command, "; look in")
	shell(t, "sh", "-c", command)
}

// TestAccessFromOutside: a live server gets the original's rules for log-in from the
// set where they stand for themselves.
func TestAccessFromOutside(t *testing.T) {
	from := place(t)
	rules := func(content string) (string, *Restored) {
		require.NoError(t, writeFile(filepath.Join(from, "etc/hba"), []byte(content), 0o600))
		r := &restoration{o: RestoreOptions{Live: true, ConfigFrom: from, Part: &set.Postgres{Superuser: `a"dm`, Config: []set.ConfigFile{{Path: "/etc/hba", Kind: "hba_file"}}}}, owner: account{name: "pg"}, done: &Restored{DataDir: place(t)}}
		require.NoError(t, writeFile(filepath.Join(r.done.DataDir, "postgresql.conf"), nil, 0o600))
		require.NoError(t, r.placeInForce())
		require.NoError(t, r.access())
		hba, err := os.ReadFile(r.done.DataDir + "/pg_hba.conf")
		require.NoError(t, err)
		ident, err := os.ReadFile(r.done.DataDir + "/pg_ident.conf")
		require.NoError(t, err)
		return string(hba) + string(ident), r.done
	}
	got, done := rules("local all all reject # a@b\n")
	require.Contains(t, got, "local all all reject # a@b\n")
	require.Contains(t, strings.Join(done.Before, "\n"), "the set does not say so")
	for _, content := range []string{"local all @users trust\n", "include others\n", "local @\"my dbs\" all trust"} {
		got, done = rules(content)
		require.NotContains(t, got, "trust")
		require.Contains(t, got, "local  all  \"a\"\"dm\"  peer  map=catalog_backup_restore\n# Made by a restore.\ncatalog_backup_restore  \"pg\"  \"a\"\"dm\"\n")
		require.Contains(t, done.Warnings[0], "nobody else")
	}
}
