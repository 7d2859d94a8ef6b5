package postgres

import (
	"bufio"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
)

// TestWorkerKilled kills the process that runs a backup: neither slot nor
// pgBackRest outlives it, and the next backup needs no hand work.
func TestWorkerKilled(t *testing.T) {
	if dsn := os.Getenv("PGTEST_DSN"); dsn != "" {
		w := Work{Repo: os.Getenv("PGTEST_REPO"), Dir: os.Getenv("PGTEST_DIR")}
		o := Options{DSN: dsn, Runner: keptRunner{}}
		f, _, err := Preflight(t.Context(), o, w)
		require.NoError(t, err)
		o.Runner = slowRunner{w: w, during: func([]int) {
			_, _ = os.Stdout.WriteString("in the middle\n")
			select {}
		}}
		_, _, err = Backup(t.Context(), o, w, f, noProgress)
		t.Fatal("not killed: ", err)
	}
	p := lab.Postgres(t)
	w := newWork(t)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run=^TestWorkerKilled$")
	cmd.Env = append(os.Environ(), "PGTEST_DSN="+p.DSN(), "PGTEST_REPO="+w.Repo, "PGTEST_DIR="+w.Dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "in the middle" {
		t.Log(lines.Text())
	}
	require.NotEmpty(t, tools(w))
	require.Equal(t, "1", p.Psql("select count(*) from pg_replication_slots"))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	noSlots(t, p)
	noTools(t, w)
	again := newWork(t)
	part, _ := backUp(t, options(p), again)
	require.Empty(t, verify(t, part, entries(t, again, part)))
}
