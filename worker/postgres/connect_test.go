package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
)

// spyRunner keeps all that a child is given.
type spyRunner struct {
	keptRunner
	mu   sync.Mutex
	seen []string
	pass string // content of the passfile while pgbackrest ran
}

func (s *spyRunner) Run(ctx context.Context, c Command) error {
	s.mu.Lock()
	s.seen = append(s.seen, c.Args...)
	s.seen = append(s.seen, c.Env...)
	for _, e := range c.Env {
		if path, ok := strings.CutPrefix(e, "PGPASSFILE="); ok {
			content, _ := os.ReadFile(path)
			s.pass = string(content)
		}
	}
	s.mu.Unlock()
	return s.keptRunner.Run(ctx, c)
}

func TestPasswordOnlyByPassfile(t *testing.T) {
	p := lab.Postgres(t, lab.WithTCP())
	secret := `pa:ss\wo'rd x`
	p.Psql(`create role "Keeper 1" superuser login password 'pa:ss\wo''rd x'; create table t as select 1`)
	p.Psql("alter role \"Keeper 1\" set statement_timeout = '300ms'; alter role \"Keeper 1\" set idle_session_timeout = '500ms'; alter role \"Keeper 1\" set search_path = public")
	require.NoError(t, os.WriteFile(filepath.Join(p.DataDir, "pg_hba.conf"), []byte("local all all scram-sha-256\nlocal replication all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"), 0o600))
	p.Psql("select pg_reload_conf()")
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(secret)
	for _, host := range []string{p.SocketDir, "127.0.0.1"} {
		spy := &spyRunner{}
		o := Options{DSN: fmt.Sprintf("host=%s port=%d user='Keeper 1' password='%s' dbname=postgres", host, p.Port, quoted), Runner: spy}
		w := newWork(t)
		f, _, err := Preflight(t.Context(), o, w)
		require.NoError(t, err)
		require.True(t, f.Password)
		part, _, err := Backup(t.Context(), o, w, f, noProgress)
		require.NoError(t, err)
		require.Empty(t, verify(t, part, entries(t, w, part)))
		require.NotContains(t, strings.Join(spy.seen, "\n"), "wo'rd")
		require.Equal(t, "*:*:*:*:pa\\:ss\\\\wo'rd x\n", spy.pass)
		require.NoFileExists(t, filepath.Join(w.Repo, passfileName))
	}
	o := Options{DSN: fmt.Sprintf("host=127.0.0.1 port=%d user='Keeper 1' password=wrongsecret dbname=postgres", p.Port), Runner: keptRunner{}}
	_, _, err := Preflight(t.Context(), o, newWork(t))
	permanentWith(t, err, "password is wrong")
	require.NotContains(t, err.Error(), "wrongsecret")
}

// TestPeerOfTheOwner connects by TCP as one role while the socket only lets the
// server's own account in: pgBackRest goes by that.
func TestPeerOfTheOwner(t *testing.T) {
	p := lab.Postgres(t, lab.WithTCP())
	p.Psql("create role admin superuser login password 'secret'; create database \"we ird'db\"; create database closed; alter database closed allow_connections false")
	require.NoError(t, os.WriteFile(filepath.Join(p.DataDir, "pg_hba.conf"), []byte("local all postgres peer\nhost all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"), 0o600))
	p.Psql("select pg_reload_conf()")
	o := Options{DSN: fmt.Sprintf("postgres://admin:secret@127.0.0.1:%d/we%%20ird'db", p.Port), Runner: keptRunner{}}
	w := newWork(t)
	f, _, err := Preflight(t.Context(), o, w)
	require.NoError(t, err)
	require.Equal(t, "postgres", f.Role)
	require.False(t, f.Password)
	part, _, err := Backup(t.Context(), o, w, f, noProgress)
	require.NoError(t, err)
	require.Empty(t, verify(t, part, entries(t, w, part)))

	require.NoError(t, os.WriteFile(filepath.Join(p.DataDir, "pg_hba.conf"), []byte("host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\nlocal all nobody peer\n"), 0o600))
	require.NoError(t, p.Command("pg_ctl", "-D", p.DataDir, "reload").Run())
	require.Eventually(t, func() bool { _, _, err = Preflight(t.Context(), o, w); return err != nil }, 5e9, 5e7)
	permanentWith(t, err, "local  all  admin  peer")
}

func TestOddPaths(t *testing.T) {
	dir := filepath.Join(place(t), "a b=c #d;[e]*")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.Chmod(dir, 0o755))
	p, err := lab.StartPostgres(lab.PGOptions{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	p.Psql("create table t as select generate_series(1, 100) i")
	w := Work{Repo: filepath.Join(dir, "pgbackrest"), Dir: filepath.Join(dir, "stage")}
	require.NoError(t, os.Mkdir(w.Repo, 0o700))
	require.NoError(t, os.Mkdir(w.Dir, 0o700))
	o := options(p)
	o.DSN = fmt.Sprintf("host='%s' port=%d user=postgres dbname=postgres", p.SocketDir, p.Port)
	part, _ := backUp(t, o, w)
	require.Empty(t, verify(t, part, entries(t, w, part)))
	target := filepath.Join(dir, "DIR long "+strings.Repeat("x", 80), "postgres")
	require.NoError(t, os.MkdirAll(target, 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(target), 0o755))
	r, err := Restore(t.Context(), RestoreOptions{Part: part, Repo: w.RepoDir(), Target: target, Runner: keptRunner{}})
	require.NoError(t, err)
	require.Contains(t, strings.Join(r.Notes, "\n"), "too long for a socket")
	require.NoError(t, p.Stop())
	s := start(t, r, p.Port)
	require.Equal(t, "100", s.query("postgres", "select count(*) from t"))
}
