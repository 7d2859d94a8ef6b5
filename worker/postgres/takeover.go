package postgres

import (
	"fmt"
	"path/filepath"
	"strings"
)

// quietSession keeps a session from what ALTER DATABASE and ALTER ROLE set: no
// library is loaded into it, and it may write. libpq hands it on as the client's
// own settings, which win over those of databases and roles.
const quietSession = "/usr/bin/env PGOPTIONS='-c session_preload_libraries= -c local_preload_libraries= -c default_transaction_read_only=off'"

// psql is a command that asks the restored server, for a shell.
func (r *restoration) psql(database, more string) string {
	host := ""
	if r.socketDir != "" {
		host = " -h " + shellQuote(r.socketDir)
	}
	return strings.TrimSpace(r.asOwner(fmt.Sprintf("%s %s -X%s -p %d -U %s -d %s %s", quietSession, r.program("psql"), host, quietPort, shellQuote(firstOf(r.o.Part.Superuser, "postgres")), shellQuote(database), more)))
}

// database is one that a person may look into.
func (r *restoration) database() string {
	for _, d := range r.o.Part.Databases {
		if d.Name != "postgres" && d.Name != "template0" && d.Name != "template1" && !strings.ContainsFunc(d.Name, func(c rune) bool { return c < ' ' }) {
			return d.Name
		}
	}
	return "postgres"
}

// endSubscriptions writes, for every subscription of every database, the
// statements that keep it from the publisher's slot. The output is for psql.
const endSubscriptions = `select format(E'\\connect %I\nALTER SUBSCRIPTION %I DISABLE;\nALTER SUBSCRIPTION %2$I SET (slot_name = NONE);', datname, subname) from pg_catalog.pg_subscription s join pg_catalog.pg_database d on d.oid = s.subdbid order by 1`

// preloadedBySessions shows what sessions of a database or role would load or run
// with, whatever the configuration says.
const preloadedBySessions = `select d.datname as database, r.rolname as role, s.setconfig as settings from pg_catalog.pg_db_role_setting s left join pg_catalog.pg_database d on d.oid = s.setdatabase left join pg_catalog.pg_roles r on r.oid = s.setrole`

// steps says what to do before the start, and before the server takes over.
func (r *restoration) steps() {
	r.startCommand()
	if r.o.Live {
		r.done.warn("--live: this server acts for the original as soon as it starts: its subscriptions take rows from their publishers, its background workers run jobs, and it listens where the original did: start it only where the original is gone for good")
		return
	}
	r.done.Psql = r.psql(r.database(), "")
	named := ""
	var names []string
	for _, s := range r.o.Part.Subscriptions {
		names = append(names, fmt.Sprintf("%s in database %s", s.Name, s.Database))
	}
	if len(names) > 0 {
		named = " (" + strings.Join(names, ", ") + ")"
	}
	auto := filepath.Join(r.done.DataDir, "postgresql.auto.conf")
	r.done.before("the server that you will start is quiet: it is reached by its socket only and acts for nobody, until you take the lines from %q to %q out of %s; before you do, the original must be gone for good, and the next two steps done on the started server", "# catalog-backup restore: begin", "# catalog-backup restore: end", auto)
	r.done.before("before it takes over, end its subscriptions%s, or it takes rows from their publishers in the name of the original: %s | %s", named, r.psql("postgres", "-Atqc "+shellQuote(endSubscriptions)), r.psql("postgres", "-q -v ON_ERROR_STOP=1"))
	r.done.before("before it takes over, look at what acts by itself in each database: jobs (table cron.job and the like), foreign servers (\\des), prepared transactions (pg_prepared_xacts), and what databases and roles set for their sessions: %s", r.psql("postgres", "-c "+shellQuote(preloadedBySessions)))
	r.done.note("the restored server is quiet: it listens on the socket in %s only, does not archive, and runs no worker of an extension or a subscription; the last lines of %s say so", r.socketDir, auto)
}
