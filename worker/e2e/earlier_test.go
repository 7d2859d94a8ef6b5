package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/lab/earlier"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

// What versions that were given out left behind lists, verifies, restores and goes on.
// testdata/<version>/README.txt says how the fixtures were made; they are never changed.

// earlierSets are the kept sets, by version and name.
func earlierSets(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("testdata/v*/*/facts.json")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(dirs), 3)
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

func TestEarlierSets(t *testing.T) {
	for _, dir := range earlierSets(t) {
		t.Run(filepath.Base(filepath.Dir(dir))+" "+filepath.Base(dir), func(t *testing.T) {
			facts, err := earlier.ReadFacts(dir)
			require.NoError(t, err)
			e := &earlierSet{t: t, facts: facts, dir: keptSet(t, dir, scratch(t))}
			e.listedAndGood()
			e.restoredWhole()
			for _, part := range e.parts() {
				e.restoredAlone(part)
			}
		})
	}
}

// keptSet copies a fixture's set to where a test may change it.
func keptSet(t *testing.T, from, to string) string {
	t.Helper()
	names, err := filepath.Glob(from + "/*_alation_*")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(to, filepath.Base(name)), b, 0o600))
	}
	return to
}

func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cb-e2e-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

type earlierSet struct {
	t     *testing.T
	facts *earlier.Facts
	dir   string
}

func (e *earlierSet) parts() []string {
	parts := []string{"files"}
	if len(e.facts.Rows) > 0 {
		parts = append(parts, "postgres")
	}
	if e.facts.Bus != nil {
		parts = append(parts, "eventbus")
	}
	return parts
}

// worker runs a verb that must end with one of the codes, and reads its JSON into v.
func (e *earlierSet) worker(v any, codes []int, args ...string) {
	e.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "worker"), append(args, "--json")...)
	cmd.Env = append(os.Environ(), "CATALOG_BACKUP_CONFIG=/nonexistent")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exited *exec.ExitError
	require.True(e.t, err == nil || errors.As(err, &exited), "%v", err)
	require.Contains(e.t, codes, cmd.ProcessState.ExitCode(), "worker %s: %s%s", strings.Join(args, " "), &out, &errs)
	require.NoError(e.t, json.Unmarshal(out.Bytes(), v))
}

func (e *earlierSet) listedAndGood() {
	var list []set.Listed
	e.worker(&list, []int{0}, "list", "--dir", e.dir)
	require.Len(e.t, list, 1)
	require.Equal(e.t, e.facts.Set, list[0].Set)
	var report struct {
		Good   bool
		Damage []any
	}
	e.worker(&report, []int{0}, "verify", e.facts.Set, "--dir", e.dir)
	require.True(e.t, report.Good)
	require.Empty(e.t, report.Damage)
}

type restored struct {
	Target   string
	Parts    []string
	Postgres *struct{ Start string }
	Warnings []string
}

// restore may warn (what the present version knows better of an older set), and says so.
func (e *earlierSet) restore(args ...string) restored {
	e.t.Helper()
	var r restored
	e.worker(&r, []int{0, 10}, append([]string{"restore", e.facts.Set, "--dir", e.dir, "--target", filepath.Join(scratch(e.t), "restored")}, args...)...)
	for _, w := range r.Warnings {
		e.t.Log("warning: " + w)
	}
	return r
}

func (e *earlierSet) restoredWhole() {
	var args []string
	var bus *lab.Broker
	if e.facts.Bus != nil {
		bus = lab.Kfake(e.t, lab.KfakeOptions{})
		args = []string{"--bus", bus.Brokers[0]}
	}
	r := e.restore(args...)
	require.ElementsMatch(e.t, e.parts(), r.Parts)
	e.sameFiles(r)
	if r.Postgres != nil {
		e.sameRows(r)
	}
	if bus != nil {
		e.sameEvents(bus)
	}
}

func (e *earlierSet) restoredAlone(part string) {
	var args []string
	var bus *lab.Broker
	if part == "eventbus" {
		bus = lab.Kfake(e.t, lab.KfakeOptions{})
		args = []string{"--bus", bus.Brokers[0]}
	}
	r := e.restore(append(args, "--only", part)...)
	require.Equal(e.t, []string{part}, r.Parts)
	switch part {
	case "files":
		e.sameFiles(r)
	case "postgres":
		e.sameRows(r)
	case "eventbus":
		e.sameEvents(bus)
	}
	for _, other := range e.parts() {
		require.Equal(e.t, other == part, exists(filepath.Join(r.Target, other)), "%s in %s", other, r.Target)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (e *earlierSet) sameFiles(r restored) {
	e.t.Helper()
	have, err := earlier.Tree(filepath.Join(r.Target, "files", e.facts.Root, "app"))
	require.NoError(e.t, err)
	require.Equal(e.t, e.facts.Files, have)
}

func (e *earlierSet) sameEvents(bus *lab.Broker) {
	e.t.Helper()
	have, err := earlier.ReadBus(context.Background(), bus)
	require.NoError(e.t, err)
	require.Equal(e.t, e.facts.Bus.Topics, have.Topics)
	require.Equal(e.t, e.facts.Bus.Groups, have.Groups)
	require.ElementsMatch(e.t, e.facts.Bus.ACLs, have.ACLs)
}

// sameRows starts the restored server as the restore says, and asks it.
func (e *earlierSet) sameRows(r restored) {
	e.t.Helper()
	needPostgres15(e.t)
	stop := strings.Replace(r.Postgres.Start, " -w start", " -m immediate -w stop", 1)
	require.NotEqual(e.t, r.Postgres.Start, stop)
	out, err := exec.Command("sh", "-c", r.Postgres.Start).CombinedOutput()
	defer func() { _ = exec.Command("sh", "-c", stop).Run() }()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(r.Target, "postgres/server.log"))
		e.t.Fatalf("%s: %v: %s\n%s", r.Postgres.Start, err, out, log)
	}
	sockets, err := filepath.Glob(filepath.Join(r.Target, "postgres/socket/.s.PGSQL.*[0-9]"))
	require.NoError(e.t, err)
	require.Len(e.t, sockets, 1)
	ask := func(sql string) string {
		e.t.Helper()
		as, err := lab.PostgresUser()
		require.NoError(e.t, err)
		bin, err := lab.PGBinDir()
		require.NoError(e.t, err)
		cmd := exec.Command(filepath.Join(bin, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", filepath.Dir(sockets[0]),
			"-p", strings.TrimPrefix(filepath.Ext(sockets[0]), "."), "-U", "postgres", "-d", "postgres", "-c", sql)
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin"}
		if as != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		}
		out, err := cmd.CombinedOutput()
		require.NoError(e.t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	require.Eventually(e.t, func() bool { return ask("select pg_is_in_recovery()") == "f" }, 20*time.Second, 50*time.Millisecond)
	for sql, answer := range e.facts.Rows {
		require.Equal(e.t, answer, ask(sql), sql)
	}
}

// needPostgres15 is the one place that knows which server the fixtures' databases need.
func needPostgres15(t *testing.T) {
	t.Helper()
	const postgres = "/usr/lib/postgresql/15/bin/postgres"
	require.FileExists(t, postgres, "the databases of the earlier sets are PostgreSQL 15's: apt-get install postgresql-15")
}

// earlierKeys are those of the configuration that the kept Redis belongs to: its plans, and
// the long time that its open run was given.
const earlierKeys = `alation.backup.chef_timeout: 630720000
schedules:
  - {name: minutely, cron: "* * * * *"}
  - {name: proof, cron: "0 4 * * *", job: verify}
`

// earlierRedis is the kept Redis of a version with its node, on a catalog server of today.
func earlierRedis(t *testing.T, dir, node, more string, staging bool) (*site, map[string]string) {
	t.Helper()
	facts, err := earlier.ReadFacts(dir)
	require.NoError(t, err)
	root, err := earlier.NewRoot()
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	moved := func(s string) string { return strings.ReplaceAll(s, facts.Root, root) }
	require.Len(t, root, len(facts.Root))
	r := lab.Redis(t)
	client := r.Client()
	t.Cleanup(func() { client.Close() })
	require.NoError(t, earlier.LoadRedis(context.Background(), client, filepath.Join(dir, "redis.json"), moved))
	runs := map[string]string{}
	ids, err := client.ZRange(context.Background(), "catalog-backup:catalog:runs", 0, -1).Result()
	require.NoError(t, err)
	for _, id := range ids {
		state, err := client.HGet(context.Background(), "catalog-backup:run:"+id, "state").Result()
		require.NoError(t, err)
		runs[state] = id
	}
	require.Len(t, runs, 3, "a run that is open, one that failed, one or more that succeeded")
	s := siteIn(t, root, fmt.Sprintf("node: %s\nredis: {address: \"unix:%s\"}", node, r.Addr), 100, more+earlierKeys)
	keptSet(t, dir, s.dump())
	if staging {
		unpackStaging(t, filepath.Join(dir, "staging.tar.gz"), root, moved)
	}
	return s, runs
}

// unpackStaging brings what the open run had on disk to its place.
func unpackStaging(t *testing.T, from, root string, moved func(string) string) {
	t.Helper()
	out, err := exec.Command("tar", "-xzpf", from, "--numeric-owner", "-C", root).CombinedOutput()
	require.NoError(t, err, "%s", out)
	texts := 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".json" && filepath.Ext(path) != ".intent" {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(filepath.Dir(root)+"/cb-earlier-")) {
			texts++
			err = os.WriteFile(path, []byte(moved(string(b))), 0o600)
		}
		return err
	}))
	require.NotZero(t, texts)
}

func TestEarlierRuns(t *testing.T) {
	dirs, err := filepath.Glob("testdata/v*/bus")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, dir := range dirs {
		for name, c := range map[string]struct {
			node, more string
			staging    bool
			ends       []string
		}{
			"goes on where its staging is":      {"host1", "", true, []string{"succeeded"}},
			"its staging is gone":               {"host1", "", false, []string{"failed"}},
			"its node is gone":                  {"host2", "  node_lost_after: 1s\n", false, []string{"failed"}},
			"its time was over long since then": {"host1", "", true, []string{"succeeded", "failed"}}, // as the reconciler or the stage is first
		} {
			t.Run(filepath.Base(filepath.Dir(dir))+" "+name, func(t *testing.T) {
				t.Parallel()
				s, runs := earlierRedis(t, dir, c.node, c.more, c.staging)
				if strings.HasPrefix(name, "its time") {
					past := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339Nano)
					require.NoError(t, s.rdb.HSet(context.Background(), "catalog-backup:run:"+runs["running"], "deadline", past).Err())
				}
				endedAreShown(t, s, runs)
				s.startWorker()
				r := s.over(runs["running"], 60*time.Second)
				require.Contains(t, c.ends, string(r.State), r.Error)
				require.Equal(t, string(r.State) == "failed", r.Error != "")
				s.restored(r, nil)
				next := s.over(s.begin(), 60*time.Second)
				require.Equal(t, "succeeded", string(next.State), next.Error)
				listsAllSets(t, s, next.Set)
				if r.Set != "" && r.State == "succeeded" {
					goodOnDisk(t, s, r.Set)
				}
				goodOnDisk(t, s, next.Set)
			})
		}
	}
}

// endedAreShown looks at the ended runs, and at what is remembered of plans and sets.
func endedAreShown(t *testing.T, s *site, runs map[string]string) {
	t.Helper()
	for state, id := range runs {
		out, code := s.producer("status", id, "--json")
		require.Equal(t, 0, code)
		var v struct{ Run, State string }
		require.NoError(t, json.Unmarshal([]byte(out), &v))
		require.Equal(t, id, v.Run)
		require.Equal(t, state, v.State)
		out, code = s.producer("status", id)
		require.Equal(t, 0, code)
		require.Contains(t, out, id)
	}
	out, code := s.producer("list", "--json")
	require.Equal(t, 0, code)
	var sets []set.Listed
	require.NoError(t, json.Unmarshal([]byte(out), &sets))
	require.NotEmpty(t, sets)
	for _, x := range sets {
		_, code := s.producer("show", x.Set, "--json")
		require.Equal(t, 0, code)
	}
	out, code = s.producer("schedule", "list", "--json")
	require.Equal(t, 0, code)
	require.Contains(t, out, "minutely")
	require.Contains(t, out, `"opened"`)
}

// listsAllSets wants the kept set and the new one in the producer's list.
func listsAllSets(t *testing.T, s *site, id string) {
	t.Helper()
	s.eventually(20*time.Second, "the new set is listed", func() bool {
		out, code := s.producer("list", "--json")
		require.Equal(t, 0, code)
		var sets []set.Listed
		require.NoError(t, json.Unmarshal([]byte(out), &sets))
		return slices.ContainsFunc(sets, func(x set.Listed) bool { return x.Set == id }) && len(sets) > 1
	})
}

func goodOnDisk(t *testing.T, s *site, id string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(programs, "worker"), "verify", id, "--dir", s.dump()).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
