// Package postgres backs a PostgreSQL cluster up with pgBackRest into a fresh
// repository, verifies such a repository while it streams by, and restores it
// into a directory that stands on its own.
//
// The server's settings are not changed and it is not restarted: the WAL that
// the backup needs is held by a temporary physical replication slot and pushed
// into the repository by us.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// Stanza is pgBackRest's name of the cluster in every repository we make.
const Stanza = "catalog"

// Runner runs a child process and returns when it and all that it started are
// gone. An error for a process that ended badly has an ExitCode() int method
// somewhere in its chain (os/exec's does); when ctx ends, the children are
// killed and the error wraps the cause of ctx.
type Runner interface {
	Run(ctx context.Context, c Command) error
}

// Command is what a Runner runs.
type Command struct {
	Path       string
	Args       []string    // without the program's name
	Env        []string    // exactly this, nothing is inherited
	Dir        string      // working directory
	Credential *Credential // nil = the same user
	Stdout     io.Writer
	Stderr     io.Writer
}

// Credential is the account a child runs under.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
}

// Options say how to reach the server and how to use pgBackRest.
type Options struct {
	// DSN is a libpq connection string or URL. A password in it goes to pgBackRest
	// by a passfile, never by argument or environment.
	DSN string
	// PgBackRest is the program; "" = looked up in PATH and /usr/bin.
	PgBackRest string
	// Processes is the number of parallel compressors; 0 = the machine's cores.
	Processes int
	// CompressType is zst, lz4, gz, bz2 or none; "" = the best that the tool offers.
	CompressType string
	// CompressLevel is the type's own level; 0 = 1, the fastest that still halves.
	CompressLevel int
	// AllowCorruptPages makes a wrong page checksum a warning.
	AllowCorruptPages bool
	// ConnectTimeout bounds each connection attempt; 0 = 10 s.
	ConnectTimeout time.Duration
	// WatchInterval is how often the slot and its connection are looked at; 0 = 2 s.
	WatchInterval time.Duration

	// Run is the run whose backup this is: it is in the name of its replication slot.
	Run string
	// RunOver tells whether another run is over: then a slot of it that is still there is
	// ended. An error says that it is not known. nil: slots of others are left alone.
	RunOver func(ctx context.Context, run string) (bool, error)

	Runner Runner
}

// Work is where a backup may write.
type Work struct {
	// Repo is <dump>/pgbackrest/<run>.<hold>. It exists and is empty but for an owner marker.
	Repo string
	// Dir is private staging of the attempt, for copies of configuration files.
	Dir string
}

// RepoDir is the pgBackRest repository inside the staging directory: what goes
// into the archive under set.PostgresRepo.
func (w Work) RepoDir() string { return w.Repo + "/repo" }

// ConfigDir holds copies of the configuration files outside the data directory,
// by absolute path: what goes into the archive under set.PostgresConfig.
func (w Work) ConfigDir() string { return w.Dir + "/config" }

// Facts are what Preflight found out and Backup builds on.
type Facts struct {
	Version          string // 15.18
	VersionNum       int    // 150018
	SystemIdentifier uint64
	DataDirectory    string
	DataChecksums    bool
	WALLevel         string
	WALSegmentSize   int64 // bytes
	BlockSize        int64 // bytes

	Port      int
	SocketDir string
	// Role is the role that pgBackRest connects as, by the socket in SocketDir.
	Role string
	// Database is the database that pgBackRest connects to.
	Database string
	// Password says that pgBackRest's connection needs the DSN's password.
	Password bool

	OwnerUID, OwnerGID uint32 // of the data directory
	OwnerName          string // "" if the number has no name here

	Size        int64 // bytes of all tablespaces
	SpaceNeeded int64 // bytes that the repository will take, estimated
	Databases   []set.Database
	Tablespaces []set.Tablespace
	Limits      map[string]int

	Superuser     string // that may log in
	Preload       map[string]string
	Subscriptions []set.Subscription
	ConfigInForce map[string]string // as in set.Postgres
	CommitTimes   bool              // track_commit_timestamp
	Collations    []set.Collation

	Config []set.ConfigFile // outside the data directory; Size and SHA256 are filled by Backup

	PgBackRest        string // program
	PgBackRestVersion string
	CompressType      string
}

// Major is the server's major version: 15.
func (f *Facts) Major() int { return f.VersionNum / 10000 }

func (o Options) processes() int {
	if o.Processes > 0 {
		return min(o.Processes, 999) // pgBackRest's own limit
	}
	return runtime.NumCPU()
}

func (o Options) compressLevel() int {
	if o.CompressLevel > 0 {
		return o.CompressLevel
	}
	return 1
}

func (o Options) connectTimeout() time.Duration {
	if o.ConnectTimeout > 0 {
		return o.ConnectTimeout
	}
	return 10 * time.Second
}

func (o Options) watchInterval() time.Duration {
	if o.WatchInterval > 0 {
		return o.WatchInterval
	}
	return 2 * time.Second
}

func (o Options) check() error {
	if o.Runner == nil {
		return stage.Permanentf("postgres: no runner for child processes was given: this is a fault of the program")
	}
	if o.DSN == "" {
		return stage.Permanentf("postgres: no connection string: set postgres.dsn in the configuration")
	}
	return nil
}

// exitCode tells the exit code of a child's error; -1 if it has none (killed by
// a signal, not started).
func exitCode(err error) int {
	var e interface{ ExitCode() int }
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// ended returns the cause if ctx has ended, so that a failure that the end
// brought about is told as what it is.
func ended(ctx context.Context, doing string) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("%s: stopped: %w", doing, context.Cause(ctx))
}

// asRoot tells whether we can become another user.
func asRoot() bool { return os.Geteuid() == 0 }
