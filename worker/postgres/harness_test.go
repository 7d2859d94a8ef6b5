package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/keeper"
	"catalog-backup/worker/stage"
)

func TestMain(m *testing.M) {
	keeper.Hook()
	if os.Geteuid() != 0 && os.Getenv("PGTEST_ROUND") == "" {
		throughSudo()
	}
	os.Exit(m.Run())
}

// throughSudo runs the tests again as root: Debian's clusters, full disks and
// changes of account need it. TestAsTheServersAccount covers the other way.
func throughSudo() {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command("sudo", append([]string{"-n", "--", self}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "the tests of worker/postgres need root: run them as root, or let sudo in first (sudo -v): %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// keptRunner runs children under the keeper, as the product does.
type keptRunner struct{}

func (keptRunner) Run(ctx context.Context, c Command) error {
	k := keeper.Command{Path: c.Path, Args: c.Args, Env: c.Env, Dir: c.Dir, Stdout: c.Stdout, Stderr: c.Stderr}
	if c.Credential != nil {
		k.Credential = &keeper.Credential{UID: c.Credential.UID, GID: c.Credential.GID, Groups: c.Credential.Groups}
	}
	return keeper.Run(ctx, k)
}

// place is a directory that the account postgres may enter, gone after the test.
func place(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgb")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newWork(t testing.TB) Work {
	t.Helper()
	dir := place(t)
	w := Work{Repo: filepath.Join(dir, "dump", "pgbackrest"), Dir: filepath.Join(dir, "stage")}
	require.NoError(t, os.MkdirAll(w.Repo, 0o700))
	require.NoError(t, os.Chmod(filepath.Dir(w.Repo), 0o755))
	require.NoError(t, os.Mkdir(w.Dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(w.Repo, ".owner"), []byte("ours"), 0o600))
	return w
}

func options(p *lab.PG) Options {
	return Options{DSN: p.DSN(), Runner: keptRunner{}, WatchInterval: 200 * time.Millisecond}
}

// backUp runs Preflight and Backup, which must both succeed.
func backUp(t testing.TB, o Options, w Work) (*set.Postgres, stage.Findings) {
	t.Helper()
	f, found, err := Preflight(t.Context(), o, w)
	require.NoError(t, err)
	part, more, err := Backup(t.Context(), o, w, f, stage.NoProgress{})
	require.NoError(t, err)
	found.Join(more)
	return part, found
}

// entry is one file of an archive.
type entry struct {
	name    string
	content []byte
}

// entries gives a backup as an archive would hold it, in order.
func entries(t testing.TB, w Work, part *set.Postgres) []entry {
	t.Helper()
	first, err := RepoFirst(w.RepoDir(), part.Label)
	require.NoError(t, err)
	var list []entry
	for _, rel := range first {
		content, err := os.ReadFile(filepath.Join(w.RepoDir(), rel))
		require.NoError(t, err)
		list = append(list, entry{set.PostgresRepo + rel, content})
	}
	add := func(root, prefix string, skip []string) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, _ := filepath.Rel(root, path)
			if slices.Contains(skip, rel) {
				return nil
			}
			require.True(t, d.Type().IsRegular(), "%s is no file", path)
			content, err := os.ReadFile(path)
			list = append(list, entry{prefix + rel, content})
			return err
		})
		require.NoError(t, err)
	}
	add(w.RepoDir(), set.PostgresRepo, first)
	if _, err := os.Stat(w.ConfigDir()); err == nil {
		add(w.ConfigDir(), set.PostgresConfig, nil)
	}
	return list
}

// verify runs the Verifier over entries and gives what it found.
func verify(t testing.TB, part *set.Postgres, list []entry) []set.Damage {
	t.Helper()
	var found []set.Damage
	v := NewVerifier(part, func(d set.Damage) { found = append(found, d) })
	for _, e := range list {
		require.NoError(t, v.Entry(e.name, int64(len(e.content)), bytes.NewReader(e.content)))
	}
	require.NoError(t, v.Finish())
	return found
}

// server is a restored server that runs.
type server struct {
	t      testing.TB
	socket string
	port   string
	bin    string
	data   string
}

// restore unpacks a backup into DIR, deletes all else, and restores it.
func restore(t testing.TB, w Work, part *set.Postgres) (*Restored, string) {
	t.Helper()
	target := filepath.Join(place(t), "postgres")
	require.NoError(t, os.Mkdir(target, 0o700))
	r, err := Restore(t.Context(), RestoreOptions{Part: part, Repo: w.RepoDir(), Target: target, ConfigFrom: w.ConfigDir(), Runner: keptRunner{}})
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Dir(w.Dir)))
	return r, target
}

// start runs the printed start command and waits until the server is promoted. The
// original's port does not matter: a restored server's is quietPort.
func start(t testing.TB, r *Restored, _ int) *server {
	t.Helper()
	t.Cleanup(func() {
		stop := strings.Replace(r.StartCommand, " -w start", " -m immediate -w stop", 1)
		_ = exec.Command("sh", "-c", stop).Run()
	})
	out, err := exec.Command("sh", "-c", r.StartCommand).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(filepath.Dir(r.DataDir), "server.log"))
		t.Fatalf("%s: %v: %s\n%s", r.StartCommand, err, out, log)
	}
	return running(t, r)
}

// running is the server that was started by what r printed.
func running(t testing.TB, r *Restored) *server {
	t.Helper()
	bin, err := lab.PGBinDir()
	require.NoError(t, err)
	socket := filepath.Join(filepath.Dir(r.DataDir), "socket")
	s := &server{t: t, socket: socket, port: fmt.Sprint(quietPort), bin: bin, data: r.DataDir}
	if _, err := os.Stat(socket); err != nil {
		require.Regexp(t, ` -h /tmp/restored-\d+ `, r.Psql)
		s.socket = regexp.MustCompile(`/tmp/restored-\d+`).FindString(r.Psql)
		t.Cleanup(func() { _ = os.RemoveAll(s.socket) })
	}
	require.Eventually(t, func() bool { return s.query("postgres", "select pg_is_in_recovery()") == "f" }, 20*time.Second, 50*time.Millisecond)
	return s
}

func (s *server) query(db, sql string) string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", s.socket, "-p", s.port, "-U", "postgres", "-d", db, "-c", sql)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "PGCLIENTENCODING=UTF8", "PGOPTIONS=-clocal_preload_libraries= -crole=none -cstatement_timeout=0"}
	out, err := cmd.CombinedOutput()
	require.NoError(s.t, err, "%s", out)
	return strings.TrimSpace(string(out))
}

// permanentWith asserts a permanent error that says these words in one line.
func permanentWith(t testing.TB, err error, words ...string) {
	t.Helper()
	saysWith(t, err, words...)
	require.True(t, stage.IsPermanent(err), "not permanent: %v", err)
}

func saysWith(t testing.TB, err error, words ...string) {
	t.Helper()
	require.Error(t, err)
	require.NotContains(t, err.Error(), "\n")
	for _, w := range words {
		require.Contains(t, err.Error(), w)
	}
}

func noSlots(t testing.TB, p *lab.PG) {
	t.Helper()
	require.Eventually(t, func() bool {
		n, err := p.Query("select count(*) from pg_replication_slots")
		return err == nil && n == "0"
	}, 2*time.Second, 20*time.Millisecond, "a replication slot is left")
}

var errTest = errors.New("test")

var noProgress = stage.NoProgress{}
