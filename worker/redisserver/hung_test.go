package redisserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// impatient starts a server whose owner waits for no more than 2 s, and keeps its log.
func impatient(t *testing.T, o Options) (*Server, func() string) {
	t.Helper()
	var mu sync.Mutex
	var log strings.Builder
	o.Hung = 2 * time.Second
	o.Logf = func(f string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&log, f+"\n", a...)
	}
	s := New(o)
	s.gentle = time.Second
	require.NoError(t, s.Start(t.Context()))
	t.Cleanup(func() { require.NoError(t, s.Shutdown(context.Background())) })
	return s, func() string { mu.Lock(); defer mu.Unlock(); return log.String() }
}

// A server that hangs, for whatever reason, is started again on its data; a client
// that tries on, as an attempt does, goes on.
func TestHungServer(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	s, log := impatient(t, options(dir))
	c := client(t, dir)
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	for name, hang := range map[string]func(pid int){
		"stopped": func(pid int) { require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP)) },
		"a script that never ends": func(int) {
			go func() { _ = client(t, dir).Eval(context.Background(), "while true do end", nil).Err() }()
		},
	} {
		old := servers(dir)
		require.Len(t, old, 1)
		hang(old[0])
		took := waitFor(t, "the next redis-server: "+name, func() bool { now := servers(dir); return len(now) == 1 && now[0] != old[0] && s.Owner() })
		require.Greater(t, took, s.Hung-askEvery, name)
		waitFor(t, "its data", func() bool { return c.Get(t.Context(), "k").Val() == "v" })
		require.Contains(t, log(), "the embedded Redis has answered nothing for 2s")
		require.Contains(t, log(), "redis-server was ended: it answered nothing for 2s", name)
	}
}

// A large file takes long to load: that is no hang.
func TestLoadingServerIsNotHung(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	first := New(options(dir))
	require.NoError(t, first.Start(t.Context()))
	_, err := client(t, dir).Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for i := range 10000 {
			p.Set(t.Context(), fmt.Sprint(i), "v", 0)
		}
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, first.Shutdown(t.Context()))
	slow := filepath.Join(dir, "slow")
	require.NoError(t, os.WriteFile(slow, []byte("#!/bin/sh\n[ \"$1\" = --version ] && exec redis-server \"$1\"\nexec redis-server \"$@\" --key-load-delay 500\n"), 0o700))
	o := options(dir)
	o.Program = slow
	began := time.Now()
	s, log := impatient(t, o)
	require.Greater(t, time.Since(began), 2*s.Hung, "the test's server loads fast")
	require.Empty(t, log())
	require.Equal(t, "v", client(t, dir).Get(t.Context(), "9999").Val())
}

func TestLives(t *testing.T) {
	for answer, want := range map[string]bool{"-LOADING Redis is loading the dataset in memory": true, "-MISCONF Errors writing to the AOF file: No space left on device": true,
		"-ERR max number of clients reached": true, "-BUSY Redis is busy running a script.": false, "read unix: i/o timeout": false} {
		require.Equal(t, want, lives(errors.New(answer)), answer)
	}
	require.True(t, lives(nil))
}
