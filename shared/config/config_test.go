package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// secret must be in no error whatever is wrong around it.
const secret = "geheim-7f3a"

// issueExample is the file of the specification, to the letter.
const issueExample = `instance: catalog                        # queues, lock and dashboard go by it
node: host1                              # default: the host name; workers sharing dump, temp and state directories share it
version: 10.0.0.147420                   # the catalog server's; or version_file: PATH
state_dir: /var/lib/catalog-backup
redis: embedded                          # or {address: HOST:PORT | unix:PATH, username:, password:, db:, tls: …}
postgres:
  dsn: "host=/var/run/postgresql port=5432 user=postgres dbname=postgres"
eventbus:
  brokers: [127.0.0.1:9092]              # left out or empty: there is no bus, one file comes out
files:
  paths: [/data1/site_data]
  exclude: ["*.tmp"]
alation.backup.data_dump_dir: /data2/backup
alation.backup.data_temp_dir: /data2/tmp
alation.backup.chef_timeout: 21600       # seconds, for the whole run
alation.feature_flags.enable_pgbackrest: true    # true = V2 (pgBackRest); false = V1, refused with a clear word until it is built
`

func nothing(string) string { return "" }

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("/etc/c.yaml", []byte(text), nothing)
	require.NoError(t, err)
	return c
}

func TestTheSpecificationsExample(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte(issueExample), 0o600))
	c, err := Load(path, nothing)
	require.NoError(t, err)
	require.NoError(t, c.ForWorker())
	want := &Config{Path: path, Instance: "catalog", Node: "host1", Version: "10.0.0.147420", StateDir: "/var/lib/catalog-backup",
		Redis:    Redis{Embedded: true},
		Postgres: Postgres{DSN: "host=/var/run/postgresql port=5432 user=postgres dbname=postgres", PgBackRest: "pgbackrest", CompressLevel: 1},
		EventBus: EventBus{Brokers: []string{"127.0.0.1:9092"}, TransactionWait: 15 * time.Minute, Parallel: 4, Budget: 2 * time.Minute},
		Files:    Files{Paths: []string{"/data1/site_data"}, Exclude: []string{"*.tmp"}},
		Archive:  Archive{Level: 1, IOClass: "normal"},
		Backup:   Backup{DumpDir: "/data2/backup", TempDir: "/data2/tmp", Timeout: 6 * time.Hour, PgBackRest: true},
		Queue: Queue{RetryErrors: 3, RetryInterruptions: 50, RetryCrashes: 5, Backoff: 10 * time.Second, NodeLostAfter: time.Hour,
			RedisGrace: 10 * time.Minute, Poll: 100 * time.Millisecond, CloseAfter: 10 * time.Minute, KeepRuns: 90 * 24 * time.Hour},
		Schedule:  Schedule{CatchUp: time.Hour, Overlap: "skip"},
		Log:       Log{Level: "info", Format: "text"},
		Dashboard: Dashboard{Listen: []string{"127.0.0.1:8980"}, Auth: "on", Username: "admin", MaxAge: 26 * time.Hour}}
	require.Equal(t, want, c)
	v, err := c.CatalogVersion()
	require.NoError(t, err)
	require.Equal(t, "10.0.0.147420", v)
}

func TestTheProducerNeedsLittle(t *testing.T) {
	c := parse(t, "instance: catalog\n")
	require.True(t, c.Redis.Embedded)
	require.NotEmpty(t, c.Node)
	require.Equal(t, "/var/lib/catalog-backup/redis.socket/redis.sock", c.RedisSocket())
	require.ErrorContains(t, c.ForWorker(), "version: is missing")
	c = parse(t, "instance: catalog\nredis: {address: 'redis.example:6379', db: 3, tls: {enabled: true}}\nversion: '1'\n")
	require.False(t, c.Redis.Embedded)
	require.Equal(t, Redis{Address: "redis.example:6379", DB: 3, TLS: TLS{Enabled: true}}, c.Redis)
	require.ErrorContains(t, c.ForWorker(), "postgres.dsn: is missing")
}

func TestNestedAndDottedSpellingsAreOne(t *testing.T) {
	for _, text := range []string{
		"instance: c\nalation.backup.data_dump_dir: /d\nredis.address: 'h:1'\n",
		"instance: c\nalation: {backup: {data_dump_dir: /d}}\nredis: {address: 'h:1'}\n",
		"instance: c\nalation.backup: {data_dump_dir: /d/}\nredis:\n  address: h:1\n",
		"instance: c\nalation:\n  backup.data_dump_dir: /x/../d\nredis.address: h:1\n",
		"instance: c\nalation.backup.data_dump_dir: /d\nredis: &r {address: 'h:1'}\n",
	} {
		c := parse(t, text)
		require.Equal(t, "/d", c.Backup.DumpDir, text)
		require.Equal(t, "h:1", c.Redis.Address, text)
	}
}

func TestEmptySectionsAndLists(t *testing.T) {
	for _, text := range []string{"eventbus:\n", "eventbus:\n  brokers:\n", "eventbus: {brokers: []}\n", "eventbus: {}\n"} {
		require.Empty(t, parse(t, "instance: c\n"+text).EventBus.Brokers, text)
	}
}

// Every kind of mistake names file, line, key and remedy, on one line.
func TestMistakes(t *testing.T) {
	const base = "instance: catalog\n" // line 1
	for name, c := range map[string]struct{ text, want string }{
		"no instance":       {"node: x\n", "/etc/c.yaml: instance: is missing; name the catalog server, e.g. instance: catalog"},
		"empty file":        {"", "/etc/c.yaml: instance: the file is empty; see docs/configuration.md"},
		"only a comment":    {"# nothing\n", "the file is empty"},
		"no mapping":        {"hello\n", "/etc/c.yaml:1: the file holds no keys; see docs"},
		"a list":            {"- instance: c\n", "/etc/c.yaml:1: the file holds no keys"},
		"bad YAML":          {base + "node: [a\n", "; mend the YAML"},
		"a tab":             {base + "redis:\n\taddress: x\n", "/etc/c.yaml:3: "},
		"unknown":           {base + "wibble: 1\n", "/etc/c.yaml:2: wibble: is not a key; see docs/configuration.md for all keys"},
		"near miss":         {base + "postgres:\n  dns: x\n", "/etc/c.yaml:3: postgres.dns: is not a key; did you mean postgres.dsn?"},
		"near miss, dotted": {base + "alation.backup.data_dumpdir: /d\n", "/etc/c.yaml:2: alation.backup.data_dumpdir: is not a key; did you mean alation.backup.data_dump_dir?"},
		"wrong section":     {base + "data_dump_dir: /d\n", "did you mean alation.backup.data_dump_dir?"},
		"unknown section":   {base + "kafka:\n  brokers: [a:1]\n", "/etc/c.yaml:3: kafka: is not a key"},
		"empty unknown":     {base + "kafka: {}\n", "/etc/c.yaml:2: kafka: is not a key"},
		"not a secret":      {base + "redis:\n  address_file: /x\n", "/etc/c.yaml:3: redis.address_file: is not a key"},
		"section as value":  {base + "postgres: yes\n", "/etc/c.yaml:2: postgres: is a section and takes no plain value; write its keys below it"},
		"value as section":  {base + "node: {a: b}\n", "/etc/c.yaml:2: node: keys are given below it; it takes a name"},
		"twice":             {base + "node: a\nnode: b\n", "/etc/c.yaml:3: node: stands twice; keep one"},
		"twice, spelled":    {base + "postgres: {dsn: a}\npostgres.dsn: b\n", "/etc/c.yaml:3: postgres.dsn: stands twice"},
		"section twice":     {base + "postgres: {dsn: a}\npostgres: {processes: 2}\n", "/etc/c.yaml:3: postgres: stands twice"},
		"no value":          {base + "node:\n", "/etc/c.yaml:2: node: has no value; give one, or leave the key out"},
		"null":              {base + "postgres: {dsn: ~}\n", "/etc/c.yaml:2: postgres.dsn: has no value"},
		"bad name":          {"instance: a/b\n", "/etc/c.yaml:1: instance: \"a/b\" does not serve as a name; it takes a name of a-z"},
		"hostile name":      {"instance: '../x'\n", "does not serve as a name"},
		"a dot in a name":   {"instance: a.b\n", "does not serve as a name"},
		"bad node":          {base + "node: 'a b'\n", "/etc/c.yaml:2: node: "},
		"bad version":       {base + "version: '1 beta'\n", "/etc/c.yaml:2: version: \"1 beta\" is not a version"},
		"hostile version":   {base + "version: ../../x\n", "is not a version"},
		"relative path":     {base + "state_dir: x\n", "/etc/c.yaml:2: state_dir: \"x\" is not an absolute path; it takes an absolute path"},
		"not a number":      {base + "postgres: {processes: many}\n", "/etc/c.yaml:2: postgres.processes: \"many\" is not a whole number; it takes a whole number"},
		"out of range":      {base + "archive: {level: 10}\n", "/etc/c.yaml:2: archive.level: 10 is not between 1 and 9"},
		"not a bool":        {base + "files:\n  allow_unreadable: maybe\n", "/etc/c.yaml:3: files.allow_unreadable: \"maybe\" is neither true nor false"},
		"not a duration":    {base + "queue: {backoff: 10}\n", "/etc/c.yaml:2: queue.backoff: \"10\" is not a duration; it takes a duration such as 90s, 10m or 1h"},
		"too often":         {base + "queue: {poll: 5ms}\n", "/etc/c.yaml:2: queue.poll: 5ms is not between 10ms and 10s"},
		"too seldom":        {base + "queue: {poll: 11s}\n", "queue.poll: 11s is not between 10ms and 10s"},
		"negative":          {base + "queue: {backoff: -1s}\n", "is not a duration"},
		"not seconds":       {base + "alation.backup.chef_timeout: 6h\n", "/etc/c.yaml:2: alation.backup.chef_timeout: \"6h\" is not a number of seconds"},
		"zero seconds":      {base + "alation.backup.chef_timeout: 0\n", "is not a number of seconds"},
		"list for a value":  {base + "node: [a]\n", "/etc/c.yaml:2: node: "},
		"value for a list":  {base + "files: {paths: /x}\n", "/etc/c.yaml:2: files.paths: a single value is given; it takes a list"},
		"list of maps":      {base + "files:\n  paths:\n  - {a: b}\n", "/etc/c.yaml:4: files.paths: an entry of the list is not a plain value"},
		"empty entry":       {base + "files: {exclude: ['']}\n", "files.exclude: an entry is empty"},
		"relative entry":    {base + "files: {paths: [x]}\n", "\"x\" is not an absolute path"},
		"broker, no port":   {base + "eventbus: {brokers: [kafka1]}\n", "/etc/c.yaml:2: eventbus.brokers: \"kafka1\" has no port: write HOST:PORT"},
		"broker, bad port":  {base + "eventbus: {brokers: ['kafka1:99999']}\n", "has no valid port"},
		"no such choice":    {base + "log: {level: loud}\n", "/etc/c.yaml:2: log.level: \"loud\" is not one of debug, info, warn, error"},
		"unknown redis":     {base + "redis: inside\n", "/etc/c.yaml:2: redis: the value is not known; it takes the word embedded, or address:"},
		"relative socket":   {base + "redis: {address: 'unix:x'}\n", "\"x\" is not an absolute path"},
		"V1":                {base + "alation.feature_flags.enable_pgbackrest: false\n", "/etc/c.yaml:2: alation.feature_flags.enable_pgbackrest: Backup V1 (pg_basebackup) is not built yet; set it to true"},
		"two versions":      {base + "version: '1'\nversion_file: /x\n", "/etc/c.yaml:3: version_file: version is set too; keep one of the two"},
		"no address":        {base + "redis: {db: 1}\n", "redis.address: is missing; say redis: embedded"},
		"two secrets":       {base + "redis: {address: 'h:1', password: " + secret + ", password_file: /x}\n", "redis.password_file: redis.password is set too"},
		"no secret file":    {base + "redis: {address: 'h:1', password_file: /nonexistent}\n", "/etc/c.yaml:2: redis.password_file: cannot read the secret: open /nonexistent: no such file"},
		"half a SASL":       {base + "eventbus: {sasl: {mechanism: PLAIN}}\n", "/etc/c.yaml:2: eventbus.sasl.mechanism: mechanism and username belong together"},
		"half a pair":       {base + "redis: {address: 'h:1', tls: {cert_file: /c}}\n", "redis.tls.key_file: cert_file and key_file belong together"},
		"dump is temp":      {base + "alation.backup.data_dump_dir: /d\nalation.backup.data_temp_dir: /d/\n", "/etc/c.yaml:3: alation.backup.data_temp_dir: is the dump directory too"},
		"alias in itself":   {base + "postgres: &p\n  dsn: *p\n", "postgres.dsn: keys are given below it"},
		"aliases for ever":  {base + "redis: &p\n  redis: *p\n", "redis.redis: is not a key"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("/etc/c.yaml", []byte(c.text), nothing)
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Contains(t, err.Error(), c.want)
			require.True(t, strings.HasPrefix(err.Error(), "/etc/c.yaml"), err)
			require.NotEmpty(t, e.Remedy)
			require.NotContains(t, err.Error(), "\n")
			require.NotContains(t, err.Error(), secret)
		})
	}
}

// Whatever is wrong at or beside a secret, no error repeats it.
func TestSecretsAreInNoError(t *testing.T) {
	for _, text := range []string{
		"redis: {address: 'h:1', password: [" + secret + "]}",
		"redis: {address: 'h:1', password: {a: " + secret + "}}",
		"redis: {address: 'h:1', pasword: " + secret + "}",
		"redis: embedded\nredis.password: " + secret,
		"redis: redis://:" + secret + "@host:6379",
		"redis: {address: 'redis://u:" + secret + "@host:6379'}",
		"redis: {address: 'u:" + secret + "@host:6379'}",
		"redis: {password: " + secret + "}",
		"redis: {address: 'h:1', password: *" + secret + "}",
		"redis: {address: 'h:1', password: '" + secret + "}",
		"redis: {address: 'h:1', password: \"" + secret + "\\q\"}",
		"redis: {address: 'h:1', password: @" + secret + "}",
		"postgres: {dsn: 'password=" + secret + "', dsn_file: /x}",
		"postgres: 'host=/x password=" + secret + "'",
		"postgres: ['host=/x password=" + secret + "']",
		"eventbus: {brokers: 'kafka://u:" + secret + "@h:9'}",
		"eventbus: {brokers: ['kafka://u:" + secret + "@h:9']}",
		"eventbus: {sasl: {password: " + secret + ", mechanism: PLAIN}}",
		"eventbus: {sasl: {password: [{a: " + secret + "}]}}",
	} {
		_, err := Parse("/etc/c.yaml", []byte("instance: c\n"+text+"\n"), nothing)
		require.Error(t, err, text)
		require.NotContains(t, err.Error(), secret, text)
	}
	for _, k := range Keys {
		if k.Secret {
			_, err := Parse("/etc/c.yaml", []byte("instance: c\nnode: 'a b'\n"), env(map[string]string{k.Env(): secret}))
			require.Error(t, err)
			require.NotContains(t, err.Error(), secret)
		}
	}
}

func TestEnvironmentOverridesSingleKeys(t *testing.T) {
	file := "instance: catalog\nredis: {address: 'h:1', password: old}\neventbus: {brokers: [a:1]}\narchive: {level: 2}\n"
	dir := t.TempDir()
	path := filepath.Join(dir, "pw")
	require.NoError(t, os.WriteFile(path, []byte(secret+" \r\n"), 0o600))
	c, err := Parse("/etc/c.yaml", []byte(file), env(map[string]string{"CATALOG_BACKUP_REDIS_PASSWORD_FILE": path, "CATALOG_BACKUP_EVENTBUS_BROKERS": "b:1, c:2",
		"CATALOG_BACKUP_ARCHIVE_LEVEL": "9", "CATALOG_BACKUP_ALATION_BACKUP_DATA_DUMP_DIR": "/e", "CATALOG_BACKUP_POSTGRES_DSN": "host=/y"}))
	require.NoError(t, err)
	require.Equal(t, secret+" ", c.Redis.Password, "only the end of the line is no part of the secret")
	require.Equal(t, []string{"b:1", "c:2"}, c.EventBus.Brokers)
	require.Equal(t, 9, c.Archive.Level)
	require.Equal(t, "/e", c.Backup.DumpDir)
	require.Equal(t, "host=/y", c.Postgres.DSN)

	c, err = Parse("/etc/c.yaml", []byte(file), env(map[string]string{"CATALOG_BACKUP_REDIS": "embedded"}))
	require.NoError(t, err)
	require.Equal(t, Redis{Embedded: true}, c.Redis)
	c, err = Parse("/etc/c.yaml", []byte("instance: c\nredis: embedded\n"), env(map[string]string{"CATALOG_BACKUP_REDIS_ADDRESS": "h:2"}))
	require.NoError(t, err)
	require.Equal(t, Redis{Address: "h:2"}, c.Redis)
}

func TestEnvironmentMistakesNameTheVariable(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want string
	}{
		"bad value":   {map[string]string{"CATALOG_BACKUP_ARCHIVE_LEVEL": "x"}, "environment variable CATALOG_BACKUP_ARCHIVE_LEVEL: archive.level: \"x\" is not a whole number; it takes a whole number"},
		"two secrets": {map[string]string{"CATALOG_BACKUP_POSTGRES_DSN": secret, "CATALOG_BACKUP_POSTGRES_DSN_FILE": "/x"}, "environment variable CATALOG_BACKUP_POSTGRES_DSN_FILE: postgres.dsn: CATALOG_BACKUP_POSTGRES_DSN is set too; keep one"},
		"no file":     {map[string]string{"CATALOG_BACKUP_REDIS_ADDRESS": "h:1", "CATALOG_BACKUP_REDIS_PASSWORD_FILE": "/nonexistent"}, "environment variable CATALOG_BACKUP_REDIS_PASSWORD_FILE: redis.password: cannot read the secret"},
		"password":    {map[string]string{"CATALOG_BACKUP_REDIS_PASSWORD": secret}, "it is embedded, and redis.password is set too"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("/etc/c.yaml", []byte("instance: c\nredis: embedded\n"), env(c.env))
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), secret)
		})
	}
}

// A user of the producer need not be able to read the secrets of the worker.
func TestSecretsThatOnlyAWorkerNeeds(t *testing.T) {
	for _, c := range []*Config{
		parse(t, "instance: c\nversion: '1'\npostgres: {dsn: 'host=/x', password_file: /nonexistent}\n"),
		func() *Config {
			c, err := Parse("/etc/c.yaml", []byte("instance: c\nversion: '1'\n"), env(map[string]string{"CATALOG_BACKUP_POSTGRES_DSN_FILE": "/nonexistent"}))
			require.NoError(t, err)
			return c
		}(),
	} {
		require.ErrorContains(t, c.ForWorker(), "cannot read the secret: open /nonexistent")
	}
}

func TestSecretFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dsn")
	require.NoError(t, os.WriteFile(path, []byte("host=/z\n"), 0o600))
	c := parse(t, "instance: c\npostgres:\n  dsn_file: "+path+"\n  password_file: "+path+"\n")
	require.Equal(t, "host=/z", c.Postgres.DSN)
	require.Equal(t, "host=/z", c.Postgres.Password)
	require.Equal(t, "*x", parse(t, "instance: c\nredis: {address: 'h:1', password: '*x'}\n").Redis.Password)
}

func TestPathOfTheFile(t *testing.T) {
	require.Equal(t, "/flag", Path("/flag", env(map[string]string{"CATALOG_BACKUP_CONFIG": "/env"})))
	require.Equal(t, "/env", Path("", env(map[string]string{"CATALOG_BACKUP_CONFIG": "/env"})))
	require.Equal(t, "/etc/catalog-backup/config.yaml", Path("", nothing))
	_, err := Load("/nonexistent/x.yaml", nothing)
	require.ErrorContains(t, err, "/nonexistent/x.yaml: cannot read the configuration: no such file or directory; name another file by --config or CATALOG_BACKUP_CONFIG")
	_, err = Load(t.TempDir(), nothing)
	require.ErrorContains(t, err, "is a directory")
}

func TestVersionFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	c := parse(t, "instance: c\nversion_file: "+path+"\n")
	_, err := c.CatalogVersion()
	require.ErrorContains(t, err, "version_file: cannot read it")
	for text, good := range map[string]bool{"10.0.0.147420\n": true, "": false, "../x": false, "1\n2": false, strings.Repeat("1.", 30) + "1": false} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := c.CatalogVersion()
		require.Equal(t, good, err == nil, "%q", text)
	}
}

func TestSocketPathsStayShort(t *testing.T) {
	c := parse(t, "instance: c\nstate_dir: /"+strings.Repeat("x", 120)+"\n")
	d := parse(t, "instance: c\nstate_dir: /"+strings.Repeat("y", 120)+"\n")
	require.LessOrEqual(t, len(c.RedisSocket()), maxSocketPath)
	require.NotEqual(t, c.RedisSocket(), d.RedisSocket())
}

func TestKeysAreWellMade(t *testing.T) {
	seen := map[string]string{}
	for _, k := range Keys {
		for _, name := range []string{k.Name, k.Env()} {
			require.Empty(t, seen[name], "%s and %s share a name", k.Name, seen[name])
			seen[name] = k.Name
		}
		if k.Secret {
			require.Empty(t, seen[k.Env()+"_FILE"])
			seen[k.Env()+"_FILE"] = k.Name
		}
		require.NotEmpty(t, k.Doc)
		require.NotEmpty(t, k.Kind)
	}
	for _, secretKey := range []string{"postgres.dsn", "postgres.password", "redis.password", "eventbus.sasl.password"} {
		k, ok := keyByName(secretKey)
		require.True(t, ok && k.Secret, secretKey)
	}
}

func TestListen(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:9464": "", ":9464": "", "'[::1]:9464'": "", "''": "",
		"9464": "write HOST:PORT", "host": "write HOST:PORT", "host:0": "no valid port", "host:http": "no valid port", "host:70000": "no valid port", "http://host:1": "write HOST:PORT",
	} {
		c, err := Parse("/c.yaml", []byte("instance: c\nworker:\n  listen: "+text+"\n"), func(string) string { return "" })
		if want == "" {
			require.NoError(t, err, text)
			require.Equal(t, strings.Trim(text, "'"), c.Listen.Worker)
			continue
		}
		require.ErrorContains(t, err, want, text)
		require.ErrorContains(t, err, "/c.yaml:3: worker.listen: ")
	}
}
