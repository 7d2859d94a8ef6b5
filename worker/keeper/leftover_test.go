package keeper

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLeftoverOfNobody(t *testing.T) {
	pidfile := filepath.Join(t.TempDir(), "pid")
	left, err := Leftover(pidfile)
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, EndLeftover(t.Context(), pidfile))
	for _, cut := range []string{`{"keeper":-1}`, `{"kee`, ""} { // by a crash of the machine, which ended the processes too
		require.NoError(t, os.WriteFile(pidfile, []byte(cut), 0o600))
		require.NoError(t, EndLeftover(t.Context(), pidfile))
	}
}

func TestLeftoverOfDeadWorkerAndKeeper(t *testing.T) {
	for name, c := range map[string]struct {
		script  string
		gentle  string
		andTool bool
	}{
		"all but the tool":   {"trap '' TERM; echo ready; sleep 1000 & sleep 1000 & while :; do wait; done", "200ms", false},
		"the tool too":       {family, "", true},
		"children that hide": {"trap '' TERM; echo ready; (sleep 1000 <&- >&- 2>&-) & while :; do wait; done", "1s", false},
	} {
		t.Run(name, func(t *testing.T) {
			pidfile := filepath.Join(t.TempDir(), "pid")
			worker, id := startWorker(t, c.script, c.gentle, pidfile)
			n := noteOf(t, pidfile)
			require.Equal(t, id, n.Keeper)
			require.NoError(t, worker.Process.Signal(syscall.SIGSTOP))
			require.NoError(t, syscall.Kill(id, syscall.SIGKILL))
			if c.andTool {
				_ = syscall.Kill(n.Tool, syscall.SIGKILL)
			}
			require.NoError(t, worker.Process.Kill())
			left, err := Leftover(pidfile)
			require.NoError(t, err)
			require.NotEmpty(t, left)
			require.NoError(t, EndLeftover(t.Context(), pidfile))
			waitGone(t, id, 0)
			require.NoFileExists(t, pidfile)
		})
	}
}

// While the keeper still ends its tool, a successor waits for it.
func TestLeftoverStillEnding(t *testing.T) {
	dir := t.TempDir()
	worker, id := startWorker(t, "trap 'sleep 0.5; echo end >"+dir+"/end; exit 0' TERM; echo ready; while :; do sleep 0.02; done", "10s", dir+"/pid")
	require.NoError(t, worker.Process.Kill())
	require.NoError(t, EndLeftover(t.Context(), dir+"/pid"))
	waitGone(t, id, 0)
	require.Equal(t, "end", waitFile(t, dir+"/end"))
}

func TestLeftoverSparesStrangers(t *testing.T) {
	stranger := exec.Command("sh", "-c", "sleep 1000 & wait")
	stranger.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(t, stranger.Start())
	id := stranger.Process.Pid
	defer func() {
		_, _ = end(func() ([]proc, error) { return members(id) }, 0, nil)
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	}()
	leader, err := readProc(id)
	require.NoError(t, err)
	boot, err := bootID()
	require.NoError(t, err)
	pidfile := filepath.Join(t.TempDir(), "pid")
	for name, n := range map[string]note{
		"recycled":     {Boot: boot, Keeper: id, KeeperStart: leader.start - 1, Tool: id, ToolStart: leader.start - 1, Pipes: []uint64{1, 2}},
		"another boot": {Boot: "x" + boot, Keeper: id, KeeperStart: leader.start},
		// Of a container beside ours: the same boot, and by chance the same number and start.
		"another container": {Boot: boot, Namespace: "pid:[1]", Keeper: id, KeeperStart: leader.start},
	} {
		body, err := json.Marshal(n)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(pidfile, body, 0o600))
		left, err := Leftover(pidfile)
		require.NoError(t, err)
		require.Empty(t, left, name)
		require.NoError(t, EndLeftover(t.Context(), pidfile))
		require.True(t, awake(id), name)
		if strings.HasPrefix(name, "another") {
			require.FileExists(t, pidfile, "whose processes live elsewhere may still need it")
		}
	}
}

func TestPIDFile(t *testing.T) {
	pidfile := filepath.Join(t.TempDir(), "pid")
	c := sh("cat " + pidfile)
	c.PIDFile = pidfile
	out, err := Output(t.Context(), c)
	require.NoError(t, err)
	require.Contains(t, string(out), "keeper_start")
	require.NoFileExists(t, pidfile)
}

func noteOf(t *testing.T, pidfile string) note {
	t.Helper()
	var n note
	waitFor(t, "the tool's number", func() bool {
		l, there, err := readNote(pidfile)
		if err != nil || !there || l.Tool == 0 {
			return false
		}
		n = l.note
		return true
	})
	return n
}

func TestCredential(t *testing.T) {
	postgres, err := LookupCredential("postgres")
	require.NoError(t, err)
	if os.Geteuid() != 0 {
		_, err := Start(t.Context(), Command{Path: "true", Credential: &Credential{UID: 0}})
		require.ErrorContains(t, err, "only root can run it as user 0")
		return
	}
	c := sh("id -un; id -Gn; pwd; umask; echo $HOME; sleep 1000 & exit 0")
	c.Credential = postgres
	out, err := Output(t.Context(), c)
	require.NoError(t, err)
	lines := strings.Split(string(out), "\n")
	require.Equal(t, "postgres", lines[0])
	require.Contains(t, lines[1], "postgres")
	require.NotContains(t, strings.Fields(lines[1]), "root")
	require.Equal(t, []string{"/", "0077", "/var/lib/postgresql"}, lines[2:5])

	// The keeper stays root, and ends what runs as postgres.
	c = sh(family)
	c.Credential = postgres
	p, err := Start(t.Context(), c)
	require.NoError(t, err)
	info, err := os.Stat(fmt.Sprintf("/proc/%d", p.KeeperPID()))
	require.NoError(t, err)
	require.Zero(t, info.Sys().(*syscall.Stat_t).Uid)
	require.NoError(t, syscall.Kill(p.KeeperPID(), syscall.SIGKILL))
	require.Error(t, p.Wait())
	waitGone(t, p.KeeperPID(), 0)
	_, err = LookupCredential("no-such-user")
	require.ErrorContains(t, err, "no-such-user")
}
