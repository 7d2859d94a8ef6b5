package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/lab"

	"github.com/stretchr/testify/require"
)

// The worker that owns the embedded Redis is frozen and Redis dead: each verb of the
// producer names that worker and what ends it, and that does.
func TestFrozenOwnerOfRedis(t *testing.T) {
	root, err := os.MkdirTemp("", "cb-owner-")
	require.NoError(t, err)
	s := &site{t: t, root: root, log: &lab.Buffer{}}
	path := filepath.Join(root, "config.yaml")
	for _, d := range []string{"dump", "temp", "state"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, d), 0o700))
	}
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `instance: catalog
node: host1
version: 1.2.3
state_dir: %[1]s/state
redis: embedded
postgres: {dsn: "host=/nowhere"}
alation.backup.data_dump_dir: %[1]s/dump
alation.backup.data_temp_dir: %[1]s/temp
`, root), 0o600))
	s.config, err = config.Load(path, func(string) string { return "" })
	require.NoError(t, err)
	s.reconnect()
	t.Cleanup(func() {
		s.rdb.Close()
		s.killWorker()
		s.eventually(20*time.Second, "Redis ends with its worker", func() bool { return len(s.redisProcesses()) == 0 })
		require.NoError(t, os.RemoveAll(root))
	})
	s.startWorker()
	owner, ended := s.worker, s.ended
	s.startWorker()
	require.NoError(t, owner.Process.Signal(syscall.SIGSTOP))
	require.Equal(t, 1, s.killRedis())
	for _, verb := range [][]string{{"status"}, {"cancel"}, {"backup-all"}, {"abandon", "20261123t184702z-abcdefgh", "--yes"}} {
		cmd := exec.Command(filepath.Join(programs, "producer"), append(verb, "--config", path)...)
		out, _ := cmd.CombinedOutput()
		require.Equal(t, exit.Unreachable, cmd.ProcessState.ExitCode(), "%v: %s", verb, out)
		require.Contains(t, string(out), fmt.Sprintf("worker PID %d (dev) on host", owner.Process.Pid))
		require.Contains(t, string(out), fmt.Sprintf("is stopped: let it go on (`kill -CONT %d`), or end it (`kill -9 %[1]d`)", owner.Process.Pid))
	}
	require.NoError(t, owner.Process.Kill())
	<-ended
	s.eventually(20*time.Second, "the other worker brings Redis", func() bool { _, code := s.producer("status"); return code == exit.NotFound })
}
