package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Key is one key of the configuration.
type Key struct {
	Name    string
	Kind    string // what a person writes: string, path, integer, true or false, duration, list
	Default string // as a person would write it; "" is none
	Doc     string
	Secret  bool // may be given by <key>_file too, and is never shown
	set     func(c *Config, v value) error
}

// Env is the environment variable that overrides the key.
func (k Key) Env() string {
	return EnvPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(k.Name))
}

func (k Key) apply(c *Config, s *source) error {
	v, ok := s.values[k.Name]
	if !ok {
		if k.Default == "" {
			return nil
		}
		v = value{text: k.Default, file: "default"}
		if k.Kind == kindList {
			v.list = splitList(k.Default)
		}
	}
	if err := k.set(c, v); err != nil {
		var precise *Error
		if errors.As(err, &precise) {
			return precise
		}
		return &Error{File: v.file, Line: v.line, Key: k.Name, Problem: err.Error(), Remedy: "it takes " + k.Kind}
	}
	return nil
}

const (
	kindString = "a string"
	kindName   = "a name of a-z, 0-9, - and _, at most 63 long"
	kindPath   = "an absolute path"
	kindInt    = "a whole number"
	kindBool   = "true or false"
	kindTime   = "a duration such as 90s, 10m or 1h"
	kindList   = "a list"
	kindListen = "HOST:PORT"
)

func str(f func(*Config) *string) func(*Config, value) error {
	return func(c *Config, v value) error { *f(c) = v.text; return v.scalar() }
}

func name(f func(*Config) *string) func(*Config, value) error {
	return func(c *Config, v value) error {
		if !nameRE.MatchString(v.text) {
			return fmt.Errorf("%q does not serve as a name", v.text)
		}
		*f(c) = v.text
		return v.scalar()
	}
}

func version(c *Config, v value) error {
	if err := v.scalar(); err != nil {
		return err
	}
	if !versionRE.MatchString(v.text) {
		return fmt.Errorf("%q is not a version: use digits and dots, such as 10.0.0.147420", v.text)
	}
	c.Version = v.text
	return nil
}

func path(f func(*Config) *string) func(*Config, value) error {
	return func(c *Config, v value) error {
		if err := v.scalar(); err != nil {
			return err
		}
		if !filepath.IsAbs(v.text) {
			return fmt.Errorf("%q is not an absolute path", v.text)
		}
		*f(c) = filepath.Clean(v.text)
		return nil
	}
}

func integer(f func(*Config) *int, low, high int) func(*Config, value) error {
	return func(c *Config, v value) error {
		n, err := strconv.Atoi(v.text)
		if err != nil || v.scalar() != nil {
			return fmt.Errorf("%q is not a whole number", v.text)
		}
		if n < low || n > high {
			return fmt.Errorf("%d is not between %d and %d", n, low, high)
		}
		*f(c) = n
		return nil
	}
}

func boolean(f func(*Config) *bool) func(*Config, value) error {
	return func(c *Config, v value) error {
		switch strings.ToLower(v.text) {
		case "true":
			*f(c) = true
		case "false":
			*f(c) = false
		default:
			return fmt.Errorf("%q is neither true nor false", v.text)
		}
		return v.scalar()
	}
}

func duration(f func(*Config) *time.Duration) func(*Config, value) error {
	return func(c *Config, v value) error {
		d, err := time.ParseDuration(v.text)
		if err != nil || d <= 0 {
			return fmt.Errorf("%q is not a duration", v.text)
		}
		*f(c) = d
		return v.scalar()
	}
}

func durationWithin(f func(*Config) *time.Duration, low, high time.Duration) func(*Config, value) error {
	return func(c *Config, v value) error {
		if err := duration(f)(c, v); err != nil {
			return err
		}
		if d := *f(c); d < low || d > high {
			return fmt.Errorf("%s is not between %s and %s", v.text, low, high)
		}
		return nil
	}
}

func list(f func(*Config) *[]string, check func(string) error) func(*Config, value) error {
	return func(c *Config, v value) error {
		if v.list == nil {
			return errors.New("a single value is given")
		}
		for _, e := range v.list {
			if e == "" {
				return fmt.Errorf("an entry is empty")
			}
			if check != nil {
				if err := check(e); err != nil {
					return err
				}
			}
		}
		*f(c) = v.list
		return nil
	}
}

func oneOf(f func(*Config) *string, allowed ...string) func(*Config, value) error {
	return func(c *Config, v value) error {
		if !slices.Contains(allowed, v.text) {
			return fmt.Errorf("%q is not one of %s", v.text, strings.Join(allowed, ", "))
		}
		*f(c) = v.text
		return v.scalar()
	}
}

func absolute(p string) error {
	if !filepath.IsAbs(p) {
		return fmt.Errorf("%q is not an absolute path", p)
	}
	return nil
}

// brokerAddress checks HOST:PORT. It does not repeat what looks like a URL: that
// may hold a password.
func brokerAddress(b string) error {
	if strings.ContainsAny(b, "@/") {
		return fmt.Errorf("the address is a URL or holds a user: write HOST:PORT, and user and password in their own keys")
	}
	i := strings.LastIndexByte(b, ':')
	if i <= 0 {
		return fmt.Errorf("%q has no port: write HOST:PORT", b)
	}
	if n, err := strconv.Atoi(b[i+1:]); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q has no valid port: write HOST:PORT", b)
	}
	return nil
}

// listenAddress checks an address to listen at. Port 0 would be one that nobody
// can ask.
func listenAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return fmt.Errorf("%q is not an address to listen at: write HOST:PORT, or :PORT for all addresses", a)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q has no valid port: write HOST:PORT, or :PORT for all addresses", a)
	}
	if strings.ContainsAny(host, "/@ ") {
		return fmt.Errorf("%q has no valid host: write HOST:PORT, or :PORT for all addresses", a)
	}
	return nil
}

func listen(f func(*Config) *string) func(*Config, value) error {
	return func(c *Config, v value) error {
		if v.text != "" {
			if err := listenAddress(v.text); err != nil {
				return err
			}
		}
		*f(c) = v.text
		return v.scalar()
	}
}

// Keys are all keys there are, in the order of the documentation.
var Keys = []Key{
	{Name: "instance", Kind: kindName, Doc: "The catalog server that this configuration is of. Queues, the lock against a second run and the dashboard go by it.", set: name(func(c *Config) *string { return &c.Instance })},
	{Name: "node", Kind: kindName, Doc: "The storage: workers that share the dump, temp and state directories share this name. Default: the host name.", set: name(func(c *Config) *string { return &c.Node })},
	{Name: "version", Kind: kindString, Doc: "The catalog server's version; it becomes part of the file names.", set: version},
	{Name: "version_file", Kind: kindPath, Doc: "A file that holds the version, in place of `version`.", set: path(func(c *Config) *string { return &c.VersionFile })},
	{Name: "state_dir", Kind: kindPath, Default: "/var/lib/catalog-backup", Doc: "The worker's own directory (mode 0750): the embedded Redis and its socket.", set: path(func(c *Config) *string { return &c.StateDir })},
	{Name: "state_group", Kind: kindString, Doc: "A group whose members may use the producer: it gets the state directory and the Redis socket. Default: the worker's own group.", set: str(func(c *Config) *string { return &c.StateGroup })},

	{Name: "redis", Kind: "the word embedded, or address:, username:, password:, db:, tls:", Doc: "`embedded`: the worker starts a private redis-server on a unix socket in `state_dir`, kept on disk. Default: `embedded`, where no key below `redis` is set.", set: func(c *Config, v value) error {
		if v.text != "embedded" || v.scalar() != nil {
			return errors.New("the value is not known") // not repeated: a URL may hold a password
		}
		c.Redis.Embedded = true
		return nil
	}},
	{Name: "redis.address", Kind: "HOST:PORT or unix:PATH", Doc: "A Redis server, version 6.2 or newer, with AOF and `maxmemory-policy noeviction`.", set: func(c *Config, v value) error {
		if p, ok := strings.CutPrefix(v.text, "unix:"); ok {
			if err := absolute(p); err != nil {
				return err
			}
		} else if err := brokerAddress(v.text); err != nil {
			return err
		}
		c.Redis.Address = v.text
		return v.scalar()
	}},
	{Name: "redis.username", Kind: kindString, Doc: "User of Redis's access lists.", set: str(func(c *Config) *string { return &c.Redis.Username })},
	{Name: "redis.password", Kind: kindString, Secret: true, Doc: "Its password.", set: str(func(c *Config) *string { return &c.Redis.Password })},
	{Name: "redis.db", Kind: kindInt, Doc: "Number of the database. Default: 0.", set: integer(func(c *Config) *int { return &c.Redis.DB }, 0, 1<<20)},
	{Name: "redis.tls.enabled", Kind: kindBool, Default: "false", Doc: "Speak TLS to Redis.", set: boolean(func(c *Config) *bool { return &c.Redis.TLS.Enabled })},
	{Name: "redis.tls.ca_file", Kind: kindPath, Doc: "Certificates of the authorities to trust, PEM. Default: the system's.", set: path(func(c *Config) *string { return &c.Redis.TLS.CAFile })},
	{Name: "redis.tls.cert_file", Kind: kindPath, Doc: "Our own certificate, PEM.", set: path(func(c *Config) *string { return &c.Redis.TLS.CertFile })},
	{Name: "redis.tls.key_file", Kind: kindPath, Doc: "Its key, PEM.", set: path(func(c *Config) *string { return &c.Redis.TLS.KeyFile })},
	{Name: "redis.tls.server_name", Kind: kindString, Doc: "The name that the server's certificate must carry. Default: the host of the address.", set: str(func(c *Config) *string { return &c.Redis.TLS.ServerName })},

	{Name: "postgres.dsn", Kind: kindString, Secret: true, Doc: "How to reach the internal PostgreSQL, as key=value pairs or a URL. The server must be on this machine, reached by its unix socket.", set: str(func(c *Config) *string { return &c.Postgres.DSN })},
	{Name: "postgres.password", Kind: kindString, Secret: true, Doc: "The password, in place of one in the DSN.", set: str(func(c *Config) *string { return &c.Postgres.Password })},
	{Name: "postgres.pgbackrest", Kind: kindString, Default: "pgbackrest", Doc: "The pgBackRest program.", set: str(func(c *Config) *string { return &c.Postgres.PgBackRest })},
	{Name: "postgres.processes", Kind: kindInt, Doc: "pgBackRest's process-max. Default: the number of cores.", set: integer(func(c *Config) *int { return &c.Postgres.Processes }, 0, 999)},
	{Name: "postgres.compress_type", Kind: "zst, lz4, gz or none", Doc: "Default: the best that the installed pgBackRest has: zst, else lz4, else gz.", set: oneOf(func(c *Config) *string { return &c.Postgres.CompressType }, "zst", "lz4", "gz", "none")},
	{Name: "postgres.compress_level", Kind: kindInt, Default: "1", Doc: "Its level.", set: integer(func(c *Config) *int { return &c.Postgres.CompressLevel }, 0, 22)},
	{Name: "postgres.allow_corrupt_pages", Kind: kindBool, Default: "false", Doc: "Make a page with a wrong checksum a warning instead of a failure.", set: boolean(func(c *Config) *bool { return &c.Postgres.AllowCorruptPages })},

	{Name: "eventbus.brokers", Kind: kindList, Doc: "HOST:PORT of the Kafka brokers. Left out or empty: there is no bus, one file comes out.", set: list(func(c *Config) *[]string { return &c.EventBus.Brokers }, brokerAddress)},
	{Name: "eventbus.tls.enabled", Kind: kindBool, Default: "false", Doc: "Speak TLS to the brokers.", set: boolean(func(c *Config) *bool { return &c.EventBus.TLS.Enabled })},
	{Name: "eventbus.tls.ca_file", Kind: kindPath, Doc: "Certificates of the authorities to trust, PEM. Default: the system's.", set: path(func(c *Config) *string { return &c.EventBus.TLS.CAFile })},
	{Name: "eventbus.tls.cert_file", Kind: kindPath, Doc: "Our own certificate, PEM.", set: path(func(c *Config) *string { return &c.EventBus.TLS.CertFile })},
	{Name: "eventbus.tls.key_file", Kind: kindPath, Doc: "Its key, PEM.", set: path(func(c *Config) *string { return &c.EventBus.TLS.KeyFile })},
	{Name: "eventbus.tls.server_name", Kind: kindString, Doc: "The name that the brokers' certificates must carry.", set: str(func(c *Config) *string { return &c.EventBus.TLS.ServerName })},
	{Name: "eventbus.tls.insecure", Kind: kindBool, Default: "false", Doc: "Do not check the brokers' certificates. For a test only.", set: boolean(func(c *Config) *bool { return &c.EventBus.TLS.Insecure })},
	{Name: "eventbus.sasl.mechanism", Kind: "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", Doc: "How to log in at the brokers.", set: oneOf(func(c *Config) *string { return &c.EventBus.SASL.Mechanism }, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")},
	{Name: "eventbus.sasl.username", Kind: kindString, Doc: "As whom.", set: str(func(c *Config) *string { return &c.EventBus.SASL.Username })},
	{Name: "eventbus.sasl.password", Kind: kindString, Secret: true, Doc: "The password.", set: str(func(c *Config) *string { return &c.EventBus.SASL.Password })},
	{Name: "eventbus.include", Kind: kindList, Doc: "Topics to back up. Default: all that are not internal.", set: list(func(c *Config) *[]string { return &c.EventBus.Include }, nil)},
	{Name: "eventbus.exclude", Kind: kindList, Doc: "Topics to leave out.", set: list(func(c *Config) *[]string { return &c.EventBus.Exclude }, nil)},
	{Name: "eventbus.allow_gaps", Kind: kindBool, Default: "false", Doc: "Make a gap, a hidden topic, a topic recreated meanwhile or a transaction that stays open a warning instead of a failure, in all topics.", set: boolean(func(c *Config) *bool { return &c.EventBus.AllowGaps })},
	{Name: "eventbus.allow_gaps_in", Kind: kindList, Doc: "The same for these topics only: names or patterns as in `eventbus.include`.", set: list(func(c *Config) *[]string { return &c.EventBus.AllowGapsIn }, nil)},
	{Name: "eventbus.transaction_wait", Kind: kindTime, Default: "15m", Doc: "How long after the cut a transaction may stay open that was open at the cut, before the stage fails. The default is the longest that brokers let one live.", set: duration(func(c *Config) *time.Duration { return &c.EventBus.TransactionWait })},
	{Name: "eventbus.parallel", Kind: kindInt, Default: "4", Doc: "Partitions read at once.", set: integer(func(c *Config) *int { return &c.EventBus.Parallel }, 1, 64)},
	{Name: "eventbus.patience", Kind: kindTime, Default: "120s", Doc: "How long a partition may give nothing but errors before the stage fails.", set: duration(func(c *Config) *time.Duration { return &c.EventBus.Budget })},

	{Name: "files.paths", Kind: kindList, Doc: "Directories and files of the application, absolute.", set: list(func(c *Config) *[]string { return &c.Files.Paths }, absolute)},
	{Name: "files.exclude", Kind: kindList, Doc: "Patterns of what to leave out: without a slash a name at any depth, with one a path; `*`, `?`, `[…]` and `**`.", set: list(func(c *Config) *[]string { return &c.Files.Exclude }, nil)},
	{Name: "files.allow_unreadable", Kind: kindBool, Default: "false", Doc: "Make a file that cannot be read a warning instead of a failure.", set: boolean(func(c *Config) *bool { return &c.Files.AllowUnreadable })},

	{Name: "archive.level", Kind: kindInt, Default: "1", Doc: "gzip level, 1 to 9, of what is not compressed already.", set: integer(func(c *Config) *int { return &c.Archive.Level }, 1, 9)},
	{Name: "archive.parallel", Kind: kindInt, Doc: "Goroutines that compress. Default: the number of cores, at most 4.", set: integer(func(c *Config) *int { return &c.Archive.Parallel }, 0, 64)},
	{Name: "archive.nice", Kind: kindInt, Default: "0", Doc: "Priority of the worker and its tools: 0 is normal, 19 yields to everything.", set: integer(func(c *Config) *int { return &c.Archive.Nice }, 0, 19)},
	{Name: "archive.io_class", Kind: "normal, best-effort or idle", Default: "normal", Doc: "Class of the worker's disk access, as of ionice(1).", set: oneOf(func(c *Config) *string { return &c.Archive.IOClass }, "normal", "best-effort", "idle")},

	{Name: "alation.backup.data_dump_dir", Kind: kindPath, Default: "/data2/backup", Doc: "Where the sets come out; Postgres is staged there too.", set: path(func(c *Config) *string { return &c.Backup.DumpDir })},
	{Name: "alation.backup.data_temp_dir", Kind: kindPath, Default: "/data2/tmp", Doc: "Other private staging of a run.", set: path(func(c *Config) *string { return &c.Backup.TempDir })},
	{Name: "alation.backup.chef_timeout", Kind: "a whole number of seconds", Default: "21600", Doc: "Time limit of the whole run, in seconds.", set: func(c *Config, v value) error {
		n, err := strconv.Atoi(v.text)
		if err != nil || n < 1 || v.scalar() != nil {
			return fmt.Errorf("%q is not a number of seconds", v.text)
		}
		c.Backup.Timeout = time.Duration(n) * time.Second
		return nil
	}},
	{Name: "alation.feature_flags.enable_pgbackrest", Kind: kindBool, Default: "true", Doc: "true: Backup V2, by pgBackRest. false: Backup V1, refused until it is built.", set: boolean(func(c *Config) *bool { return &c.Backup.PgBackRest })},

	{Name: "schedule.catch_up", Kind: kindTime, Default: "1h", Doc: "How long after its time a tick that was missed is still carried out, 1m to 720h. A plan can have its own.", set: catchUp(func(c *Config) *time.Duration { return &c.Schedule.CatchUp })},
	{Name: "schedule.overlap", Kind: "skip or queue", Default: "skip", Doc: "What a tick does that finds another run active: it is skipped, or waits until the plan's next tick. A plan can have its own.", set: oneOf(func(c *Config) *string { return &c.Schedule.Overlap }, "skip", "queue")},
	{Name: "schedules", Kind: "a list of plans", Doc: "What is done when: entries with `name`, `cron`, and if need be `timezone` (UTC), `job` (`backup` or `verify`), `type` (`full` or `incremental`), `catch_up`, `overlap`; see [scheduling](scheduling.md). In the file only.", set: plans},
	{Name: "alation.backup.scheduled_minute", Kind: kindInt, Doc: "Minute of the documented schedule, the plan `alation`. Default: 0, where hour or day is set.", set: scheduled(func(c *Config) *int { return &c.Scheduled.Minute }, 59)},
	{Name: "alation.backup.scheduled_hour", Kind: kindInt, Doc: "Its hour, 0 to 23, in UTC. Default: 0, where minute or day is set.", set: scheduled(func(c *Config) *int { return &c.Scheduled.Hour }, 23)},
	{Name: "alation.backup.scheduled_day", Kind: "days of mon, tue, wed, thu, fri, sat, sun with commas, without spaces", Doc: "Its days. Default: every day, where minute or hour is set.", set: days},

	{Name: "queue.retry_errors", Kind: kindInt, Default: "3", Doc: "How often a stage is tried again after an error that may pass.", set: integer(func(c *Config) *int { return &c.Queue.RetryErrors }, 0, 1000)},
	{Name: "queue.retry_crashes", Kind: kindInt, Default: "5", Doc: "How often a stage is tried again after the worker died in it.", set: integer(func(c *Config) *int { return &c.Queue.RetryCrashes }, 0, 1000)},
	{Name: "queue.retry_interruptions", Kind: kindInt, Default: "50", Doc: "How often a stage is tried again after a worker was stopped in good order.", set: integer(func(c *Config) *int { return &c.Queue.RetryInterruptions }, 0, 100000)},
	{Name: "queue.backoff", Kind: kindTime, Default: "10s", Doc: "Wait before the first retry after an error; doubled for each further one, at most 10 minutes.", set: duration(func(c *Config) *time.Duration { return &c.Queue.Backoff })},
	{Name: "queue.node_lost_after", Kind: kindTime, Default: "1h", Doc: "How long a run waits for a worker of its node before it fails and frees the lock.", set: duration(func(c *Config) *time.Duration { return &c.Queue.NodeLostAfter })},
	{Name: "queue.redis_grace", Kind: kindTime, Default: "10m", Doc: "After how long without Redis a stage that works on says so in the log, at error. It works on, or waits to report its end, until a margin before `queue.node_lost_after`: a quarter of that, from 1 to 15 minutes.", set: duration(func(c *Config) *time.Duration { return &c.Queue.RedisGrace })},
	{Name: "queue.close_after", Kind: kindTime, Default: "10m", Doc: "How long the cleanup of a run that fails or is cancelled may take. After that the run is closed without it, the lock is free, and what is left is removed when it can be.", set: duration(func(c *Config) *time.Duration { return &c.Queue.CloseAfter })},
	{Name: "queue.poll", Kind: kindTime, Default: "100ms", Doc: "How often an idle worker looks for work in its two queues, 10ms to 10s. A stage waits up to that long between two others, a fleet of idle workers costs Redis what [Backing up](backing-up.md#what-idle-workers-cost) says.", set: durationWithin(func(c *Config) *time.Duration { return &c.Queue.Poll }, 10*time.Millisecond, 10*time.Second)},
	{Name: "queue.keep_runs", Kind: kindTime, Default: "2160h", Doc: "How long the records of ended runs are kept.", set: duration(func(c *Config) *time.Duration { return &c.Queue.KeepRuns })},

	{Name: "dashboard.listen", Kind: kindAddresses, Default: "127.0.0.1:8980", Doc: "Where the dashboard listens. Without TLS, stay on loopback or put a reverse proxy in front.", set: addresses(func(c *Config) *[]string { return &c.Dashboard.Listen })},
	{Name: "dashboard.hosts", Kind: kindList, Doc: "Names, without port, under which browsers may reach it, e.g. the reverse proxy's. Default: on loopback `localhost` and loopback addresses only, elsewhere any.", set: list(func(c *Config) *[]string { return &c.Dashboard.Hosts }, hostName)},
	{Name: "dashboard.auth", Kind: "on or off", Default: "on", Doc: "`off`: no log-in; only where every address of `dashboard.listen` is on loopback.", set: oneOf(func(c *Config) *string { return &c.Dashboard.Auth }, "on", "off")},
	{Name: "dashboard.username", Kind: kindString, Default: "admin", Doc: "Who logs in with `dashboard.password` (HTTP basic authentication).", set: str(func(c *Config) *string { return &c.Dashboard.Username })},
	{Name: "dashboard.password", Kind: kindString, Secret: true, Doc: "The password of the dashboard.", set: str(func(c *Config) *string { return &c.Dashboard.Password })},
	{Name: "dashboard.token", Kind: kindString, Secret: true, Doc: "A bearer token for programs, beside or in place of the password.", set: str(func(c *Config) *string { return &c.Dashboard.Token })},
	{Name: "dashboard.tls.cert_file", Kind: kindPath, Doc: "The dashboard's certificate with its chain, PEM: it then speaks HTTPS. Read again when it changes.", set: path(func(c *Config) *string { return &c.Dashboard.CertFile })},
	{Name: "dashboard.tls.key_file", Kind: kindPath, Doc: "Its key, PEM.", set: path(func(c *Config) *string { return &c.Dashboard.KeyFile })},
	{Name: "dashboard.allow_actions", Kind: kindBool, Default: "false", Doc: "Let the dashboard start backups and cancel runs.", set: boolean(func(c *Config) *bool { return &c.Dashboard.AllowActions })},
	{Name: "dashboard.max_age", Kind: kindTime, Default: "26h", Doc: "The dashboard warns when the newest good set of an instance is older.", set: duration(func(c *Config) *time.Duration { return &c.Dashboard.MaxAge })},
	{Name: "worker.listen", Kind: kindListen, Doc: "Where the worker answers `/healthz`, `/readyz` and `/metrics`, without a log-in: see [monitoring](monitoring.md). Left out or empty: nowhere.", set: listen(func(c *Config) *string { return &c.Listen.Worker })},
	{Name: "schedule.listen", Kind: kindListen, Doc: "The same of the scheduler.", set: listen(func(c *Config) *string { return &c.Listen.Schedule })},

	{Name: "log.level", Kind: "debug, info, warn or error", Default: "info", Doc: "What the worker logs.", set: oneOf(func(c *Config) *string { return &c.Log.Level }, "debug", "info", "warn", "error")},
	{Name: "log.format", Kind: "text or json", Default: "text", Doc: "How.", set: oneOf(func(c *Config) *string { return &c.Log.Format }, "text", "json")},
}
