package postgres

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
)

// shell runs a command that must succeed.
func shell(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}

// TestDebianCluster backs up what pg_createcluster makes: its configuration in
// /etc/postgresql, its socket in /var/run/postgresql, peer authentication only.
func TestDebianCluster(t *testing.T) {
	bin, err := lab.PGBinDir()
	require.NoError(t, err)
	version := filepath.Base(filepath.Dir(bin))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	name := fmt.Sprintf("cbtest%d", os.Getpid())
	conf := filepath.Join("/etc/postgresql", version, name)
	root := place(t)
	extra := filepath.Join(root, "extra.conf")
	require.NoError(t, os.WriteFile(extra, []byte("work_mem = '5MB'\ninclude_if_exists 'deeper.conf'\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(root, "deeper.conf"), []byte("maintenance_work_mem = '70MB'\n"), 0o644))
	shell(t, "pg_createcluster", version, name, "-d", filepath.Join(root, "data"), "-p", fmt.Sprint(port), "--", "--data-checksums", "--no-sync")
	t.Cleanup(func() {
		_ = exec.Command("pg_dropcluster", "--stop", version, name).Run()
		_ = os.RemoveAll(conf)
	})
	appendTo(t, conf+"/postgresql.conf", "include '"+extra+"'\nfsync = off\nmax_connections = 77\nlisten_addresses = ''\n")
	require.NoError(t, os.WriteFile(conf+"/conf.d/more.conf", []byte("max_worker_processes = 13\n"), 0o644))
	shell(t, "pg_ctlcluster", version, name, "start")
	socket := "/var/run/postgresql"
	sql := func(q string) string {
		return shell(t, "runuser", "-u", "postgres", "--", "psql", "-XAtq", "-h", socket, "-p", fmt.Sprint(port), "-c", q)
	}
	sql("create table t as select generate_series(1, 1000) i")

	w := newWork(t)
	o := Options{DSN: fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", socket, port), Runner: keptRunner{}}
	part, found := backUp(t, o, w)
	require.Empty(t, found.Warnings)
	var paths []string
	for _, c := range part.Config {
		paths = append(paths, c.Path)
	}
	require.Subset(t, paths, []string{conf + "/postgresql.conf", conf + "/pg_hba.conf", conf + "/pg_ident.conf", conf + "/conf.d/more.conf", conf + "/environment", conf + "/pg_ctl.conf", conf + "/start.conf", extra, filepath.Join(root, "deeper.conf")})
	list := entries(t, w, part)
	require.Empty(t, verify(t, part, list))
	i := find(t, list, "pg_hba.conf")
	require.NotEmpty(t, verify(t, part, mutate(list, i, func(b []byte) []byte { b[5] ^= 1; return b })))
	require.NotEmpty(t, verify(t, part, append(append([]entry(nil), list[:i]...), list[i+1:]...)))

	// None of the settings is in the data directory, so that nothing can be left as it was.
	r, _ := restoreWith(t, w, part, func(o *RestoreOptions) { o.Live = true })
	require.Contains(t, r.Warnings[0], "--live cannot leave the settings as they were: the original's postgresql.conf ("+conf+"/postgresql.conf) was not in the data directory")
	s := start(t, r, 0)
	require.Equal(t, "|"+s.socket+"|0700|0", s.query("postgres", "select concat_ws('|', current_setting('listen_addresses'), current_setting('unix_socket_directories'), current_setting('unix_socket_permissions'), current_setting('max_logical_replication_workers'))"))

	// Everything but DIR goes.
	shell(t, "pg_dropcluster", "--stop", version, name)
	require.NoError(t, os.RemoveAll(root))
	r, target := restore(t, w, part)
	require.FileExists(t, target+"/config"+conf+"/pg_hba.conf")
	s = start(t, r, 5432)
	require.Equal(t, "1000", s.query("postgres", "select count(*) from t"))
	require.Equal(t, "77|13", s.query("postgres", "select current_setting('max_connections') || '|' || current_setting('max_worker_processes')"))
	requireInside(t, target)

	// The restored server, on its new timeline, can be backed up in its turn.
	again := newWork(t)
	o.DSN = fmt.Sprintf("host=%s port=5432 user=postgres", s.socket)
	second, _ := backUp(t, o, again)
	require.Equal(t, uint32(2), second.Timeline)
	require.Empty(t, verify(t, second, entries(t, again, second)))
	shell(t, "runuser", "-u", "postgres", "--", s.bin+"/pg_ctl", "-D", r.DataDir, "-m", "fast", "-w", "stop")
	r, _ = restore(t, again, second)
	require.Equal(t, "1000", start(t, r, 5432).query("postgres", "select count(*) from t"))
}

// TestAsTheServersAccount runs the round as the user postgres instead of root.
func TestAsTheServersAccount(t *testing.T) {
	if os.Getenv("PGTEST_ROUND") != "" {
		ownRound(t)
		return
	}
	cred, err := lab.PostgresUser()
	require.NoError(t, err)
	binary := filepath.Join(place(t), "round.test")
	self, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	out, err := os.OpenFile(binary, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, self)
	require.NoError(t, err)
	require.NoError(t, self.Close())
	require.NoError(t, out.Close())
	cmd := exec.Command(binary, "-test.run=^TestAsTheServersAccount$", "-test.count=1")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "PGTEST_ROUND=1", "PGHOST=/nowhere", "PGOPTIONS=-c nonsense=1", "PGBACKREST_STANZA=wrong", "PGBACKREST_REPO1_PATH=/nowhere"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	text, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", text)
}

func ownRound(t *testing.T) {
	require.NotEqual(t, 0, os.Geteuid())
	p := lab.Postgres(t)
	p.Psql("create table t as select generate_series(1, 100) i")
	o := options(p)
	w := newWork(t)
	part, _ := backUp(t, o, w)
	require.Empty(t, verify(t, part, entries(t, w, part)))
	r, _ := restore(t, w, part)
	require.NotContains(t, r.StartCommand, "runuser")
	require.Equal(t, "100", start(t, r, p.Port).query("postgres", "select count(*) from t"))
}
