package keeper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain makes the test binary a keeper, or a worker that a test can kill.
func TestMain(m *testing.M) {
	Hook()
	if script := os.Getenv("KEEPER_TEST_WORKER"); script != "" {
		gentle, _ := time.ParseDuration(os.Getenv("KEEPER_TEST_GENTLE"))
		p, err := Start(context.Background(), Command{
			Path: "sh", Args: []string{"-c", script}, Gentle: gentle, PIDFile: os.Getenv("KEEPER_TEST_PIDFILE"),
			Stdout: os.Stdout,
		})
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		fmt.Println("keeper", p.KeeperPID())
		_ = p.Wait()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// startWorker runs the test binary as a worker that runs script. It returns the
// worker and the session's id.
func startWorker(t *testing.T, script, gentle, pidfile string) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "KEEPER_TEST_WORKER="+script, "KEEPER_TEST_GENTLE="+gentle, "KEEPER_TEST_PIDFILE="+pidfile)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var text string
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		text += string(buf[:n])
		if _, after, ok := strings.Cut(text, "keeper "); ok && strings.Contains(after, "\n") && strings.Contains(text, "ready") {
			id, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(after, "\n", 2)[0]))
			require.NoError(t, err)
			t.Cleanup(func() { _, _ = end(func() ([]proc, error) { return members(id) }, 0, nil) })
			return cmd, id
		}
		require.NoError(t, err, "the worker said %q", text)
	}
}

// waitGone waits until no process of session id lives, its keeper included, and
// returns how long that took.
func waitGone(t *testing.T, id int, limit time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		all, err := processes()
		require.NoError(t, err)
		var left []proc
		for _, p := range all {
			if p.session == id {
				left = append(left, p)
			}
		}
		if len(left) == 0 {
			return time.Since(began)
		}
		require.Less(t, time.Since(began), limit, "still there: %+v", left)
		time.Sleep(5 * time.Millisecond)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for began := time.Now(); !done(); time.Sleep(5 * time.Millisecond) {
		require.Less(t, time.Since(began), 10*time.Second, "waiting for %s", what)
	}
}

func waitFile(t *testing.T, path string) string {
	t.Helper()
	var text []byte
	waitFor(t, filepath.Base(path), func() bool {
		text, _ = os.ReadFile(path)
		return strings.HasSuffix(string(text), "\n")
	})
	return strings.TrimSpace(string(text))
}

// awake tells whether process number pid lives.
func awake(pid int) bool {
	p, err := readProc(pid)
	return err == nil && p.alive()
}
