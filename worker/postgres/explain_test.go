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
