package postgres

import (
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/worker/stage"
)

// The words are pgBackRest's own, of a server that recovers from the crash of a backend.
func TestExplainOfALostConnection(t *testing.T) {
	f := &Facts{SocketDir: "/run/pg", OwnerName: "postgres", Role: "postgres"}
	for message, permanent := range map[string]bool{
		"[056]: unable to find primary cluster - cannot proceed; HINT: are all available clusters in recovery?":                           false,
		"[056]: unable to connect to 'dbname='postgres' port=5432': FATAL:  the database system is in recovery mode":                      false,
		"[056]: unable to connect to 'dbname='postgres' port=5432': FATAL:  the database system is not yet accepting connections":         false,
		"[056]: unable to connect to 'dbname='postgres' port=5432': FATAL:  sorry, too many clients already":                              false,
		"[056]: unable to connect to 'dbname='postgres' port=5432': FATAL:  Peer authentication failed for user \"postgres\"":             true,
		"[056]: unable to connect to 'dbname='postgres' port=5432': FATAL:  no pg_hba.conf entry for host \"[local]\", user \"postgres\"": true,
		"[056]: unable to connect to 'dbname='postgres' port=5432': fe_sendauth: no password supplied":                                    true,
	} {
		err := explain(&toolError{command: "backup", code: exitConnect, messages: message}, f, "/dump")
		require.Equal(t, permanent, stage.IsPermanent(err), "%v", err)
	}
}

// The words are those of pgBackRest 2.45, of data directories with such links and such
// a tablespace.
func TestExplainOfLinks(t *testing.T) {
	for message, c := range map[string]struct {
		code   int
		remedy string
	}{
		"[041]: unable to get info for missing path/file '/pg/data/dangling': [2] No such file or directory": {41, "leads nowhere"},
		"[070]: link 'inside' destination '/pg/data/base' is in PGDATA":                                      {70, "does not follow this link"},
		"[070]: link '/pg/data/etc/alternatives/c++' cannot reference another link '/usr/bin/g++'":           {70, "does not follow this link"},
		"[070]: link 'pg_tblspc/16385' destination '/pg/data/ts' is in PGDATA":                               {70, "SET TABLESPACE"},
		"[069]: 'pg_data/pg_tblspc/16384' is not a symlink - pg_tblspc should contain only symlinks":         {69, "allow_in_place_tablespaces"},
	} {
		permanentWith(t, explain(&toolError{command: "backup", code: c.code, messages: message}, &Facts{}, "/dump"), message, c.remedy)
	}
	err := explain(&toolError{command: "backup", code: 41, messages: "[041]: unable to open file '/pg/data/base/1/2' for read: [5] Input/output error"}, &Facts{}, "/dump")
	require.False(t, stage.IsPermanent(err))
}
