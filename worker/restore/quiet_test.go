package restore

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestQuietAndLive: what a restored server is told to be, by the command line.
func TestQuietAndLive(t *testing.T) {
	var v struct {
		Warnings []string
		Next     []string
		Postgres Server
	}
	restore := func(want int, more ...string) {
		args := append([]string{"restore", "--json", source.manifest(source.dump), "--only", "postgres", "--target", filepath.Join(scratch(t), "new")}, more...)
		out, errs, code := source.run(t, args...)
		require.Equal(t, want, code, "%s %s", out, errs)
		require.NoError(t, json.Unmarshal([]byte(out), &v))
	}
	at := func(words string) int {
		for i, n := range v.Next {
			if strings.Contains(n, words) {
				return i
			}
		}
		return -1
	}
	restore(0)
	require.Equal(t, v.Next[:2], v.Postgres.Before)
	require.Less(t, at("slot_name = NONE"), at("start PostgreSQL: "+v.Postgres.Start))
	require.Less(t, at("start PostgreSQL:"), at("look at it: "+v.Postgres.Psql))
	stop := strings.Replace(v.Postgres.Start, " -w start", " -m immediate -w stop", 1)
	t.Cleanup(func() { _ = exec.Command("sh", "-c", stop).Run() })
	for _, command := range []string{v.Postgres.Start, v.Postgres.Psql + " -c 'select 1'"} {
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		require.NoError(t, err, "%s: %s", command, out)
	}
	restore(10, "--live")
	require.Contains(t, v.Warnings[0], "this server acts for the original as soon as it starts")
	require.Empty(t, v.Postgres.Psql)
	require.Equal(t, -1, at("take-over.sql"))
}
