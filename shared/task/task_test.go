package task

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/lab"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var ctx = context.Background()

func TestEnqueuedTwiceIsOnce(t *testing.T) {
	rdb := lab.Redis(t).Client()
	defer func() { _ = rdb.Close() }()
	e := NewEnqueuer(rdb, time.Now)
	p := Payload{Run: "20261123t184702z-abcdefgh", Instance: "catalog", Stage: "prepare", Generation: 1}
	require.NoError(t, e.Enqueue(ctx, "install", "", p, nil))
	require.NoError(t, e.Enqueue(ctx, "install", "", p, nil))
	in := asynq.NewInspectorFromRedisClient(rdb)
	all, err := in.ListPendingTasks("catalog")
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Zero(t, all[0].Timeout, "asynq's default of 30 minutes must not apply")
	require.True(t, all[0].Deadline.Equal(noDeadline))
	require.GreaterOrEqual(t, all[0].Retention, 7*24*time.Hour)
	require.Greater(t, all[0].MaxRetry, 1<<20, "our own budgets decide")
	got, err := Read(asynq.NewTask(all[0].Type, all[0].Payload))
	require.NoError(t, err)
	require.Equal(t, p, got)

	p.Generation = 2
	later := time.Now().Add(time.Hour)
	require.NoError(t, e.Enqueue(ctx, "install", "host1", p, &later))
	scheduled, err := in.ListScheduledTasks("catalog.host1")
	require.NoError(t, err)
	require.Len(t, scheduled, 1)
	require.WithinDuration(t, later, scheduled[0].NextProcessAt, 2*time.Second)
	require.NoError(t, rdb.FlushAll(ctx).Err())
	require.NoError(t, e.Enqueue(ctx, "install", "host1", p, &later))
	scheduled, err = in.ListScheduledTasks("catalog.host1")
	require.NoError(t, err, "an emptied Redis knows the queue again")
	require.Len(t, scheduled, 1)
	past := time.Now().Add(-time.Hour)
	p.Generation = 3
	require.NoError(t, e.Enqueue(ctx, "install", "host1", p, &past))
	pending, err := in.ListPendingTasks("catalog.host1")
	require.NoError(t, err)
	require.Len(t, pending, 1)
}

// The clock of the host that enqueues, of 1970 here, makes asynq drop no task, and stops none.
func TestNoHostsClockMakesADeadline(t *testing.T) {
	rdb := lab.Redis(t).Client()
	defer func() { _ = rdb.Close() }()
	e := NewEnqueuer(rdb, func() time.Time { return time.Unix(0, 0) })
	require.NoError(t, e.Enqueue(ctx, "install", "", Payload{Run: "20261123t184702z-abcdefgh", Instance: "catalog", Stage: "prepare", Generation: 1}, nil))
	_, err := e.tick(ctx, Type, "tick", "catalog", Tick{}, time.Hour)
	require.NoError(t, err)
	begun := make(chan bool, 2)
	srv := asynq.NewServerFromRedisClient(rdb, asynq.Config{Queues: map[string]int{"catalog": 1}, TaskCheckInterval: 10 * time.Millisecond, LogLevel: asynq.FatalLevel})
	require.NoError(t, srv.Start(asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
		begun <- ctx.Err() == nil
		return nil
	})))
	defer srv.Shutdown()
	for range 2 {
		select {
		case live := <-begun:
			require.True(t, live)
		case <-time.After(5 * time.Second):
			t.Fatal("asynq began no task")
		}
	}
}

// Keys of asynq's of another type refuse no task once the queue is published again.
func TestQueuesOfAnotherTypeAreMadeAnew(t *testing.T) {
	rdb := lab.Redis(t).Client()
	defer func() { _ = rdb.Close() }()
	for _, key := range []string{"asynq:queues", "asynq:{q}:pending", "asynq:{q}:active", "asynq:{q}:lease", "asynq:{q}:scheduled", "asynq:{q}:retry",
		"asynq:{q}:archived", "asynq:{q}:completed", "asynq:{q}:paused", "asynq:{q}:processed", "asynq:{q}:failed"} {
		require.NoError(t, rdb.FlushAll(ctx).Err())
		require.NoError(t, rdb.SAdd(ctx, "asynq:queues", "other").Err())
		require.NoError(t, rdb.Del(ctx, key).Err())
		require.NoError(t, rdb.HSet(ctx, key, "x", "y").Err())
		require.NoError(t, Publish(ctx, rdb, "q"), key)
		n, err := rdb.Exists(ctx, key).Result()
		require.NoError(t, err)
		require.Equal(t, key == "asynq:queues", n == 1, key)
		require.NoError(t, rdb.Del(ctx, key).Err())
		require.NoError(t, rdb.HSet(ctx, key, "x", "y").Err())
		later := time.Now().Add(time.Hour)
		for i, at := range []*time.Time{nil, &later} { // before anybody publishes it again
			require.NoError(t, NewEnqueuer(rdb, time.Now).Enqueue(ctx, "install", "", Payload{Run: "r", Instance: "q", Stage: "prepare", Generation: int64(i)}, at), key)
		}
	}
	require.NoError(t, rdb.FlushAll(ctx).Err())
	require.NoError(t, NewEnqueuer(rdb, time.Now).Enqueue(ctx, "install", "", Payload{Run: "r", Instance: "q", Stage: "prepare", Generation: 1}, nil))
	in := asynq.NewInspectorFromRedisClient(rdb)
	require.NoError(t, in.PauseQueue("q"))
	require.NoError(t, Publish(ctx, rdb, "q", "q.node1"))
	names, err := in.Queues()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"q", "q.node1"}, names)
	info, err := in.GetQueueInfo("q")
	require.NoError(t, err)
	require.True(t, info.Paused, "what fits stays")
	require.Equal(t, 1, info.Pending)
}

func TestIDsDifferByInstallation(t *testing.T) {
	p := Payload{Run: "r", Stage: "s", Generation: 7}
	require.Equal(t, "a:r:s:7", ID("a", p))
	require.NotEqual(t, ID("a", p), ID("b", p))
	_, err := Read(asynq.NewTask(Type, []byte("{")))
	require.Error(t, err)
}

func load(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("/etc/c.yaml", []byte("instance: c\n"+text), func(string) string { return "" })
	require.NoError(t, err)
	return c
}

func TestConnect(t *testing.T) {
	c := load(t, "redis: {address: 'unix:/run/r.sock', username: u, password: geheim, db: 3}\n")
	rdb, err := Connect(c)
	require.NoError(t, err)
	defer func() { _ = rdb.Close() }()
	o := rdb.Options()
	require.Equal(t, []any{"unix", "/run/r.sock", "u", "geheim", 3}, []any{o.Network, o.Addr, o.Username, o.Password, o.DB})
	require.Equal(t, "Redis at unix:/run/r.sock", Where(c))
	embedded := load(t, "state_dir: /s\n")
	rdb2, err := Connect(embedded)
	require.NoError(t, err)
	defer func() { _ = rdb2.Close() }()
	require.Equal(t, "/s/redis.socket/redis.sock", rdb2.Options().Addr)
	require.Contains(t, Where(embedded), "/s/redis.socket/redis.sock")
}

func TestConnectWithTLS(t *testing.T) {
	rdb, err := Connect(load(t, "redis: {address: 'r.example:1', tls: {enabled: true}}\n"))
	require.NoError(t, err)
	defer func() { _ = rdb.Close() }()
	require.Equal(t, "r.example", rdb.Options().TLSConfig.ServerName)
	_, err = Connect(load(t, "redis: {address: 'r.example:1', tls: {enabled: true, ca_file: /nonexistent}}\n"))
	require.ErrorContains(t, err, "/etc/c.yaml: redis.tls.ca_file: open /nonexistent: no such file or directory; name a readable PEM file")
	junk := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(junk, []byte("x"), 0o600))
	_, err = Connect(load(t, "redis: {address: 'r.example:1', tls: {enabled: true, ca_file: "+junk+"}}\n"))
	require.ErrorContains(t, err, "it holds no certificate")
}

// A library that makes its own client reaches the same Redis in the same way.
func TestConnector(t *testing.T) {
	server := lab.RedisWith(t, lab.RedisOptions{TCP: true, Conf: []string{"requirepass geheim"}})
	for _, address := range []string{"unix:" + server.Addr, server.TCPAddr} {
		opt, err := Connector(load(t, "redis: {address: '"+address+"', password: geheim, db: 5}\n"))
		require.NoError(t, err)
		first, second := opt.MakeRedisClient().(redis.UniversalClient), opt.MakeRedisClient().(redis.UniversalClient)
		require.NoError(t, first.Set(ctx, "k", address, 0).Err())
		require.NoError(t, first.Close())
		require.Equal(t, address, second.Get(ctx, "k").Val(), "each client is its own")
		require.NoError(t, second.Close())
		in := asynq.NewInspector(opt)
		_, err = in.Queues()
		require.NoError(t, err)
		require.NoError(t, in.Close())
	}
	_, err := Connector(load(t, "redis: {address: 'r.example:1', tls: {enabled: true, ca_file: /nonexistent}}\n"))
	require.ErrorContains(t, err, "redis.tls.ca_file")
}

// A Redis that speaks TLS only, as a managed one does.
func TestConnectorOverTLS(t *testing.T) {
	dir := t.TempDir()
	certs, err := lab.NewCertificates(dir, time.Now())
	require.NoError(t, err)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	_, port, _ := net.SplitHostPort(address)
	lab.Redis(t, "requirepass geheim", "tls-port "+port, "tls-cert-file "+certs.ServerFile, "tls-key-file "+certs.ServerKeyFile, "tls-ca-cert-file "+certs.CAFile, "tls-auth-clients yes")
	opt, err := Connector(load(t, "redis: {address: '"+address+"', password: geheim, tls: {enabled: true, ca_file: "+certs.CAFile+", cert_file: "+certs.ClientFile+", key_file: "+certs.ClientKeyFile+"}}\n"))
	require.NoError(t, err)
	in := asynq.NewInspector(opt)
	defer func() { _ = in.Close() }()
	_, err = in.Queues()
	require.NoError(t, err)
	plain, err := Connector(load(t, "redis: {address: '"+address+"', password: geheim, tls: {enabled: true}}\n"))
	require.NoError(t, err)
	stranger := plain.MakeRedisClient().(redis.UniversalClient)
	defer func() { _ = stranger.Close() }()
	require.ErrorContains(t, stranger.Ping(ctx).Err(), "certificate")
}

// The client has remarks of its own for stderr; they would stand among our lines.
func TestTheClientIsSilent(t *testing.T) {
	server := lab.Redis(t)
	c := load(t, "redis: {address: 'unix:/run/r.sock'}\n")
	o, err := options(c)
	require.NoError(t, err)
	o.Network, o.Addr, o.Password = server.Network, server.Addr, server.Client().Options().Password
	rdb := redis.NewClient(o)
	defer func() { _ = rdb.Close() }()
	sub := rdb.Subscribe(ctx, "x")
	defer func() { _ = sub.Close() }()
	_, err = sub.Receive(ctx)
	require.NoError(t, err)
	printed, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	require.NoError(t, err)
	defer func() { _ = printed.Close() }()
	stderr, err := unix.Dup(2)
	require.NoError(t, err)
	defer func() { _ = unix.Close(stderr) }()
	require.NoError(t, unix.Dup3(int(printed.Fd()), 2, 0))
	stopped := server.Shutdown()
	_, err = sub.ReceiveTimeout(ctx, 10*time.Second)
	require.NoError(t, unix.Dup3(stderr, 2, 0))
	require.NoError(t, stopped)
	require.Error(t, err)
	b, err := os.ReadFile(printed.Name())
	require.NoError(t, err)
	require.Empty(t, string(b))
}
