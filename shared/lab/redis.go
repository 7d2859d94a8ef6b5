package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
)

// RedisOptions says what server StartRedis starts. The zero value listens on a unix
// socket only and keeps its data in an append-only file that survives kill -9.
type RedisOptions struct {
	Dir  string   // where it lives; "" = a throwaway directory, removed by Close
	TCP  bool     // listen on a loopback port too
	Conf []string // further lines of redis.conf; they win over ours
}

// RedisServer is a private redis-server.
type RedisServer struct {
	Network string // "unix", as go-redis and asynq name it
	Addr    string // path of the socket
	TCPAddr string // host:port, where it listens on TCP
	Root    string // the folder of it all

	password string
	bin      string
	root     *root
	proc     *process
}

// Redis starts a throwaway server that ends with the test; conf are further lines of
// redis.conf.
func Redis(t testing.TB, conf ...string) *RedisServer {
	t.Helper()
	return RedisWith(t, RedisOptions{Conf: conf})
}

// RedisWith is Redis with all options.
func RedisWith(t testing.TB, o RedisOptions) *RedisServer {
	t.Helper()
	r, err := StartRedis(o)
	if err != nil {
		t.Fatal(err)
	}
	bind(t, "Redis", r)
	return r
}

// StartRedis starts a server.
func StartRedis(o RedisOptions) (_ *RedisServer, err error) {
	r := &RedisServer{Network: "unix"}
	if r.bin, err = program("redis-server"); err != nil {
		return nil, err
	}
	if r.root, err = newRoot(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.root.remove())
		}
	}()
	r.Root = r.root.dir
	r.Addr = filepath.Join(r.Root, "redis.sock")
	if len(r.Addr) > maxSocketPath {
		return nil, fmt.Errorf("lab: %s is too long for a unix socket: choose a shorter folder", r.Addr)
	}
	port := 0
	if o.TCP {
		if port, err = freePort(); err != nil {
			return nil, err
		}
		r.TCPAddr = fmt.Sprintf("127.0.0.1:%d", port)
	}
	for _, line := range o.Conf {
		if word, ok := strings.CutPrefix(line, "requirepass "); ok {
			r.password = strings.Trim(word, `" `)
		}
	}
	lines := append([]string{
		"bind 127.0.0.1",
		fmt.Sprintf("port %d", port),
		"unixsocket " + r.Addr,
		"unixsocketperm 700",
		"dir " + r.Root,
		"save \"\"",
		"appendonly yes",
		// Written before the reply, not synced: a killed server loses nothing.
		"appendfsync no",
		"maxmemory-policy noeviction",
		"daemonize no",
	}, o.Conf...)
	if err = os.WriteFile(r.conf(), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	return r, r.Start()
}

func (r *RedisServer) conf() string { return filepath.Join(r.Root, "redis.conf") }
func (r *RedisServer) log() string  { return filepath.Join(r.Root, "redis.log") }

// Start starts the server on its data and returns when it answers.
func (r *RedisServer) Start() error {
	if r.proc.running() {
		return errors.New("lab: Redis runs already")
	}
	cmd := exec.Command(r.bin, r.conf())
	cmd.Dir, cmd.Env = r.Root, environment()
	proc, err := spawn(cmd, r.log(), syscall.SIGKILL)
	if err != nil {
		return err
	}
	r.proc = proc
	c := r.Client()
	defer func() { _ = c.Close() }()
	if err := proc.ready(func() error { return c.Ping(context.Background()).Err() }); err != nil {
		return errors.Join(err, proc.end(syscall.SIGKILL))
	}
	return nil
}

// Client makes a client; the caller closes it.
func (r *RedisServer) Client() *redis.Client {
	return redis.NewClient(&redis.Options{Network: r.Network, Addr: r.Addr, Password: r.password})
}

// FlushAll empties the server.
func (r *RedisServer) FlushAll() error {
	c := r.Client()
	defer func() { _ = c.Close() }()
	return c.FlushAll(context.Background()).Err()
}

// Kill9 kills the server; Start brings it back on the same data.
func (r *RedisServer) Kill9() error { return r.proc.end(syscall.SIGKILL) }

// Shutdown ends the server gently; Start brings it back on the same data.
func (r *RedisServer) Shutdown() error { return r.proc.end(syscall.SIGTERM) }

// Stop freezes the server: connections stay open, nothing answers. Cont ends that.
func (r *RedisServer) Stop() error { return r.proc.signal(syscall.SIGSTOP) }

// Cont lets a frozen server go on.
func (r *RedisServer) Cont() error { return r.proc.signal(syscall.SIGCONT) }

// Snapshot copies the server's data as it is now into a new directory. Nothing may
// rewrite the append-only file meanwhile.
func (r *RedisServer) Snapshot(dir string) error {
	return os.CopyFS(dir, os.DirFS(r.data()))
}

// Rollback brings the server back with the data of a snapshot: every write since then is
// lost, as after a failover to a replica that lagged behind.
func (r *RedisServer) Rollback(dir string) error {
	if err := r.Kill9(); err != nil {
		return err
	}
	if err := os.RemoveAll(r.data()); err != nil {
		return err
	}
	if err := os.CopyFS(r.data(), os.DirFS(dir)); err != nil {
		return err
	}
	return r.Start()
}

func (r *RedisServer) data() string { return filepath.Join(r.Root, "appendonlydir") }

// Close ends the server and removes a throwaway directory.
func (r *RedisServer) Close() error {
	return errors.Join(r.proc.end(syscall.SIGKILL), r.root.remove())
}

// PID is the server's process number.
func (r *RedisServer) PID() int { return r.proc.pid() }

// LogTail gives the end of the server's log.
func (r *RedisServer) LogTail() string { return tail(r.log()) }
