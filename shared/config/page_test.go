package config

import (
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

const pagePath = "../../docs/configuration.md"

const pageHead = `# Configuration

<!-- Written by: go test ./shared/config -run Page -update. Change shared/config, not this file. -->

One YAML file is read by the producer and by the workers: the one that ` + "`--config`" + ` names, else
` + "`$CATALOG_BACKUP_CONFIG`" + `, else ` + "`/etc/catalog-backup/config.yaml`" + `. The verbs of the worker that read a set
(` + "`verify`, `restore`, `list --dir`" + `) need no file.

The producer needs only ` + "`instance`" + ` and the keys below ` + "`redis`" + `. A worker also needs ` + "`version`" + ` (or ` + "`version_file`" + `) and
` + "`postgres.dsn`" + `. Everything else has a default.

## A complete example

` + "```yaml\n" + pageExample + "```" + `

A key may be written below its section, as ` + "`dsn`" + ` here, or with dots, as ` + "`alation.backup.data_dump_dir`" + `; both are the same
key. A key that is not known, that stands twice, or whose value is wrong is an error with exit code 2. It names file,
line, key and remedy:

    /etc/catalog-backup/config.yaml:7: postgres.dns: is not a key; did you mean postgres.dsn?

## Environment and secrets

Each key can be overridden by an environment variable, which is named in the last column below: ` + "`CATALOG_BACKUP_`" + ` and the
key in capitals, with ` + "`_`" + ` for each dot. Lists are separated by commas. An empty variable counts as not set.

A secret can be kept out of the file: in its environment variable, or in a file of its own, which the key with ` + "`_file`" + ` at
its end names (` + "`redis.password_file: /etc/catalog-backup/redis-password`" + `), or the variable with ` + "`_FILE`" + ` at its end. The end of
the line is no part of the secret. Secrets are in no argument list, log, task or error text. A value that begins with
` + "`*`, `&`, `@`, `!`" + ` or holds ` + "`: `" + ` or ` + "` #`" + ` must stand in quotes, as YAML demands.

## All keys

`

// pageExample is loaded by a test.
const pageExample = `instance: catalog                        # queues, lock and dashboard go by it
node: host1                              # default: the host name
version: 10.0.0.147420                   # the catalog server's; or version_file: PATH
state_dir: /var/lib/catalog-backup
redis: embedded                          # or a section with address, username, password, db, tls
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
alation.feature_flags.enable_pgbackrest: true
schedules:                               # what "producer schedule run" does, and when
  - {name: nightly, cron: "30 2 * * *", timezone: Europe/Berlin}
`

func TestPageIsWhatTheCodeSays(t *testing.T) {
	page := pageHead + Reference()
	if *update {
		require.NoError(t, os.WriteFile(pagePath, []byte(page), 0o644))
	}
	text, err := os.ReadFile(pagePath)
	require.NoError(t, err)
	require.Equal(t, page, string(text), "docs/configuration.md has drifted: go test ./shared/config -run Page -update")
	c := parse(t, pageExample)
	require.NoError(t, c.ForWorker())
	_, err = Parse("/etc/catalog-backup/config.yaml", []byte("instance: c\n\n\n\n\npostgres:\n  dns: x\n"), nothing)
	require.Contains(t, page, err.Error(), "the error in the page is a real one")
}
