package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ourSettings is the line of postgresql.conf that ours follow.
const ourSettings = "\n# lab\n"

// PGOptions says what cluster StartPostgres makes. The zero value is a private
// cluster with data checksums that listens on a unix socket only.
type PGOptions struct {
	Dir         string   // where it lives; "" = a throwaway directory, removed by Close
	TCP         bool     // listen on a loopback port too
	NoChecksums bool     // without data checksums
	Durable     bool     // fsync on: slow, for tests that crash the machine's view of the disk
	Conf        []string // further lines of postgresql.conf; they win over ours
	HBA         []string // all lines of pg_hba.conf instead of "trust", replication included
	InitDB      []string // further arguments of initdb, e.g. --wal-segsize=1
}

// PGOption changes PGOptions.
type PGOption func(*PGOptions)

// WithTCP makes the server listen on a free loopback port too.
func WithTCP() PGOption { return func(o *PGOptions) { o.TCP = true } }

// WithoutChecksums makes a cluster without data checksums.
func WithoutChecksums() PGOption { return func(o *PGOptions) { o.NoChecksums = true } }

// WithConf adds lines to postgresql.conf.
func WithConf(lines ...string) PGOption {
	return func(o *PGOptions) { o.Conf = append(o.Conf, lines...) }
}

// WithHBA replaces pg_hba.conf.
func WithHBA(lines ...string) PGOption { return func(o *PGOptions) { o.HBA = append(o.HBA, lines...) } }

// WithInitDB adds arguments to initdb.
func WithInitDB(args ...string) PGOption {
	return func(o *PGOptions) { o.InitDB = append(o.InitDB, args...) }
}

// PG is a PostgreSQL cluster and its server. The superuser is `postgres`.
type PG struct {
	Root      string // the folder of it all; any user may enter it
	DataDir   string
	SocketDir string
	Port      int    // of the socket, and of TCP where it listens there
	BinDir    string // of the server's programs

	root *root
	cred *syscall.Credential
	proc *process
	t    testing.TB
}

// Postgres starts a throwaway cluster that ends with the test.
func Postgres(t testing.TB, opts ...PGOption) *PG {
	t.Helper()
	var o PGOptions
	for _, opt := range opts {
		opt(&o)
	}
	p, err := StartPostgres(o)
	if err != nil {
		t.Fatal(err)
	}
	p.t = t
	bind(t, "PostgreSQL", p)
	return p
}

// StartPostgres makes a cluster (or takes the one in o.Dir) and starts its server.
func StartPostgres(o PGOptions) (_ *PG, err error) {
	p := &PG{}
	if p.BinDir, err = PGBinDir(); err != nil {
		return nil, err
	}
	if p.cred, err = PostgresUser(); err != nil {
		return nil, err
	}
	if p.root, err = newRoot(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.root.remove())
		}
	}()
	p.Root = p.root.dir
	p.DataDir, p.SocketDir = filepath.Join(p.Root, "data"), filepath.Join(p.Root, "run")
	if len(p.SocketDir) > maxSocketPath {
		return nil, fmt.Errorf("lab: %s is too long for a unix socket: choose a shorter folder", p.SocketDir)
	}
	if !enterable(p.Root) && p.cred != nil {
		return nil, fmt.Errorf("lab: the user postgres cannot enter %s: choose another folder or chmod o+x its parents", p.Root)
	}
	if p.Port, err = freePort(); err != nil {
		return nil, err
	}
	if err = p.create(o); err != nil {
		return nil, err
	}
	return p, p.Start()
}

// PGBinDir gives the folder of the server's programs: $LAB_PG_BINDIR, or Debian's
// newest version.
func PGBinDir() (string, error) {
	if dir := os.Getenv("LAB_PG_BINDIR"); dir != "" {
		return dir, nil
	}
	best, newest := "", 0
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	for _, d := range dirs {
		dir := filepath.Dir(d)
		var version int
		if _, err := fmt.Sscanf(filepath.Base(filepath.Dir(dir)), "%d", &version); err == nil && version > newest {
			best, newest = dir, version
		}
	}
	if best == "" {
		return "", errors.New("lab: no PostgreSQL server under /usr/lib/postgresql: run .ci/install")
	}
	return best, nil
}

// create runs initdb and writes the configuration. An existing cluster only gets
// the new port.
func (p *PG) create(o PGOptions) error {
	if err := mkdirFor(p.SocketDir, 0o755, p.cred); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(p.DataDir, "PG_VERSION")); err == nil {
		return p.configure(o)
	}
	if err := mkdirFor(p.DataDir, 0o700, p.cred); err != nil {
		return err
	}
	args := []string{"-D", p.DataDir, "-U", "postgres", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"}
	if !o.NoChecksums {
		args = append(args, "--data-checksums")
	}
	out, err := p.Command("initdb", append(args, o.InitDB...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("lab: initdb in %s: %w: %s", p.DataDir, err, bytes.TrimSpace(out))
	}
	if len(o.HBA) > 0 {
		if err := p.overwrite("pg_hba.conf", strings.Join(o.HBA, "\n")+"\n"); err != nil {
			return err
		}
	}
	return p.configure(o)
}

// configure appends our settings, in place of those of an earlier start; the last
// mention of a setting wins.
func (p *PG) configure(o PGOptions) error {
	listen := ""
	if o.TCP {
		listen = "127.0.0.1"
	}
	lines := []string{
		"listen_addresses = '" + listen + "'",
		fmt.Sprintf("port = %d", p.Port),
		"unix_socket_directories = '" + p.SocketDir + "'",
		"shared_buffers = 32MB",
		"max_connections = 50",
		"jit = off",
		"min_wal_size = 32MB",
		"wal_init_zero = off",
		"log_timezone = 'UTC'",
		"timezone = 'UTC'",
	}
	if !o.Durable {
		lines = append(lines, "fsync = off")
	}
	name := "postgresql.conf"
	old, err := os.ReadFile(filepath.Join(p.DataDir, name))
	if err != nil {
		return err
	}
	theirs, _, _ := strings.Cut(string(old), ourSettings)
	return p.overwrite(name, theirs+ourSettings+strings.Join(append(lines, o.Conf...), "\n")+"\n")
}

// overwrite replaces a file of the data directory in place: owner and mode stay.
func (p *PG) overwrite(name, content string) error {
	return os.WriteFile(filepath.Join(p.DataDir, name), []byte(content), 0o600)
}

// Start starts the server on its data and returns when it takes queries.
func (p *PG) Start() error {
	if p.proc.running() {
		return errors.New("lab: PostgreSQL runs already")
	}
	// A backend of a postmaster that was killed would keep the new one from starting.
	if err := endStrays(p.DataDir, filepath.Join(p.BinDir, "postgres")); err != nil {
		return err
	}
	cmd := p.Command("postgres", "-D", p.DataDir)
	// SIGQUIT is the server's "stop at once": its own children go with it.
	proc, err := spawn(cmd, filepath.Join(p.Root, "postgres.log"), syscall.SIGQUIT)
	if err != nil {
		return err
	}
	p.proc = proc
	if err := proc.ready(func() error { _, err := p.Query("select 1"); return err }); err != nil {
		return errors.Join(err, p.proc.end(syscall.SIGQUIT))
	}
	return nil
}

// Stop stops the server in mode "fast".
func (p *PG) Stop() error { return p.proc.end(syscall.SIGINT) }

// Restart is Stop and Start.
func (p *PG) Restart() error {
	if err := p.Stop(); err != nil {
		return err
	}
	return p.Start()
}

// Kill9 kills the postmaster and returns when its children are gone too, so that
// Start can follow.
func (p *PG) Kill9() error { return p.proc.end(syscall.SIGKILL) }

// Close stops the server at once, its strays too, and removes a throwaway directory.
func (p *PG) Close() error {
	return errors.Join(p.proc.end(syscall.SIGQUIT), endStrays(p.DataDir, filepath.Join(p.BinDir, "postgres")), p.root.remove())
}

// PID is the postmaster's process number.
func (p *PG) PID() int { return p.proc.pid() }

// LogTail gives the end of the server's log.
func (p *PG) LogTail() string { return tail(filepath.Join(p.Root, "postgres.log")) }

// DSN gives the connection string in keyword form, over the unix socket.
func (p *PG) DSN() string { return p.dsn("postgres") }

func (p *PG) dsn(database string) string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=%s", p.SocketDir, p.Port, database)
}

// User gives the credential that the server runs under; nil is our own.
func (p *PG) User() *syscall.Credential { return p.cred }

// Mkdir makes a directory under Root that belongs to the server's user, e.g. for a
// tablespace.
func (p *PG) Mkdir(name string) (string, error) {
	dir := filepath.Join(p.Root, name)
	return dir, mkdirFor(dir, 0o700, p.cred)
}

// Command makes a command of PostgreSQL's programs (from BinDir) or of any other
// (with a path), to be run as the server's user with a clean environment.
func (p *PG) Command(name string, args ...string) *exec.Cmd {
	if !strings.ContainsRune(name, '/') {
		name = filepath.Join(p.BinDir, name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = p.Root
	cmd.Env = append(environment(), "PGHOST="+p.SocketDir, fmt.Sprintf("PGPORT=%d", p.Port), "PGUSER=postgres", "PGDATABASE=postgres")
	if p.cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred}
	}
	return cmd
}

// Connect opens a connection to a database; the caller closes it.
func (p *PG) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(p.dsn(database))
	if err != nil {
		return nil, err
	}
	cfg.ConnectTimeout = 10 * time.Second
	return pgx.ConnectConfig(ctx, cfg)
}

// Query runs statements in the database postgres and gives their rows as psql -At
// prints them.
func (p *PG) Query(sql string) (string, error) { return p.QueryIn("postgres", sql) }

// QueryIn is Query in another database.
func (p *PG) QueryIn(database, sql string) (string, error) {
	cmd := p.Command("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-")
	cmd.Stdin = strings.NewReader(sql)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("lab: psql: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimRight(out.String(), "\n"), nil
}

// Psql is Query for tests: an error fails the test, and is a panic outside of one.
func (p *PG) Psql(sql string) string { return p.PsqlIn("postgres", sql) }

// PsqlIn is Psql in another database.
func (p *PG) PsqlIn(database, sql string) string {
	out, err := p.QueryIn(database, sql)
	if err == nil {
		return out
	}
	if p.t == nil {
		panic(err)
	}
	p.t.Helper()
	p.t.Fatal(err)
	return ""
}
