package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab"

	"github.com/stretchr/testify/require"
)

// bare is a worker that serves and has nothing to do.
type bare struct {
	t     *testing.T
	cmd   *exec.Cmd
	conf  string
	log   *os.File // what it writes
	lines *bufio.Reader
}

// serveBare starts one by a command line of the shell, in which $W stands for it, and
// returns when it serves.
func serveBare(t *testing.T, script string) *bare {
	t.Helper()
	root, err := os.MkdirTemp("", "cb-sig-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	for _, d := range []string{"dump", "temp", "state"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, d), 0o700))
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, free.Close())
	b := &bare{t: t, conf: filepath.Join(root, "config.yaml")}
	require.NoError(t, os.WriteFile(b.conf, fmt.Appendf(nil, `instance: catalog
node: host1
version: 1.2.3
state_dir: %[1]s/state
redis: {address: "unix:%[2]s"}
postgres: {dsn: "host=/nowhere"}
worker.listen: "%[3]s"
alation.backup.data_dump_dir: %[1]s/dump
alation.backup.data_temp_dir: %[1]s/temp
`, root, lab.Redis(t).Addr, free.Addr()), 0o600))
	read, write, err := os.Pipe()
	require.NoError(t, err)
	b.log, b.lines = read, bufio.NewReader(read)
	b.cmd = exec.Command("sh", "-c", script)
	b.cmd.Env = append(os.Environ(), "W="+filepath.Join(programs, "worker"), "CATALOG_BACKUP_CONFIG="+b.conf)
	b.cmd.Stdout, b.cmd.Stderr = write, write
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, b.cmd.Start())
	write.Close()
	t.Cleanup(func() { read.Close(); _ = b.cmd.Process.Kill(); _ = b.cmd.Wait() })
	require.NoError(t, read.SetReadDeadline(time.Now().Add(30*time.Second)))
	for line := ""; !strings.Contains(line, "the worker is ready"); {
		line, err = b.lines.ReadString('\n')
		require.NoError(t, err, line)
	}
	return b
}

func (b *bare) signal(s syscall.Signal) {
	b.t.Helper()
	require.NoError(b.t, b.cmd.Process.Signal(s))
}

// serves asks the worker: one that a signal kills cannot answer any more.
func (b *bare) serves() {
	b.t.Helper()
	out, err := exec.Command(filepath.Join(programs, "worker"), "health", "--config", b.conf).CombinedOutput()
	require.NoError(b.t, err, string(out))
}

// ends waits for its end in good order and gives the rest of its log.
func (b *bare) ends() string {
	b.t.Helper()
	rest, _ := io.ReadAll(b.lines)
	require.NoError(b.t, b.cmd.Wait())
	return string(rest)
}

// Signals whose default is to kill end the worker in order, or do nothing at all.
func TestSignals(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			b := serveBare(t, `exec "$W" run`)
			for _, harmless := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGVTALRM, syscall.SIGPIPE,
				syscall.SIGXCPU, syscall.SIGXFSZ, syscall.SIGIO, syscall.SIGPWR} {
				b.signal(harmless)
				b.serves()
			}
			b.signal(s)
			if s == syscall.SIGHUP { // the shell sends it, and the kernel too
				b.signal(s)
			}
			require.Contains(t, b.ends(), "stopping: a stage under way is handed on")
		})
	}
}

func TestNohup(t *testing.T) {
	t.Parallel()
	b := serveBare(t, `exec nohup "$W" run`)
	b.signal(syscall.SIGHUP)
	b.serves()
	b.signal(syscall.SIGTERM)
	require.Contains(t, b.ends(), "stopping: a stage under way is handed on")
}

// `worker run 2>&1 | head -1`: nobody reads the log any more.
func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	b := serveBare(t, `exec "$W" run`)
	require.NoError(t, b.log.Close())
	b.serves()
	b.signal(syscall.SIGTERM) // which it logs
	require.NoError(t, b.cmd.Wait(), "killed by its own log line")
}
