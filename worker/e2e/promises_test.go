package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
)

// set changes lines of the site's configuration: key prefix → whole line; "" removes it.
func (s *site) set(changes map[string]string) {
	s.t.Helper()
	b, err := os.ReadFile(s.config.Path)
	require.NoError(s.t, err)
	lines := strings.Split(string(b), "\n")
	for prefix, line := range changes {
		found := false
		for i, l := range lines {
			if strings.HasPrefix(l, prefix) {
				lines[i], found = line, true
			}
		}
		if !found {
			lines = append(lines, line)
		}
	}
	require.NoError(s.t, os.WriteFile(s.config.Path, []byte(strings.Join(lines, "\n")), 0o644))
	c, err := config.Load(s.config.Path, func(string) string { return "" })
	require.NoError(s.t, err)
	s.config = c
}

// wait runs backup-all --wait --json.
func (s *site) wait(args ...string) (answer, int) {
	s.t.Helper()
	out, code := s.producer(append([]string{"backup-all", "--wait", "--json"}, args...)...)
	var a answer
	require.NoError(s.t, json.Unmarshal([]byte(out), &a), out)
	return a, code
}

func TestModesWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o077} {
		old := syscall.Umask(umask)
		t.Cleanup(func() { syscall.Umask(old) })
		s := newSite(t, 400_000, "state_group: games")
		s.startWorker()
		id := s.begin()
		s.inStage(id, "postgres")
		s.eventually(10*time.Second, "staging is there", func() bool { _, err := os.Stat(s.dump() + "/pgbackrest"); return err == nil })
		s.eventually(20*time.Second, "pgbackrest runs", func() bool { return len(s.with("pgbackrest", "backup:local")) > 0 })
		require.Equal(t, fs.FileMode(0o711), perm(t, s.dump()+"/pgbackrest"), "pgBackRest's account gets through, and lists nothing")
		staged, err := os.ReadDir(s.dump() + "/pgbackrest")
		require.NoError(t, err)
		require.Len(t, staged, 1)
		require.Equal(t, fs.FileMode(0o700), perm(t, s.dump()+"/pgbackrest/"+staged[0].Name()))
		require.Equal(t, fs.FileMode(0o700), perm(t, filepath.Join(s.config.Backup.TempDir, id)))
		r := s.over(id, 60*time.Second)
		require.Equal(t, run.Succeeded, r.State, r.Error)
		for _, f := range append(r.Archives, r.Manifest) {
			require.Equal(t, fs.FileMode(0o600), perm(t, f), f)
		}
		require.Equal(t, fs.FileMode(0o750), perm(t, s.config.StateDir))
		require.Equal(t, fs.FileMode(0o660), perm(t, s.config.RedisSocket()))
		syscall.Umask(old)
		s.groupOnly()
	}
}

func perm(t *testing.T, path string) fs.FileMode {
	fi, err := os.Stat(path)
	require.NoError(t, err)
	return fi.Mode().Perm()
}

// groupOnly asserts that a member of state_group can use the producer, and another user cannot.
func (s *site) groupOnly() {
	if os.Getuid() != 0 {
		return // only root can be somebody else
	}
	require.NoError(s.t, os.Chmod(s.config.Path, 0o644))
	g, err := user.LookupGroup("games")
	require.NoError(s.t, err)
	gid, err := strconv.Atoi(g.Gid)
	require.NoError(s.t, err)
	as := func(groups []uint32) (string, int) {
		cmd := exec.Command(filepath.Join(programs, "producer"), "list", "--json", "--config", s.config.Path)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: groups}}
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	out, code := as([]uint32{uint32(gid)})
	require.Zero(s.t, code, out)
	out, code = as(nil)
	require.Equal(s.t, 6, code, out)
	require.Contains(s.t, out, "games")
}

func TestSecretsAreNowhere(t *testing.T) {
	const secret = "S3cr3t-Wasabi-77"
	s := newSite(t, 300_000, "")
	s.pg.Psql("create role keeper superuser login password '" + secret + "'")
	hba := filepath.Join(s.pg.DataDir, "pg_hba.conf")
	b, err := os.ReadFile(hba)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(hba, append([]byte("local all keeper scram-sha-256\nlocal replication keeper scram-sha-256\n"), b...), 0o600))
	s.pg.Psql("select pg_reload_conf()")
	file := filepath.Join(s.root, "secret")
	require.NoError(t, os.WriteFile(file, []byte(secret+"\n"), 0o600))
	s.set(map[string]string{"  dsn:": fmt.Sprintf("  dsn: %q\n  password_file: %s", strings.Replace(s.pg.DSN(), "user=postgres", "user=keeper", 1), file)})
	s.startWorker()
	id := s.begin()
	var seen strings.Builder
	s.eventually(60*time.Second, "the run is over", func() bool {
		for pid := range s.processes() { // argv and environment of every tool
			for _, f := range []string{"cmdline", "environ"} {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f))
				seen.Write(b)
			}
		}
		r, err := s.record(id)
		return err == nil && r.State.Over()
	})
	r := s.over(id, time.Second)
	require.Equal(t, run.Succeeded, r.State, r.Error)
	require.Contains(t, seen.String(), "pgbackrest", "the tools were looked at")
	require.NoError(t, os.WriteFile(file, []byte(secret+"-wrong"), 0o600))
	s.termWorker()
	s.startWorker()
	a, code := s.wait()
	require.Equal(t, 3, code)
	require.Contains(t, *a.Error, "keeper")
	status, _ := s.producer("status", a.Run)
	seen.WriteString(status + *a.Error + s.log.String())
	s.termWorker()
	require.NoError(t, filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == file {
			return err
		}
		b, err := os.ReadFile(path)
		require.False(t, bytes.Contains(b, []byte(secret)), "%s holds the secret", path)
		return err
	}))
	for _, archive := range r.Archives {
		out, err := exec.Command("tar", "xzOf", archive).Output()
		require.NoError(t, err)
		require.False(t, bytes.Contains(out, []byte(secret)), "%s holds the secret", archive)
	}
	require.NotContains(t, seen.String(), secret)
}

func TestStateDirWithALongPath(t *testing.T) {
	s := newSite(t, 1000, "")
	s.set(map[string]string{"state_dir:": "state_dir: " + filepath.Join(s.root, strings.Repeat("a-long-name/", 10), "state")})
	require.NoError(t, os.MkdirAll(filepath.Dir(s.config.StateDir), 0o755))
	require.LessOrEqual(t, len(s.config.RedisSocket()), 100)
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(s.config.RedisSocket())) })
	s.reconnect()
	s.startWorker()
	_, code := s.wait()
	require.Zero(t, code)
	s.termWorker()
}

func TestSecondWorkerGoesOn(t *testing.T) {
	s := newSite(t, 800_000, "")
	s.startWorker()
	first, firstEnded := s.worker, s.ended
	s.startWorker()
	id := s.begin()
	s.inStage(id, "postgres")
	begin := time.Now()
	_ = first.Process.Kill() // it owns Redis; whichever had the stage, the run goes on
	<-firstEnded
	r := s.over(id, 60*time.Second)
	require.Equal(t, run.Succeeded, r.State, r.Error)
	t.Logf("done %s after the kill of the worker that owned Redis", time.Since(begin))
	s.restored(r, nil)
}

func TestWithoutABus(t *testing.T) {
	s := newSite(t, 1000, "")
	s.set(map[string]string{"  brokers:": "  brokers: []"})
	outside := filepath.Join(s.root, "etc", "extra.conf")
	require.NoError(t, os.MkdirAll(filepath.Dir(outside), 0o755))
	require.NoError(t, os.WriteFile(outside, []byte("shared_preload_libraries = 'auto_explain'\n"), 0o644))
	conf, err := os.OpenFile(filepath.Join(s.pg.DataDir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = conf.WriteString("include '" + outside + "'\n")
	require.NoError(t, errors.Join(err, conf.Close()))
	s.startWorker()
	a, code := s.wait("--incremental")
	require.Zero(t, code)
	require.Equal(t, "full", a.Type)
	require.Len(t, a.Archives, 1)
	require.Empty(t, a.Warnings)
	r, err := s.record(a.Run)
	require.NoError(t, err)
	require.Contains(t, strings.Join(r.Notes, "\n"), "promoted to a full")
	require.Contains(t, strings.Join(r.Notes, "\n"), "no Event Bus")
	s.restored(r, nil)

	// Its own script restores it, with the configuration from outside the data directory.
	target := filepath.Join(s.root, "by-hand")
	said := byHand(t, scriptOf(a), target)
	startByHand(t, said)
	require.Equal(t, "1000", restoredQuery(t, said, "select count(*) from events"))
	require.FileExists(t, filepath.Join(target, "unpacked/postgres/config", outside))
	require.Contains(t, said, "shared_preload_libraries = 'auto_explain'")
	require.NotContains(t, said, "event bus:")
}

func TestForeignStagingIsLeftAlone(t *testing.T) {
	s := newSite(t, 1000, "")
	theirs := filepath.Join(s.dump(), "pgbackrest", "backup.info")
	require.NoError(t, os.MkdirAll(filepath.Dir(theirs), 0o755))
	require.NoError(t, os.WriteFile(theirs, []byte("theirs"), 0o644))
	s.startWorker()
	a, code := s.wait()
	require.Equal(t, 3, code)
	require.Contains(t, *a.Error, "move it away")
	require.FileExists(t, theirs)
	require.NoError(t, os.RemoveAll(filepath.Dir(theirs)))

	// What an old run left and cannot be read is in nobody's way: a warning.
	old := filepath.Join(s.dump(), ".20200101t000000z-abcdefgh.intent")
	require.NoError(t, os.WriteFile(old, []byte("{"), 0o600))
	a, code = s.wait()
	require.Equal(t, 10, code)
	require.Contains(t, strings.Join(a.Warnings, "\n"), old)
	require.FileExists(t, old)
	require.NoError(t, os.Remove(old))
}

func TestBackupV1IsRefused(t *testing.T) {
	s := newSite(t, 1000, "")
	b, err := os.ReadFile(s.config.Path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.config.Path, append(b, []byte("\nalation.feature_flags.enable_pgbackrest: false\n")...), 0o644))
	for _, cmd := range []*exec.Cmd{exec.Command(filepath.Join(programs, "producer"), "backup-all", "--config", s.config.Path), exec.Command(filepath.Join(programs, "worker"), "run", "--config", s.config.Path)} {
		out, _ := cmd.CombinedOutput()
		require.Equal(t, 2, cmd.ProcessState.ExitCode(), string(out))
		require.Contains(t, string(out), "not built yet")
	}
}

// The worker may run as the owner of the cluster instead of root.
func TestWorkerAsPostgres(t *testing.T) {
	cred, err := lab.PostgresUser()
	require.NoError(t, err)
	if cred == nil {
		t.Log("the tests do not run as root: every other test is this one")
		return
	}
	s := newSite(t, 100_000, "")
	require.NoError(t, filepath.WalkDir(s.root, func(p string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		return os.Lchown(p, int(cred.Uid), int(cred.Gid))
	}))
	s.credential = &syscall.Credential{Uid: cred.Uid, Gid: cred.Gid}
	s.startWorker()
	a, code := s.wait()
	require.Zero(t, code, "%v", a.Error)
	r, err := s.record(a.Run)
	require.NoError(t, err)
	s.restored(r, nil)
}

func TestNoSpaceIsSaidBeforehand(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root can mount a small file system")
		return
	}
	s := newSite(t, 400_000, "")
	require.NoError(t, syscall.Mount("tmpfs", s.dump(), "tmpfs", 0, "size=24m,mode=755"))
	t.Cleanup(func() { s.killWorker(); _ = syscall.Unmount(s.dump(), syscall.MNT_DETACH) })
	s.startWorker()
	a, code := s.wait()
	require.Equal(t, 3, code)
	require.Contains(t, *a.Error, "free")
	r, err := s.record(a.Run)
	require.NoError(t, err)
	require.Len(t, r.Attempts, 2, "no retry, then the cleanup")
	s.restored(r, nil)
}

func TestDiskFillsUpInTheMiddle(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root can mount a small file system")
		return
	}
	s := newSite(t, 1_200_000, "")
	require.NoError(t, syscall.Mount("tmpfs", s.dump(), "tmpfs", 0, "size=500m,mode=755"))
	t.Cleanup(func() { s.killWorker(); _ = syscall.Unmount(s.dump(), syscall.MNT_DETACH) })
	s.startWorker()
	_, code := s.wait()
	require.Zero(t, code)
	id := s.begin()
	s.inStage(id, "postgres")
	s.eventually(20*time.Second, "pgbackrest copies", func() bool { return len(s.with("pgbackrest", "backup:local")) > 0 })
	filler := filepath.Join(s.dump(), "somebody-elses-file")
	f, err := os.Create(filler)
	require.NoError(t, err)
	_, _ = f.ReadFrom(&zeros{490 << 20}) // until it is full
	f.Close()
	r := s.over(id, 90*time.Second)
	require.Equal(t, run.Failed, r.State)
	require.Contains(t, r.Error, "full")
	require.NoError(t, os.Remove(filler))
	s.restored(r, nil)
	_, code = s.wait()
	require.Zero(t, code)
}

type zeros struct{ left int }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left <= 0 {
		return 0, fs.ErrClosed
	}
	n := min(len(p), z.left)
	clear(p[:n])
	z.left -= n
	return n, nil
}
