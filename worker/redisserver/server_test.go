package redisserver

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"catalog-backup/worker/keeper"
	"catalog-backup/worker/stage"
)

// TestMain makes the test binary a keeper, or a worker that a test can kill.
func TestMain(m *testing.M) {
	keeper.Hook()
	if dir := os.Getenv("REDISSERVER_TEST_DIR"); dir != "" {
		s := New(Options{Dir: filepath.Join(dir, "redis"), Socket: filepath.Join(dir, "s")})
		if err := s.Start(context.Background()); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		fmt.Println("ready", s.Owner())
		select {}
	}
	os.Exit(m.Run())
}

// startWorker runs the test binary as a worker with the embedded Redis in dir.
func startWorker(t *testing.T, dir string) (cmd *exec.Cmd, owner bool) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REDISSERVER_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(line, "ready"), line)
	return cmd, strings.Contains(line, "true")
}

// shortDir is a private directory with a short path.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cb")
	require.NoError(t, err)
	t.Cleanup(func() {
		waitFor(t, "every redis-server to end", func() bool { return len(servers(dir)) == 0 })
		require.NoError(t, os.RemoveAll(dir))
	})
	return dir
}

// servers lists the living processes whose command line names dir.
func servers(dir string) (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		line, _ := os.ReadFile(name + "/cmdline")
		stat, _ := os.ReadFile(name + "/stat")
		if strings.Contains(string(line), dir) && !strings.Contains(string(stat), ") Z") {
			pid, _ := strconv.Atoi(filepath.Base(name))
			pids = append(pids, pid)
		}
	}
	return pids
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	o.Logf = t.Logf
	s := New(o)
	require.NoError(t, s.Start(t.Context()))
	t.Cleanup(func() { require.NoError(t, s.Shutdown(context.Background())) })
	return s
}

func options(dir string) Options {
	return Options{Dir: filepath.Join(dir, "redis"), Socket: filepath.Join(dir, "s")}
}

func client(t *testing.T, dir string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: filepath.Join(dir, "s"), MaxRetries: -1})
	t.Cleanup(func() { c.Close() })
	return c
}

func waitFor(t *testing.T, what string, done func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for ; !done(); time.Sleep(5 * time.Millisecond) {
		require.Less(t, time.Since(began), 15*time.Second, "waiting for %s", what)
	}
	return time.Since(began)
}

func TestOwnerStartsAndEnds(t *testing.T) {
	dir := shortDir(t)
	s := New(options(dir))
	require.NoError(t, s.Start(t.Context()))
	require.True(t, s.Owner())
	c := client(t, dir)
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	warnings, err := Check(t.Context(), c)
	require.NoError(t, err)
	require.Empty(t, warnings)
	for path, mode := range map[string]os.FileMode{
		"s": 0o660 | os.ModeSocket, "redis": 0o700 | os.ModeDir, "redis/redis.conf": 0o600, "redis/lock": 0o600, "redis/redis.log": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, path))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), path)
	}
	require.Len(t, servers(dir), 1)
	require.NoError(t, s.Shutdown(t.Context()))
	require.Empty(t, servers(dir))
	require.NoFileExists(t, filepath.Join(dir, "redis/redis.pid"))

	start(t, options(dir))
	require.Equal(t, "v", client(t, dir).Get(t.Context(), "k").Val())
}

// The owner is killed again and again; each time a client takes over with all data.
func TestTakeover(t *testing.T) {
	dir := shortDir(t)
	first, owner := startWorker(t, dir)
	require.True(t, owner)
	s := start(t, options(dir))
	require.False(t, s.Owner())
	c := client(t, dir)
	for i := range 200 {
		require.NoError(t, c.RPush(t.Context(), "list", i).Err())
	}
	old := servers(dir)
	require.NoError(t, first.Process.Kill())
	took := waitFor(t, "the takeover", s.Owner)
	t.Logf("taken over after %v", took)
	require.Less(t, took, 2*time.Second)
	require.EqualValues(t, 200, client(t, dir).LLen(t.Context(), "list").Val())
	now := servers(dir)
	require.Len(t, now, 1)
	require.NotEqual(t, old, now)

	_, owner = startWorker(t, dir)
	require.False(t, owner)
}

func TestOwnerKilledBeforeNext(t *testing.T) {
	dir := shortDir(t)
	for i := range 3 {
		worker, owner := startWorker(t, dir)
		require.True(t, owner)
		require.EqualValues(t, i+1, client(t, dir).Incr(t.Context(), "n").Val())
		require.NoError(t, worker.Process.Kill())
	}
	waitFor(t, "the last redis-server to end", func() bool { return len(servers(dir)) == 0 })
}

// Worker and keeper die at once: nobody ends the old server but its successor.
func TestOwnerAndKeeperKilled(t *testing.T) {
	dir := shortDir(t)
	worker, _ := startWorker(t, dir)
	require.NoError(t, client(t, dir).Set(t.Context(), "k", "v", 0).Err())
	server := servers(dir)
	require.Len(t, server, 1)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", server[0]))
	require.NoError(t, err)
	keeperPID, err := strconv.Atoi(strings.Fields(string(stat))[3])
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(worker.Process.Pid, syscall.SIGSTOP)) // it must not see its keeper end
	require.NoError(t, syscall.Kill(keeperPID, syscall.SIGKILL))
	require.NoError(t, worker.Process.Kill())
	s := start(t, options(dir))
	require.True(t, s.Owner())
	require.Equal(t, "v", client(t, dir).Get(t.Context(), "k").Val())
	require.Len(t, servers(dir), 1)
}

func TestServerKilled(t *testing.T) {
	dir := shortDir(t)
	s := start(t, options(dir))
	require.NoError(t, client(t, dir).Set(t.Context(), "k", "v", 0).Err())
	for range 3 {
		old := servers(dir)
		require.Len(t, old, 1)
		require.NoError(t, syscall.Kill(old[0], syscall.SIGKILL))
		waitFor(t, "the next redis-server", func() bool { now := servers(dir); return len(now) == 1 && now[0] != old[0] && s.Owner() })
		require.Equal(t, "v", client(t, dir).Get(t.Context(), "k").Val())
	}
}

// What a kill left half written is removed before the next start, and nothing else.
func TestDebrisIsSwept(t *testing.T) {
	dir := shortDir(t)
	s := New(options(dir))
	require.NoError(t, s.Start(t.Context()))
	require.NoError(t, client(t, dir).Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, s.Shutdown(t.Context()))
	debris := []string{"redis.pid.4711.part", "temp-rewriteaof-4711.aof", "temp-rewriteaof-bg-4711.aof", "temp-4711.rdb", "appendonlydir/temp-appendonly.aof.manifest"}
	for _, name := range debris {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "redis", name), []byte("half"), 0o600))
	}
	start(t, options(dir))
	for _, name := range debris {
		require.NoFileExists(t, filepath.Join(dir, "redis", name))
	}
	require.Equal(t, "v", client(t, dir).Get(t.Context(), "k").Val())
}

func TestManyStartAtOnce(t *testing.T) {
	dir := shortDir(t)
	owners := make(chan bool, 6)
	for range cap(owners) {
		go func() {
			s := New(options(dir))
			if err := s.Start(context.Background()); err != nil {
				t.Error(err)
			}
			t.Cleanup(func() { _ = s.Shutdown(context.Background()) })
			owners <- s.Owner()
		}()
	}
	n := 0
	for range cap(owners) {
		if <-owners {
			n++
		}
	}
	require.Equal(t, 1, n)
	require.Len(t, servers(dir), 1)
}

func TestGroup(t *testing.T) {
	dir := shortDir(t)
	require.NoError(t, os.Chmod(dir, 0o755))
	o := Options{Dir: filepath.Join(dir, "state/redis"), Socket: filepath.Join(dir, "state/s"), Group: "postgres"}
	g, err := user.LookupGroup("postgres")
	require.NoError(t, err)
	if os.Geteuid() != 0 { // only a group of ours can be given
		g, err = user.LookupGroupId(fmt.Sprint(os.Getegid()))
		require.NoError(t, err)
		o.Group = g.Name
	}
	start(t, o)
	for path, mode := range map[string]os.FileMode{"state/s": 0o660, "state": 0o750} {
		info, err := os.Stat(filepath.Join(dir, path))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), path)
		require.Equal(t, g.Gid, fmt.Sprint(info.Sys().(*syscall.Stat_t).Gid), path)
	}
	if os.Geteuid() != 0 { // nor can we be somebody else to try it
		return
	}
	postgres, err := keeper.LookupCredential("postgres")
	require.NoError(t, err)
	ask := keeper.Command{Path: "redis-cli", Args: []string{"-s", o.Socket, "ping"}, Credential: postgres}
	out, err := keeper.Output(t.Context(), ask)
	require.NoError(t, err)
	require.Equal(t, "PONG\n", string(out))
	ask.Credential = &keeper.Credential{UID: 65534, GID: 65534}
	out, err = keeper.Output(t.Context(), ask)
	require.Error(t, err, "%s", out)
	// A member of the group must not write files as the worker's user.
	ask.Credential, ask.Args = postgres, []string{"-s", o.Socket, "config", "set", "dir", "/tmp"}
	out, err = keeper.Output(t.Context(), ask)
	require.Contains(t, string(out)+fmt.Sprint(err), "protected config")
}

func TestRefused(t *testing.T) {
	dir := shortDir(t)
	foreign, tmp := "/usr", "belongs to user 0"
	if os.Geteuid() == 0 {
		foreign, tmp = filepath.Join(dir, "foreign"), "others can write"
		require.NoError(t, os.Mkdir(foreign, 0o750))
		require.NoError(t, os.Chown(foreign, 65534, 65534))
	}
	open := filepath.Join(dir, "open")
	require.NoError(t, os.Mkdir(open, 0o700))
	require.NoError(t, os.Chmod(open, 0o777))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(foreign, link))
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	old := filepath.Join(dir, "old")
	require.NoError(t, os.WriteFile(old, []byte("#!/bin/sh\necho Redis server v=6.0.16 sha=0:0\n"), 0o700))
	data := filepath.Join(dir, "redis")
	for name, c := range map[string]struct {
		Options
		says string
	}{
		"long path":      {Options{Dir: data, Socket: filepath.Join(dir, strings.Repeat("x", 100))}, "the most is 100"},
		"relative path":  {Options{Dir: data, Socket: "s"}, "no absolute path"},
		"foreign":        {Options{Dir: data, Socket: filepath.Join(foreign, "s")}, "belongs to user"},
		"foreign data":   {Options{Dir: foreign, Socket: filepath.Join(dir, "s")}, "belongs to user"},
		"open directory": {Options{Dir: data, Socket: filepath.Join(open, "s")}, "others can write"},
		"the public tmp": {Options{Dir: data, Socket: "/tmp/cb-test-s"}, tmp},
		"link":           {Options{Dir: data, Socket: filepath.Join(link, "s")}, "is no directory"},
		"file":           {Options{Dir: data, Socket: file}, "no socket"},
		"unknown group":  {Options{Dir: data, Socket: filepath.Join(dir, "s"), Group: "no-such-group"}, "groupadd no-such-group"},
		"no program":     {Options{Dir: data, Socket: filepath.Join(dir, "s"), Program: "/nowhere/redis-server"}, "apt-get install redis-server"},
		"old program":    {Options{Dir: data, Socket: filepath.Join(dir, "s"), Program: old}, "6.0, too old"},
	} {
		err := New(c.Options).Start(t.Context())
		require.ErrorContains(t, err, c.says, name)
		require.True(t, stage.IsPermanent(err), name)
		require.NotContains(t, err.Error(), "\n")
	}
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "precious", string(text))
}

// A directory with blanks and quotes is taken as it is.
func TestOddPath(t *testing.T) {
	dir := filepath.Join(shortDir(t), `a "b' \n ü`)
	start(t, options(dir))
	require.NoError(t, client(t, dir).Ping(t.Context()).Err())
}

// A stranger on our socket is neither used nor robbed of it.
func TestForeignServer(t *testing.T) {
	dir := shortDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("-NOAUTH Authentication required.\r\n"))
			conn.Close()
		}
	}()
	require.ErrorContains(t, New(options(dir)).Start(t.Context()), "not ours")
	require.NoError(t, New(options(dir)).Shutdown(t.Context()))
}

// A worker waits for an owner that is still starting, as long as it may.
func TestOwnerDoesNotAnswer(t *testing.T) {
	dir := shortDir(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "redis"), 0o700))
	s := New(options(dir))
	other, err := s.tryLock()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = s.Start(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "another worker holds")
	s.release(other)
	start(t, options(dir))
}

func TestDamagedData(t *testing.T) {
	dir := shortDir(t)
	s := New(options(dir))
	require.NoError(t, s.Start(t.Context()))
	require.NoError(t, client(t, dir).Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, s.Shutdown(t.Context()))
	files, err := filepath.Glob(filepath.Join(dir, "redis/appendonlydir/*.aof"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	require.NoError(t, os.WriteFile(files[0], []byte("nonsense\r\nnonsense\r\n"), 0o600))
	err = New(options(dir)).Start(t.Context())
	require.ErrorContains(t, err, "redis-server ended at once")
	require.ErrorContains(t, err, "Bad file format")
	require.NotContains(t, err.Error(), "\n")
}
