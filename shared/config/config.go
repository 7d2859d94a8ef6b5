// Package config reads the one YAML file that the producer and the worker share.
// Every key stands in one table (keys.go), from which the defaults, the
// environment variables and docs/configuration.md come, so that they cannot drift.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// DefaultPath is read when neither --config nor CATALOG_BACKUP_CONFIG names a file.
const DefaultPath = "/etc/catalog-backup/config.yaml"

// EnvPrefix begins the names of the environment variables that override keys.
const EnvPrefix = "CATALOG_BACKUP_"

// Config is what the file, the environment and the defaults say together.
type Config struct {
	Path string // the file it came from

	Instance    string
	Node        string
	Version     string
	VersionFile string
	StateDir    string
	StateGroup  string

	Redis    Redis
	Postgres Postgres
	EventBus EventBus
	Files    Files
	Archive  Archive
	Backup   Backup
	Queue    Queue
	Log      Log
	Listen   Listen

	Schedules []Plan
	Schedule  Schedule
	Scheduled Scheduled
	Dashboard Dashboard

	forWorker    error
	forDashboard error
}

// Redis says where the queue and the run records are.
type Redis struct {
	Embedded bool
	Address  string // HOST:PORT or unix:PATH
	Username string
	Password string
	DB       int
	TLS      TLS
}

// TLS is one client's side of TLS.
type TLS struct {
	Enabled    bool
	CAFile     string
	CertFile   string
	KeyFile    string
	ServerName string
	Insecure   bool
}

// Postgres is the internal database.
type Postgres struct {
	DSN               string
	Password          string
	PgBackRest        string
	Processes         int
	CompressType      string
	CompressLevel     int
	AllowCorruptPages bool
}

// EventBus is the Kafka side. No brokers: there is no bus.
type EventBus struct {
	Brokers         []string
	TLS             TLS
	SASL            SASL
	AllowGaps       bool
	AllowGapsIn     []string
	TransactionWait time.Duration
	Include         []string
	Exclude         []string
	Parallel        int
	Budget          time.Duration
}

// SASL is a log-in at the brokers.
type SASL struct {
	Mechanism string
	Username  string
	Password  string
}

// Files are the application's files.
type Files struct {
	Paths           []string
	Exclude         []string
	AllowUnreadable bool
}

// Archive is how the archives are written.
type Archive struct {
	Level    int
	Parallel int
	Nice     int
	IOClass  string
}

// Backup holds the documented parameters.
type Backup struct {
	DumpDir    string
	TempDir    string
	Timeout    time.Duration
	PgBackRest bool
}

// Queue is how patient the queue core is.
type Queue struct {
	RetryErrors        int
	RetryInterruptions int
	RetryCrashes       int
	Backoff            time.Duration
	NodeLostAfter      time.Duration
	RedisGrace         time.Duration
	Poll               time.Duration
	CloseAfter         time.Duration
	KeepRuns           time.Duration
}

// Log is how the worker logs.
type Log struct {
	Level  string
	Format string
}

// Listen says where the programs answer questions about their health, HOST:PORT
// each; "" is nowhere.
type Listen struct {
	Worker   string
	Schedule string
}

// Error is one thing wrong with the configuration.
type Error struct {
	File    string // file, or the environment variable
	Line    int    // 0 where there is none
	Key     string
	Problem string
	Remedy  string
}

func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	s := where + ": "
	if e.Key != "" {
		s += e.Key + ": "
	}
	s += e.Problem
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Path tells which file to read: flag, else CATALOG_BACKUP_CONFIG, else DefaultPath.
func Path(flag string, getenv func(string) string) string {
	if flag != "" {
		return flag
	}
	if p := getenv(EnvPrefix + "CONFIG"); p != "" {
		return p
	}
	return DefaultPath
}

// Load reads path, lets the environment override single keys, fills in defaults
// and checks everything that can be checked without touching a server. Errors
// are *Error.
func Load(path string, getenv func(string) string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		remedy := "name another file by --config or " + EnvPrefix + "CONFIG"
		return nil, &Error{File: path, Problem: "cannot read the configuration: " + reason(err), Remedy: remedy}
	}
	return Parse(path, text, getenv)
}

func reason(err error) string {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// Parse is Load for a text at hand.
func Parse(path string, text []byte, getenv func(string) string) (*Config, error) {
	c := &Config{Path: path}
	src, err := readYAML(path, text)
	if err != nil {
		return nil, err
	}
	if err := applyEnvironment(src, getenv); err != nil {
		return nil, err
	}
	if _, ok := src.values["instance"]; !ok {
		return nil, src.err("instance", "is missing", "name the catalog server, e.g. instance: catalog")
	}
	for _, k := range Keys {
		if err := k.apply(c, src); err != nil {
			return nil, err
		}
	}
	if _, ok := src.values["redis"]; !ok && !src.hasAny("redis.") {
		c.Redis.Embedded = true
	}
	if c.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, &Error{File: path, Key: "node", Problem: "cannot find out the host name: " + err.Error(), Remedy: "set node"}
		}
		c.Node = strings.ToLower(host)
		if !nameRE.MatchString(c.Node) {
			return nil, &Error{File: path, Key: "node", Problem: fmt.Sprintf("the host name %q does not serve as a name", c.Node), Remedy: "set node"}
		}
	}
	c.forWorker, c.forDashboard = src.forWorker, src.forDashboard
	return c, c.check(src)
}

// ValidName tells whether s has the form of the name of an instance or a node.
func ValidName(s string) bool { return nameRE.MatchString(s) }

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// check finds values that cannot be together.
func (c *Config) check(s *source) error {
	switch {
	case c.Version != "" && c.VersionFile != "":
		return s.err("version_file", "version is set too", "keep one of the two")
	case c.Redis.Embedded && s.hasAny("redis."):
		return s.err("redis", "it is embedded, and "+s.first("redis.")+" is set too", "keep one of the two: the embedded Redis needs no address and no password, its socket is private")
	case !c.Redis.Embedded && c.Redis.Address == "":
		return s.err("redis.address", "is missing", "say redis: embedded, or redis: {address: HOST:PORT}")
	case !c.Backup.PgBackRest:
		return s.err("alation.feature_flags.enable_pgbackrest", "Backup V1 (pg_basebackup) is not built yet", "set it to true (V2, pgBackRest)")
	case (c.EventBus.SASL.Username == "") != (c.EventBus.SASL.Mechanism == ""):
		return s.err("eventbus.sasl.mechanism", "mechanism and username belong together", "set both, or neither")
	case c.Backup.DumpDir == c.Backup.TempDir:
		return s.err("alation.backup.data_temp_dir", "is the dump directory too", "choose two directories")
	}
	for name, t := range map[string]TLS{"redis.tls": c.Redis.TLS, "eventbus.tls": c.EventBus.TLS} {
		if (t.CertFile == "") != (t.KeyFile == "") {
			return s.err(name+".key_file", "cert_file and key_file belong together", "set both, or neither")
		}
	}
	return nil
}

// ForWorker checks what only a worker that makes backups needs. The producer
// needs but the instance and Redis.
func (c *Config) ForWorker() error {
	missing := func(key, remedy string) error {
		return &Error{File: c.Path, Key: key, Problem: "is missing", Remedy: remedy}
	}
	if c.forWorker != nil {
		return c.forWorker
	}
	if c.Version == "" && c.VersionFile == "" {
		return missing("version", "set version to the catalog server's version, or version_file to a file that holds it")
	}
	if c.Postgres.DSN == "" {
		return missing("postgres.dsn", `set it, e.g. "host=/var/run/postgresql port=5432 user=postgres dbname=postgres"`)
	}
	return nil
}

// CatalogVersion is the catalog server's version, read from version_file where
// that is set.
func (c *Config) CatalogVersion() (string, error) {
	v := c.Version
	if c.VersionFile != "" {
		b, err := os.ReadFile(c.VersionFile)
		if err != nil {
			return "", &Error{File: c.Path, Key: "version_file", Problem: "cannot read it: " + err.Error(), Remedy: "name a file that holds the catalog server's version"}
		}
		v = strings.TrimSpace(string(b))
	}
	if !versionRE.MatchString(v) {
		return "", &Error{File: c.Path, Key: "version", Problem: fmt.Sprintf("%q is not a version", v), Remedy: "use digits and dots, such as 10.0.0.147420"}
	}
	return v, nil
}

var versionRE = regexp.MustCompile(`^[0-9A-Za-z]+([.-][0-9A-Za-z]+){0,7}$`)

// maxSocketPath is the longest path of a unix socket that every Linux program
// takes, with some room (sockaddr_un has 108 bytes).
const maxSocketPath = 100

// RedisDir is where the embedded Redis keeps its data and its lock.
func (c *Config) RedisDir() string { return filepath.Join(c.StateDir, "redis") }

// RedisSocket is the unix socket of the embedded Redis. A state directory whose
// path is too long for a socket gets a short private directory, found again by
// the hash of its name.
func (c *Config) RedisSocket() string {
	p := filepath.Join(c.StateDir, "redis.socket", "redis.sock")
	if len(p) <= maxSocketPath {
		return p
	}
	sum := sha256.Sum256([]byte(c.StateDir))
	return filepath.Join(os.TempDir(), "catalog-backup-"+hex.EncodeToString(sum[:6]), "redis.sock")
}
