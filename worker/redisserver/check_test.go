package redisserver

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"catalog-backup/worker/stage"
)

// bare starts a redis-server with the given settings and returns a client of it.
func bare(t *testing.T, user, password string, settings ...string) *redis.Client {
	t.Helper()
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("redis-server", append([]string{"--port", "0", "--unixsocket", socket, "--dir", dir, "--logfile", "log"}, settings...)...)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitFor(t, "redis-server", func() bool {
		err := answers(socket)
		return err == nil || strings.HasPrefix(err.Error(), "-NOAUTH")
	})
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: socket, Username: user, Password: password, MaxRetries: -1})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		settings, login []string
		warns, refused  string
	}{
		"good":        {settings: []string{"--appendonly", "yes"}},
		"no file":     {warns: "CONFIG SET appendonly yes"},
		"no sync":     {settings: []string{"--appendonly", "yes", "--appendfsync", "no"}, warns: "appendfsync everysec"},
		"evicts":      {settings: []string{"--maxmemory-policy", "allkeys-lru"}, refused: "CONFIG SET maxmemory-policy noeviction"},
		"no CONFIG":   {settings: []string{"--rename-command", "CONFIG", "", "--appendonly", "yes"}},
		"evicts, too": {settings: []string{"--rename-command", "CONFIG", "", "--maxmemory-policy", "volatile-ttl"}, refused: "volatile-ttl"},
		"login":       {settings: []string{"--requirepass", "secret99"}, refused: "refuses the login"},
		"password":    {settings: []string{"--requirepass", "secret99"}, login: []string{"", "secret98"}, refused: "refuses the login"},
		"cluster":     {settings: []string{"--cluster-enabled", "yes"}, refused: "Cluster mode"},
		"replica":     {settings: []string{"--replicaof", "127.0.0.1 1"}, refused: "replica of 127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			login := append(c.login, "", "")
			warnings, err := Check(t.Context(), bare(t, login[0], login[1], c.settings...))
			if c.refused != "" {
				require.ErrorContains(t, err, c.refused)
				require.True(t, stage.IsPermanent(err))
				require.NotContains(t, err.Error(), "secret9")
				return
			}
			require.NoError(t, err)
			if c.warns == "" {
				require.Empty(t, warnings)
				return
			}
			require.Contains(t, strings.Join(warnings, "; "), c.warns)
		})
	}
}

func TestCheckForbidden(t *testing.T) {
	c := bare(t, "", "")
	require.NoError(t, c.Do(t.Context(), "ACL", "SETUSER", "default", "-info", "-config").Err())
	warnings, err := Check(t.Context(), c)
	require.NoError(t, err)
	require.Contains(t, strings.Join(warnings, "; "), "allow its user INFO")
}

func TestCheckUnreachable(t *testing.T) {
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: "/nowhere/s", MaxRetries: -1})
	defer c.Close()
	_, err := Check(t.Context(), c)
	require.ErrorContains(t, err, "see that it runs")
	require.False(t, stage.IsPermanent(err))
}

// old answers like a server that cannot be had here.
type old struct{ version string }

func (o old) Info(ctx context.Context, _ ...string) *redis.StringCmd {
	cmd := redis.NewStringCmd(ctx)
	cmd.SetVal("# Server\r\nredis_version:" + o.version + "\r\nredis_mode:standalone\r\nrole:master\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n")
	return cmd
}

func (o old) ConfigGet(ctx context.Context, _ string) *redis.MapStringStringCmd {
	cmd := redis.NewMapStringStringCmd(ctx)
	cmd.SetErr(errors.New("ERR unknown command"))
	return cmd
}

func TestCheckVersion(t *testing.T) {
	for _, v := range []string{"4.0.9", "5.0.14", "6.0.16", "6.1.240"} {
		_, err := Check(t.Context(), old{v})
		require.ErrorContains(t, err, "upgrade to 6.2")
		require.True(t, stage.IsPermanent(err))
	}
	for _, v := range []string{"6.2.0", "7.0.15", "8.4.0", "255.255.255"} {
		warnings, err := Check(t.Context(), old{v})
		require.NoError(t, err)
		require.Empty(t, warnings)
	}
	warnings, err := Check(t.Context(), old{"valkey"})
	require.NoError(t, err)
	require.Len(t, warnings, 1)
}
