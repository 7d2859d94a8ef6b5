package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

// parseDSN reads the connection string. Its text never gets into an error,
// since it may hold a password.
func (o Options) parseDSN() (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(o.DSN)
	if err != nil {
		reason := errors.Unwrap(err)
		if reason == nil {
			reason = errors.New("it is not of the form key=value … or postgres://…")
		}
		return nil, stage.Permanentf("read postgres.dsn: %s: correct it in the configuration", redact(reason.Error(), o.DSN))
	}
	cfg.ConnectTimeout = o.connectTimeout()
	params := map[string]string{"application_name": "catalog-backup", "client_encoding": "UTF8", "search_path": "pg_catalog"}
	for k, v := range cfg.RuntimeParams {
		// What only the environment says (PGOPTIONS, PGTZ) is not for us.
		if _, ours := params[k]; !ours && strings.Contains(strings.ToLower(o.DSN), strings.ToLower(k)) {
			params[k] = v
		}
	}
	cfg.RuntimeParams = params
	return cfg, nil
}

// redact drops a reason that quotes the connection string.
func redact(reason, dsn string) string {
	for _, word := range strings.Fields(dsn) {
		if len(word) > 3 && strings.Contains(reason, word) || strings.Contains(reason, "password") {
			return "it cannot be read"
		}
	}
	return reason
}

// connect opens an ordinary connection.
func connect(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	var conn *pgx.Conn
	err := withSocketAccount(&cfg.Config, func() (err error) {
		conn, err = pgx.ConnectConfig(ctx, cfg)
		return err
	})
	if err != nil {
		return nil, connectError(ctx, &cfg.Config, err)
	}
	// The session may sit idle or wait as long as the backup takes, whatever the
	// role's defaults are.
	for _, setting := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"} {
		if _, err := conn.Exec(ctx, "select set_config(name, '0', false) from pg_settings where name = $1", setting); err != nil {
			_ = conn.Close(ctx)
			return nil, connectError(ctx, &cfg.Config, err)
		}
	}
	return conn, nil
}

// replicationConfig is cfg for a physical replication connection.
func replicationConfig(cfg *pgx.ConnConfig) *pgconn.Config {
	c := cfg.Copy()
	params := map[string]string{"replication": "yes", "application_name": "catalog-backup"}
	c.RuntimeParams = params
	return &c.Config
}

// withSocketAccount calls dial so that the server sees the account that runs it
// at the other end of a unix socket: as root we would fail Debian's default
// "local all postgres peer". If that account is not let in, we try as ourselves.
func withSocketAccount(cfg *pgconn.Config, dial func() error) error {
	uid, gid, ok := socketOwner(cfg)
	if !asRoot() || !ok || uid == 0 {
		return dial()
	}
	plain := cfg.DialFunc
	cfg.DialFunc = dialAs(uid, gid, plain)
	err := dial()
	cfg.DialFunc = plain
	if err == nil || !refusedByServer(err) {
		return err
	}
	if dial() == nil {
		return nil
	}
	return err // the first refusal is the one to mend
}

func refusedByServer(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && strings.HasPrefix(pg.Code, "28")
}

// socketOwner tells who owns the server's socket, if the connection is by one.
func socketOwner(cfg *pgconn.Config) (uid, gid uint32, ok bool) {
	if !strings.HasPrefix(cfg.Host, "/") {
		return 0, 0, false
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(cfg.Host, fmt.Sprintf(".s.PGSQL.%d", cfg.Port)), &st); err != nil {
		return 0, 0, false
	}
	return st.Uid, st.Gid, true
}

// dialAs dials with the effective user changed for this one thread: the kernel
// notes the credential of connect(2) for SO_PEERCRED, see unix(7).
func dialAs(uid, gid uint32, dial pgconn.DialFunc) pgconn.DialFunc {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if network != "unix" {
			return dial(ctx, network, addr)
		}
		type result struct {
			conn net.Conn
			err  error
		}
		done := make(chan result, 1)
		go func() {
			// Not unlocked unless the thread is itself again: the runtime ends a
			// thread whose goroutine ended while locked.
			runtime.LockOSThread()
			if err := setThreadUser(uid, gid); err != nil {
				done <- result{nil, err}
				return
			}
			conn, err := dial(ctx, network, addr)
			if setThreadUser(0, 0) == nil {
				runtime.UnlockOSThread()
			}
			done <- result{conn, err}
		}()
		r := <-done
		return r.conn, r.err
	}
}

// setThreadUser changes the effective ids of the calling thread only; the saved
// ones stay root's. (syscall.Setresuid would change every thread.)
func setThreadUser(uid, gid uint32) error {
	const keep = ^uintptr(0)
	if uid == 0 {
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep); e != 0 {
			return e
		}
	}
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESGID, keep, uintptr(gid), keep); e != 0 {
		return e
	}
	if uid != 0 {
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(uid), keep); e != 0 {
			return e
		}
	}
	return nil
}

// connectError says why the server could not be reached and what to do.
func connectError(ctx context.Context, cfg *pgconn.Config, err error) error {
	where := fmt.Sprintf("connect to PostgreSQL at %s port %d as %s", cfg.Host, cfg.Port, cfg.User)
	if stop := ended(ctx, where); stop != nil {
		return stop
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("%s: no server answers (%s): start it, or correct postgres.dsn", where, plainCause(err))
	}
	switch {
	case pg.Code == "28P01":
		return stage.Permanentf("%s: the password is wrong: correct postgres.dsn or the secret it names", where)
	case strings.HasPrefix(pg.Code, "28"):
		return stage.Permanentf("%s: refused: %s: correct postgres.dsn, or let it in with a line like this in pg_hba.conf and a reload: %s", where, pg.Message, hbaLineFor(cfg, "all"))
	case pg.Code == "3D000":
		return stage.Permanentf("%s: %s: correct dbname in postgres.dsn", where, pg.Message)
	case pg.Code == "57P03":
		return fmt.Errorf("%s: %s: wait until it takes connections", where, pg.Message)
	case pg.Code == "53300":
		return fmt.Errorf("%s: %s: raise max_connections or end sessions", where, pg.Message)
	}
	return fmt.Errorf("%s: %s (SQLSTATE %s)", where, pg.Message, pg.Code)
}

// plainCause is the innermost reason of a network failure, which holds no
// connection string.
func plainCause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.Err
	}
	if errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err) {
		return "no answer in time"
	}
	for e := err; ; {
		inner := errors.Unwrap(e)
		if inner == nil {
			return e.Error()
		}
		e = inner
	}
}

// hbaLineFor is the line of pg_hba.conf that lets the connection of cfg in.
func hbaLineFor(cfg *pgconn.Config, database string) string {
	if strings.HasPrefix(cfg.Host, "/") {
		return hbaLine(database, cfg.User)
	}
	host := cfg.Host
	switch ip := net.ParseIP(host); {
	case ip != nil && ip.IsLoopback(), host == "localhost":
		return fmt.Sprintf("host  %s  %s  127.0.0.1/32  scram-sha-256  (and ::1/128)", database, cfg.User)
	}
	return fmt.Sprintf("host  %s  %s  <this host's address>/32  scram-sha-256", database, cfg.User)
}
