package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
)

// TestMain lets the test binary be the program: start runs itself again as serve.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "start" || os.Args[1] == "serve" || os.Args[1] == "stop" || os.Args[1] == "show") {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// program runs lab and gives what it printed.
func program(t *testing.T, args ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	out, err := exec.Command(self, args...).CombinedOutput()
	return string(out), err
}

// folder makes a short directory that every user may enter.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cb-labcmd-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		_, _ = program(t, "stop", dir)
		require.NoError(t, os.RemoveAll(dir))
	})
	return dir
}

// psql runs a statement by way of the variables that lab prints.
func psql(t *testing.T, env, sql string) string {
	t.Helper()
	out, err := exec.Command("bash", "-c", env+`psql -XAtqc "$0" "$PG_DSN"`, sql).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return strings.TrimSpace(string(out))
}

func TestServerStaysAndComesBackWithItsData(t *testing.T) {
	dir := folder(t)
	_, err := program(t, "show", dir)
	require.Error(t, err)
	env, err := program(t, "start", "postgres", dir, "-conf", "work_mem = 5MB")
	require.NoError(t, err, env)
	require.Equal(t, "5MB", psql(t, env, "show work_mem"))
	psql(t, env, "create table t as select 42 as i")
	out, err := program(t, "start", "postgres", dir)
	require.Error(t, err)
	require.Contains(t, out, "already")
	out, err = program(t, "stop", dir)
	require.NoError(t, err, out)
	out, err = program(t, "stop", dir)
	require.NoError(t, err, out)
	require.NoFileExists(t, filepath.Join(dir, "data", "postmaster.pid"))

	out, err = program(t, "start", "postgres", dir, "-conf", "no_such = 1")
	require.Error(t, err)
	require.Contains(t, out, "no_such")
	env, err = program(t, "start", "postgres", dir)
	require.NoError(t, err, env)
	require.Equal(t, "42", psql(t, env, "select i from t"))
}

func TestServerEndsWithItsOwner(t *testing.T) {
	dir := folder(t)
	owner := exec.Command("sleep", "1000")
	require.NoError(t, owner.Start())
	out, err := program(t, "start", "kfake", dir, "-owner", strconv.Itoa(owner.Process.Pid), "-conf", "message.max.bytes=2000000")
	require.NoError(t, err, out)
	require.NoError(t, owner.Process.Kill())
	require.Error(t, owner.Wait())
	require.Eventually(t, func() bool { on, err := runs(dir); return err == nil && !on }, 20*time.Second, 20*time.Millisecond)
	for _, line := range strings.Split(out, "\n") {
		if pid, ok := strings.CutPrefix(line, "KAFKA_PID='"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(pid, "'"))
			require.NoError(t, err)
			require.False(t, lab.Running(n))
		}
	}
}
