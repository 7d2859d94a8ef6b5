package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// countWriter counts, slowly if asked to.
type countWriter struct {
	n    int64
	wait time.Duration
	fail error // once something was written
}

func (c *countWriter) Write(b []byte) (int, error) {
	if c.fail != nil && c.n > 0 {
		return 0, c.fail
	}
	time.Sleep(c.wait)
	c.n += int64(len(b))
	return len(b), nil
}

func TestBigOutput(t *testing.T) {
	out := &countWriter{}
	c := sh("head -c 200000000 /dev/zero")
	c.Stdout = out
	require.NoError(t, Run(t.Context(), c))
	require.EqualValues(t, 200000000, out.n)
	var stderr bytes.Buffer
	c = sh("seq 1 100000 >&2; exit 3")
	c.Stderr = &stderr
	err := Run(t.Context(), c)
	require.ErrorContains(t, err, "99999 | 100000")
	require.Less(t, len(err.Error()), 2*tailSize)
	require.Equal(t, 588895, stderr.Len())
}

// What a tool wrote is taken whole, however slow the writer, even when a daemon
// holds the pipe.
func TestSlowWriter(t *testing.T) {
	for _, daemon := range []string{"", "setsid sleep 3 & "} {
		out := &countWriter{wait: 20 * time.Millisecond}
		c := sh(daemon + "head -c 3000000 /dev/zero")
		c.Stdout = out
		began := time.Now()
		require.NoError(t, Run(t.Context(), c))
		require.EqualValues(t, 3000000, out.n)
		require.Less(t, time.Since(began), 2500*time.Millisecond)
	}
}

func TestWriterFails(t *testing.T) {
	began := time.Now()
	c := sh("trap '' PIPE; while :; do echo y || sleep 0.1; done")
	c.Stdout = &countWriter{fail: syscall.ENOSPC}
	err := Run(t.Context(), c)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Less(t, time.Since(began), 3*time.Second)
}

func TestWriterHangs(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("enough"))
	defer cancel()
	_, never := io.Pipe()
	c := sh("while :; do echo y; done")
	c.Stdout = never
	err := Run(ctx, c)
	require.ErrorContains(t, err, "enough")
}

func TestSharedWriter(t *testing.T) {
	var both bytes.Buffer // the race detector watches
	c := sh("for i in 1 2 3 4 5 6 7 8 9; do echo out; echo err >&2; done")
	c.Stdout, c.Stderr = &both, &both
	require.NoError(t, Run(t.Context(), c))
	require.Equal(t, 9*2*4, both.Len())
}

func TestStdin(t *testing.T) {
	c := Command{Path: "wc", Args: []string{"-c"}, Stdin: io.LimitReader(zeros{}, 50_000_000)}
	out, err := Output(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, "50000000", strings.TrimSpace(string(out)))
	// A tool that does not read to the end is no failure.
	require.NoError(t, Run(t.Context(), Command{Path: "true", Stdin: zeros{}}))
	// Nor does an input that never comes hold anything up.
	never, _ := io.Pipe()
	require.NoError(t, Run(t.Context(), Command{Path: "true", Stdin: never}))
	// No input is an empty one.
	out, err = Output(t.Context(), Command{Path: "cat"})
	require.NoError(t, err)
	require.Empty(t, out)
	// A file is handed over as it is.
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("text"), 0o600))
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	out, err = Output(t.Context(), Command{Path: "cat", Stdin: f})
	require.NoError(t, err)
	require.Equal(t, "text", string(out))
}

// An input that breaks off is never taken for a whole one.
func TestStdinFails(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	broken := errors.New("broken")
	c := sh("cat >/dev/null && echo whole >" + done)
	c.Stdin = io.MultiReader(strings.NewReader("first half"), brokenReader{broken})
	require.ErrorIs(t, Run(t.Context(), c), broken)
	require.NoFileExists(t, done)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

// Tools get their three descriptors and no other, in blocking mode.
func TestDescriptors(t *testing.T) {
	out, err := Output(t.Context(), Command{Path: "ls", Args: []string{"/proc/self/fd"}})
	require.NoError(t, err)
	require.Equal(t, "0\n1\n2\n3\n", string(out), "3 is the listed directory")
	out, err = Output(t.Context(), sh("grep flags /proc/$$/fdinfo/1 /proc/$$/fdinfo/2"))
	require.NoError(t, err)
	require.NotContains(t, string(out), "4001", "O_NONBLOCK")
}

// Children that start at the same time must not hold each other's pipe to the
// worker: then none would see it die.
func TestPipesAreNotShared(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ps []*Process
	started := make(chan *Process)
	for range 20 {
		go func() {
			c := sh("sleep 1000 & wait")
			c.Stdin, c.Stdout = zeros{}, io.Discard
			p, err := Start(ctx, c)
			if err != nil {
				t.Error(err)
			}
			started <- p
		}()
	}
	for range 20 {
		ps = append(ps, <-started)
	}
	holders := map[string]int{} // pipe: processes that can write to it
	all, err := processes()
	require.NoError(t, err)
	for _, p := range all {
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
		for _, fd := range fds {
			to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", p.pid, fd.Name()))
			info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", p.pid, fd.Name()))
			if strings.HasPrefix(to, "pipe:") && bytes.Contains(info, []byte("flags:\t0")) && !bytes.HasSuffix(bytes.SplitN(info, []byte("\n"), 3)[1], []byte("0")) {
				holders[to]++
			}
		}
	}
	for _, p := range ps {
		info, err := p.control.Stat()
		require.NoError(t, err)
		require.Equal(t, 1, holders[fmt.Sprintf("pipe:[%d]", info.Sys().(*syscall.Stat_t).Ino)], "only the worker may hold it")
	}
	cancel()
	for _, p := range ps {
		require.ErrorIs(t, p.Wait(), context.Canceled)
	}
}

// The worker's death must not break the pipe of a tool that ends gently.
func TestWorkerKilledToolSpeaks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "said")
	script := "trap 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo ending in order and saying so at some length >&2; done; echo term >" + file + "; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
	worker, id := startWorker(t, script, "10s", "")
	require.NoError(t, worker.Process.Kill())
	waitGone(t, id, 8*time.Second)
	require.Equal(t, "term", waitFile(t, file))
}
