package lab

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// gone requires that a process and a directory are no more.
func gone(t *testing.T, pid int, dir string) {
	t.Helper()
	if _, state, _, err := stat(pid); err == nil {
		require.Equal(t, "Z", state, "process %d still runs", pid)
	}
	_, err := os.Stat(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPostgres(t *testing.T) {
	var pid int
	var dir string
	t.Run("life", func(t *testing.T) {
		p := Postgres(t, WithTCP(), WithConf("work_mem = 5MB"))
		pid, dir = p.PID(), p.Root
		require.Equal(t, "on|5MB|127.0.0.1", p.Psql("select current_setting('data_checksums'), current_setting('work_mem'), current_setting('listen_addresses')"))
		p.Psql("create table t as select generate_series(1, 1000) as i; create database other")
		p.PsqlIn("other", "create table here (i int)")
		// A backend that never looks up must not keep Start from working.
		busy := p.Command("psql", "-Xqc", "select count(*) from generate_series(1, 1000000000)")
		require.NoError(t, busy.Start())
		require.True(t, poll(stopLimit, func() bool {
			return p.Psql("select count(*) from pg_stat_activity where query like '%1000000000%' and pid <> pg_backend_pid()") == "1"
		}))
		below := descendants(p.PID())
		require.NotEmpty(t, below)
		require.NoError(t, p.Kill9())
		require.False(t, anyAlive(below))
		require.Error(t, busy.Wait())
		_, err := p.Query("select 1")
		require.Error(t, err)
		require.NoError(t, p.Start())
		require.Equal(t, "1000", p.Psql("select count(*) from t"))
		require.NoError(t, p.Restart())
		require.Equal(t, "1000", p.Psql("select count(*) from t"))
		pid = p.PID()
		c, err := p.Connect(context.Background(), "other")
		require.NoError(t, err)
		require.NoError(t, c.Close(context.Background()))
		ts, err := p.Mkdir("space")
		require.NoError(t, err)
		p.Psql("create tablespace space location '" + ts + "'")
	})
	gone(t, pid, dir)
}

// A test may kill the postmaster by its number; a computing backend does not notice.
func TestPostgresKilledFromOutside(t *testing.T) {
	p := Postgres(t)
	busy := p.Command("psql", "-Xqc", "select count(*) from generate_series(1, 1000000000)")
	require.NoError(t, busy.Start())
	require.True(t, poll(stopLimit, func() bool {
		return p.Psql("select count(*) from pg_stat_activity where query like '%1000000000%' and pid <> pg_backend_pid()") == "1"
	}))
	require.NoError(t, syscall.Kill(p.PID(), syscall.SIGKILL))
	require.True(t, poll(stopLimit, func() bool { return !p.proc.running() }))
	require.NoError(t, p.Start())
	require.Error(t, busy.Wait())
	require.Equal(t, "1", p.Psql("select 1"))
}

func TestPostgresHBAAndChecksumsByOption(t *testing.T) {
	p := Postgres(t, WithoutChecksums(), WithHBA("local all all trust"))
	require.Equal(t, "off", p.Psql("show data_checksums"))
	out, err := p.Command("pg_basebackup", "-D", p.Root+"/x").CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "no pg_hba.conf entry for replication")
}

func TestPostgresThatCannotStartSaysWhy(t *testing.T) {
	_, err := StartPostgres(PGOptions{Conf: []string{"no_such_setting = 1"}})
	require.ErrorContains(t, err, "no_such_setting")
}

func TestRedis(t *testing.T) {
	var pid int
	var dir string
	t.Run("life", func(t *testing.T) {
		r := RedisWith(t, RedisOptions{TCP: true, Conf: []string{"requirepass geheim"}})
		ctx := context.Background()
		c := r.Client()
		defer func() { _ = c.Close() }()
		require.NoError(t, c.Set(ctx, "a", "1", 0).Err())
		require.NoError(t, r.Kill9())
		require.Error(t, c.Get(ctx, "a").Err())
		require.NoError(t, r.Start())
		require.Equal(t, "1", c.Get(ctx, "a").Val())
		require.NoError(t, r.Stop())
		require.True(t, poll(stopLimit, func() bool { _, state, _, _ := stat(r.PID()); return state == "T" }))
		require.NoError(t, r.Cont())
		snapshot := t.TempDir() + "/then"
		require.NoError(t, r.Snapshot(snapshot))
		require.NoError(t, c.Set(ctx, "a", "2", 0).Err())
		require.NoError(t, r.Rollback(snapshot))
		require.Equal(t, "1", c.Get(ctx, "a").Val())
		require.NoError(t, r.FlushAll())
		require.Equal(t, int64(0), c.DBSize(ctx).Val())
		require.NoError(t, r.Stop()) // Close must end a frozen server too
		pid, dir = r.PID(), r.Root
	})
	gone(t, pid, dir)
}

// TestMain also plays the process that starts servers and is then killed.
func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_OWNER") != "" {
		owner()
	}
	os.Exit(m.Run())
}

func owner() {
	p, err := StartPostgres(PGOptions{})
	if err != nil {
		panic(err)
	}
	r, err := StartRedis(RedisOptions{})
	if err != nil {
		panic(err)
	}
	println(p.Root, p.PID(), r.Root, r.PID())
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func TestServersDieWithTheirOwner(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "LAB_TEST_OWNER=1")
	out, err := cmd.CombinedOutput()
	require.ErrorContains(t, err, "killed", "%s", out)
	f := strings.Fields(string(out))
	require.Len(t, f, 4, "%s", out)
	for i := 0; i < 4; i += 2 {
		pid, err := strconv.Atoi(f[i+1])
		require.NoError(t, err)
		require.True(t, poll(10*time.Second, func() bool {
			_, state, _, err := stat(pid)
			return err != nil || state == "Z"
		}), "process %d outlived its owner", pid)
		old := time.Now().Add(-2 * settled)
		require.NoError(t, os.Chtimes(f[i], old, old))
	}
	r, err := newRoot("")
	require.NoError(t, err)
	require.NoError(t, r.remove())
	for i := 0; i < 4; i += 2 {
		require.NoDirExists(t, f[i], "a killed owner's directory stayed")
	}
}
