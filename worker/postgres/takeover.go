package postgres

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"catalog-backup/shared/set"
)

// quietSession keeps a session from what ALTER DATABASE and ALTER ROLE set for it,
// which no configuration file can: libraries to load, another role, a limit of time.
// The client's own settings, which libpq hands on, win over those.
const quietSession = "/usr/bin/env PGOPTIONS='-csession_preload_libraries= -clocal_preload_libraries= -crole=none -cstatement_timeout=0 -cdefault_transaction_read_only=off'"

// waitPromoted ends when the server is out of recovery. pg_ctl does not wait for that:
// to it a server is started that answers queries, or, with hot_standby off, one whose
// recovery has begun.
const waitPromoted = "with recursive w (recovers, waited) as (select true, '' union all select pg_catalog.pg_is_in_recovery(), pg_catalog.pg_sleep(0.1)::text from w where recovers) select count(*) as waited from w"

// psql is a command that asks the restored server, for a shell.
func (r *restoration) psql(database, more string) string {
	return strings.TrimSpace(r.asOwner(fmt.Sprintf("%s %s -X%s -d %s %s", quietSession, r.program("psql"), r.address(), shellQuote(database), more)))
}

// address says where the restored server listens, and as whom to come.
func (r *restoration) address() string {
	host := ""
	if r.socketDir != "" {
		host = " -h " + shellQuote(r.socketDir)
	}
	return fmt.Sprintf("%s -p %d -U %s", host, quietPort, shellQuote(r.superuser()))
}

func (r *restoration) superuser() string { return firstOf(r.o.Part.Superuser, "postgres") }

// database is one that a person may look into.
func (r *restoration) database() string {
	for _, d := range r.o.Part.Databases {
		if enterable(d) && d.Name != "postgres" && d.Name != "template1" {
			return d.Name
		}
	}
	return r.home()
}

// home is the database that commands for the whole cluster begin in.
func (r *restoration) home() string {
	open := map[string]bool{}
	other := "postgres"
	for _, d := range r.o.Part.Databases {
		if enterable(d) {
			open[d.Name], other = true, d.Name
		}
	}
	for _, name := range []string{"postgres", "template1"} {
		if open[name] {
			return name
		}
	}
	return other
}

// enterable tells whether a database lets sessions in, and has a name that a command
// can hold: psql takes one such as "host=x" or "postgresql://x" for where to connect
// to, and what is no UTF-8 is not in the manifest as it was.
func enterable(d set.Database) bool {
	return !d.Closed && d.Name != "template0" && !strings.ContainsFunc(d.Name, func(c rune) bool { return c < ' ' || c == '=' || c == ':' || c == utf8.RuneError })
}

// takeOver is a script for psql; %s is a wait for the end of recovery. It writes into
// the catalog what ALTER SUBSCRIPTION does by DISABLE and SET (slot_name = NONE): that
// statement works in the subscription's own database only, and there are databases
// that let nobody in, or have names or locales with which psql does not get in and ends.
const takeOver = `-- Made by a restore. To be run on the restored server, started as printed, before it takes over from the original.
\set ON_ERROR_STOP on
\o /dev/null
%s;
\o
set search_path = pg_catalog;
-- As ALTER SUBSCRIPTION ... DISABLE and SET (slot_name = NONE), in every database at once.
update pg_catalog.pg_subscription set subenabled = false, subslotname = null where subenabled or subslotname is not null;
\echo 'subscriptions: disabled, and parted from the slots of their publishers:'
select d.datname as database, s.subname as subscription, s.subenabled as enabled, s.subslotname as slot
  from pg_catalog.pg_subscription s left join pg_catalog.pg_database d on d.oid = s.subdbid order by 1, 2;
\echo 'prepared transactions: commit or roll back:'
select * from pg_catalog.pg_prepared_xacts;
\echo 'what databases and roles set for their sessions: look for libraries and hosts:'
select d.datname as database, r.rolname as role, s.setconfig as settings from pg_catalog.pg_db_role_setting s
  left join pg_catalog.pg_database d on d.oid = s.setdatabase left join pg_catalog.pg_roles r on r.oid = s.setrole;
`

func (r *restoration) takeOverScript() string { return filepath.Join(r.o.Target, "take-over.sql") }

// writeTakeOver puts the script beside the data directory.
func (r *restoration) writeTakeOver() error {
	if r.o.Live {
		return nil
	}
	text := fmt.Sprintf(takeOver, waitPromoted)
	if err := writeFile(r.takeOverScript(), []byte(text), 0o600); err != nil {
		return fmt.Errorf("restore PostgreSQL: write %s: %w", r.takeOverScript(), err)
	}
	return nil
}

// steps says what to do before the start, and before the server takes over.
func (r *restoration) steps() {
	r.startCommand()
	if r.o.Live {
		r.done.warn("--live: this server acts for the original as soon as it starts: its subscriptions take rows from their publishers, its background workers run jobs, and it listens where the original did: start it only where the original is gone for good")
		return
	}
	r.done.Psql = r.psql(r.database(), "")
	named := ""
	for i, s := range r.o.Part.Subscriptions {
		named += fmt.Sprintf("%s%s in %s", map[bool]string{true: " (", false: ", "}[i == 0], s.Name, s.Database)
	}
	if named != "" {
		named += ")"
	}
	auto := filepath.Join(r.done.DataDir, "postgresql.auto.conf")
	r.done.before("before you start PostgreSQL, know that it is quiet: it is reached by its own socket only and acts for nobody, until you take the lines from \"# catalog-backup restore: begin\" to \"# catalog-backup restore: end\" out of %s", auto)
	r.done.before("before it takes over (the original gone for good, this one started, those lines still there): end its subscriptions%s by DISABLE and slot_name = NONE, or it takes rows from their publishers in the name of the original, and see what else acts by itself: %s; look in each database for jobs (cron.job and the like) and foreign servers (\\des)", named, r.psql(r.home(), "-q -f "+shellQuote(r.takeOverScript())))
	r.done.note("the restored server listens on the socket in %s only, does not archive, and runs no worker of an extension or a subscription; the last lines of postgresql.auto.conf say so", r.socketDir)
}
