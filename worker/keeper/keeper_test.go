package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// It says it is ready when its children are there.
const family = "sleep 1000 & sleep 1000 & (sleep 1000 & sleep 1000) & echo ready; wait"

func sh(script string) Command { return Command{Path: "sh", Args: []string{"-c", script}} }

func TestWorkerKilled(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			worker, id := startWorker(t, family, "", "")
			require.NoError(t, worker.Process.Signal(sig))
			took := waitGone(t, id, 3*time.Second)
			t.Logf("gone after %v", took)
		})
	}
}

func TestWorkerKilledGently(t *testing.T) {
	file := filepath.Join(t.TempDir(), "said")
	worker, id := startWorker(t, "trap 'echo term >"+file+"; exit 0' TERM; echo ready; while :; do sleep 0.02; done", "5s", "")
	require.NoError(t, worker.Process.Kill())
	waitGone(t, id, 3*time.Second)
	require.Equal(t, "term", waitFile(t, file))
}

func TestWorkerKilledToolIgnoresTERM(t *testing.T) {
	worker, id := startWorker(t, "trap '' TERM; echo ready; while :; do sleep 0.02; done", "300ms", "")
	require.NoError(t, worker.Process.Kill())
	require.Greater(t, waitGone(t, id, 3*time.Second), 200*time.Millisecond)
}

func TestWorkerKilledReachesOwnSessions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	worker, id := startWorker(t, "setsid sh -c 'echo $$ >"+file+"; exec sleep 1000' & echo ready; wait", "", "")
	pid, err := strconv.Atoi(waitFile(t, file))
	require.NoError(t, err)
	require.NoError(t, worker.Process.Kill())
	waitGone(t, id, 3*time.Second)
	waitFor(t, "the process that called setsid to end", func() bool { return !awake(pid) })
}

func TestKeeperKilled(t *testing.T) {
	for _, c := range []Command{sh(family), {Path: "sh", Args: []string{"-c", family}, Gentle: 5 * time.Second}} {
		pidfile := filepath.Join(t.TempDir(), "pid")
		c.PIDFile = pidfile
		p, err := Start(t.Context(), c)
		require.NoError(t, err)
		require.FileExists(t, pidfile)
		require.NoError(t, syscall.Kill(p.KeeperPID(), syscall.SIGKILL))
		require.ErrorContains(t, p.Wait(), "keeper of sh was killed")
		waitGone(t, p.KeeperPID(), 0)
		require.NoFileExists(t, pidfile)
	}
}

// A stopped keeper cannot do what it is asked; the worker does it then.
func TestKeeperStopped(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	p, err := Start(ctx, sh(family))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(p.KeeperPID(), syscall.SIGSTOP))
	cancel(errors.New("enough"))
	require.ErrorContains(t, p.Wait(), "enough")
	waitGone(t, p.KeeperPID(), 0)
}

func TestContextEnds(t *testing.T) {
	enough := errors.New("enough")
	for _, gentle := range []time.Duration{0, 5 * time.Second} {
		ctx, cancel := context.WithCancelCause(t.Context())
		c := sh(family)
		c.Gentle = gentle
		p, err := Start(ctx, c)
		require.NoError(t, err)
		began := time.Now()
		cancel(enough)
		err = p.Wait()
		require.ErrorIs(t, err, enough)
		var exit *ExitError
		require.ErrorAs(t, err, &exit)
		require.NotContains(t, err.Error(), "\n")
		waitGone(t, p.KeeperPID(), 0)
		require.Less(t, time.Since(began), 2*time.Second)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	require.ErrorIs(t, Run(ctx, sh("true")), enough)
}

// The context may end at any moment of a start.
func TestContextEndsEarly(t *testing.T) {
	enough := errors.New("enough")
	for i := range 40 {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Duration(i)*500*time.Microsecond, func() { cancel(enough) })
		for _, c := range []Command{sh(family), {Path: "sh", Args: []string{"-c", family}, Gentle: time.Second}} {
			require.ErrorIs(t, Run(ctx, c), enough)
		}
	}
	waitFor(t, "every tool to end", func() bool {
		all, err := processes()
		require.NoError(t, err)
		for _, p := range all {
			if p.ppid == os.Getpid() {
				return false
			}
		}
		return true
	})
}

func TestGentleThenKill(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	c := sh("trap '' TERM; sleep 1000 & echo ready; while :; do sleep 0.02; done")
	c.Gentle, c.Stdout = 300*time.Millisecond, write
	p, err := Start(ctx, c)
	require.NoError(t, err)
	_, err = read.Read(make([]byte, 10))
	require.NoError(t, err)
	began := time.Now()
	cancel()
	require.ErrorIs(t, p.Wait(), context.Canceled)
	require.Greater(t, time.Since(began), 290*time.Millisecond)
	waitGone(t, p.KeeperPID(), 0)
}

// A tool that ends leaves nothing of its session, and does not hold up Wait.
func TestLeavesNothing(t *testing.T) {
	var out bytes.Buffer
	c := sh("sleep 1000 & (sleep 1000 &) ; echo done")
	c.Stdout = &out
	p, err := Start(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, p.Wait())
	require.Equal(t, "done\n", out.String())
	waitGone(t, p.KeeperPID(), 0)
}

// What calls setsid and outlives its tool is left alone, and may hold our pipes.
func TestDaemonIsLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	c := sh("setsid sh -c 'echo $$ >" + file + "; exec sleep 1000' & while [ ! -s " + file + " ]; do sleep 0.01; done; echo done")
	out, err := Output(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, "done\n", string(out))
	pid, err := strconv.Atoi(waitFile(t, file))
	require.NoError(t, err)
	require.True(t, awake(pid))
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}

func TestExitCodes(t *testing.T) {
	for _, code := range []int{1, 2, 56, 255} {
		err := Run(t.Context(), sh(fmt.Sprintf("echo first >&2; echo why >&2; exit %d", code)))
		var exit *ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, code, exit.Code)
		require.Equal(t, fmt.Sprintf("sh exited with code %d: first | why", code), err.Error())
	}
	err := Run(t.Context(), sh("kill -SEGV $$"))
	var exit *ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, syscall.SIGSEGV, exit.Signal)
	require.NoError(t, Run(t.Context(), sh("exit 0")))
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	notProgram := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(notProgram, []byte("\x00\x01no program"), 0o700))
	pidfile := filepath.Join(dir, "pid")
	for name, c := range map[string]Command{
		"unknown name":   {Path: "no-such-tool-of-ours"},
		"unknown path":   {Path: "/nowhere/tool"},
		"no program":     {Path: notProgram, PIDFile: pidfile},
		"no directory":   {Path: "true", Dir: filepath.Join(dir, "nowhere"), PIDFile: pidfile},
		"relative dir":   {Path: "true", Dir: "x"},
		"zero byte":      {Path: "true", Args: []string{"a\x00b"}},
		"no PID file":    {Path: "true", PIDFile: filepath.Join(dir, "nowhere", "pid")},
		"foreign folder": {Path: "true", Dir: dir, Credential: &Credential{UID: 65534, GID: 65534}},
	} {
		require.NoError(t, os.Chmod(dir, 0o700))
		_, err := Start(t.Context(), c)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "\n")
		require.NoFileExists(t, pidfile, name)
		t.Log(err)
	}
}

func TestLongOrder(t *testing.T) {
	// 100 KB in one argument, 1.2 MB in all: far beyond what a pipe holds.
	c := sh("printf %s \"$0$1$V0$V1$V2$V3$V4$V5$V6$V7$V8$V9\" | wc -c")
	big := strings.Repeat("x", 100_000)
	c.Args = append(c.Args, big, big)
	c.Env = []string{"PATH=/usr/bin:/bin"}
	for i := range 10 {
		c.Env = append(c.Env, fmt.Sprintf("V%d=%s", i, big))
	}
	out, err := Output(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, "1200000", strings.TrimSpace(string(out)))
}

func TestOddArguments(t *testing.T) {
	for _, odd := range []string{"", " ", "\xff\xfe", "a\nb", "--", "$(id)", "ü"} {
		out, err := Output(t.Context(), Command{Path: "printf", Args: []string{"%s", odd}})
		require.NoError(t, err)
		require.Equal(t, odd, string(out))
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("PGPASSWORD", "hunter22")
	out, err := Output(t.Context(), Command{Path: "env"})
	require.NoError(t, err)
	require.NotContains(t, string(out), "hunter22")
	require.Contains(t, string(out), "LANG=C.UTF-8")
	out, err = Output(t.Context(), Command{Path: "env", Env: []string{"A=b"}})
	require.NoError(t, err)
	require.Equal(t, "A=b\n", string(out))

	// Neither the keeper's environment nor its arguments hold what the tool gets.
	p, err := Start(t.Context(), Command{Path: "sleep", Args: []string{"1000"}, Env: []string{"PGPASSWORD=hunter22"}})
	require.NoError(t, err)
	for _, file := range []string{"environ", "cmdline"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.KeeperPID(), file))
		require.NoError(t, err)
		require.NotContains(t, string(text), "hunter22")
		require.NotContains(t, string(text), "1000")
	}
	require.NoError(t, syscall.Kill(p.PID(), syscall.SIGKILL))
	require.ErrorContains(t, p.Wait(), "killed")

	err = Run(t.Context(), Command{Path: "sh", Args: []string{"-c", "echo bad password $PGPASSWORD >&2; exit 1"}, Env: []string{"PGPASSWORD=hunter22"}})
	require.EqualError(t, err, "sh exited with code 1: bad password ***")
}

func TestConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		wg.Go(func() {
			out, err := Output(t.Context(), sh(fmt.Sprintf("sleep 1000 & echo %d; exit %d", i, i%2)))
			if string(out) != fmt.Sprintf("%d\n", i) || (err != nil) != (i%2 == 1) {
				errs[i] = fmt.Errorf("%d: %q, %w", i, out, err)
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}
