package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/postgres/pgconf"
)

// rich fills a cluster with what a backup must bring back.
func rich(t testing.TB, p *lab.PG) {
	t.Helper()
	space, err := p.Mkdir("space")
	require.NoError(t, err)
	p.Psql("create tablespace fast location '" + space + "'")
	p.Psql("create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
	p.Psql("create database bytes encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0")
	p.Psql("create database elsewhere tablespace fast")
	p.Psql(`create table big as select i, md5(i::text) x, repeat(md5((i*7)::text), 3) y from generate_series(1, 60000) i;
		create index on big (x);
		create table away (i int primary key, x text) tablespace fast; insert into away select i, md5(i::text) from generate_series(1, 1000) i;
		create unlogged table scratch as select generate_series(1, 100) i;
		create table empty (i int);
		select lo_from_bytea(4711, decode(repeat('00ff1742', 20000), 'hex'))`)
	p.PsqlIn("elsewhere", "create table t as select generate_series(1, 5000) i")
	p.PsqlIn("latin", "set client_encoding = 'UTF8'; create table words (w text); insert into words values ('Größe'), ('déjà vu')")
	p.PsqlIn("bytes", `create table raw (w text); insert into raw values (E'\\xff\\xfe')`)
}

// seenProgress keeps the last figures and minds that they never fall.
type seenProgress struct{ total, done int64 }

func (p *seenProgress) Total(n int64) { p.total = n }
func (p *seenProgress) Add(n int64)   { p.done += n }
func (p *seenProgress) Done(n int64) {
	if n < p.done {
		panic("progress fell")
	}
	p.done = n
}

const sums = `select count(*), sum(hashtext(t::text)::bigint) from `

func TestBackupVerifyRestore(t *testing.T) {
	p := lab.Postgres(t, lab.WithInitDB("--wal-segsize=1"), lab.WithConf("archive_mode = on", "archive_command = 'cp %p /nowhere/%f'", "external_pid_file = '/tmp/pgb-test-external.pid'",
		"shared_preload_libraries = 'pg_stat_statements,auto_explain'", "synchronous_standby_names = ''", "log_directory = '/nowhere'"))
	rich(t, p)
	odd := filepath.Join(p.DataDir, `odd "name"=x {1}`)
	require.NoError(t, os.WriteFile(odd, []byte("odd"), 0o600))
	require.NoError(t, os.Lchown(odd, int(p.User().Uid), int(p.User().Gid)))

	// Load: the WAL of the backup spans several segments.
	load := p.Command("pgbench", "-i", "-s", "1", "-q")
	require.NoError(t, load.Run())
	load = p.Command("pgbench", "-c", "2", "-T", "60", "-n")
	require.NoError(t, load.Start())
	w := newWork(t)
	f, found, err := Preflight(t.Context(), options(p), w)
	require.NoError(t, err)
	seen := &seenProgress{}
	part, more, err := Backup(t.Context(), options(p), w, f, seen)
	require.NoError(t, err)
	found.Join(more)
	require.Equal(t, f.Size, seen.total)
	require.Equal(t, f.Size, seen.done)
	require.InEpsilon(t, part.Size, f.Size, 0.1)
	_ = load.Process.Kill()
	_ = load.Wait()
	require.Empty(t, found.Warnings)
	require.NotEqual(t, part.StartLSN, part.StopLSN)
	require.Len(t, part.Tablespaces, 1)
	noSlots(t, p)

	left, err := os.ReadDir(w.Repo)
	require.NoError(t, err)
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{".owner", "repo"}, names)

	list := entries(t, w, part)
	require.Empty(t, verify(t, part, list))

	want := map[string]string{}
	queries := map[string]string{
		sums + "big t": "postgres", sums + "away t": "postgres", sums + "t": "elsewhere", sums + "words t": "latin", sums + "raw t": "bytes",
		"select md5(lo_get(4711))": "postgres", "select w from words order by 1": "latin",
	}
	for q, db := range queries {
		want[q] = p.PsqlIn(db, "set client_encoding='UTF8';"+q)
	}
	port := p.Port
	require.NoError(t, p.Stop())
	require.NoError(t, os.RemoveAll(filepath.Join(p.Root, "space")))
	require.NoError(t, os.RemoveAll(p.DataDir))

	r, target := restore(t, w, part)
	s := start(t, r, port)
	for q, db := range queries {
		require.Equal(t, want[q], s.query(db, q), q)
	}
	require.Equal(t, "0", s.query("postgres", "select count(*) from scratch"))
	balances := s.query("postgres", "select (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers), (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta),0) from pgbench_history)")
	require.Equal(t, "t|t", balances)
	require.Equal(t, "off|(disabled)", s.query("postgres", "select current_setting('archive_mode') || '|' || current_setting('archive_command')"))
	require.Equal(t, target+"/tablespaces/"+s.query("postgres", "select oid from pg_tablespace where spcname = 'fast'"),
		s.query("postgres", "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'"))
	require.Contains(t, s.query("postgres", "select current_setting('shared_preload_libraries')"), "auto_explain")
	s.query("postgres", "create table after_restore as select 1; checkpoint; select pg_switch_wal()")
	require.NoFileExists(t, "/tmp/pgb-test-external.pid")
	content, err := os.ReadFile(filepath.Join(r.DataDir, `odd "name"=x {1}`))
	require.NoError(t, err)
	require.Equal(t, "odd", string(content))
	requireInside(t, target)
}

// requireInside asserts that no setting in force names a place outside target.
func requireInside(t testing.TB, target string) {
	t.Helper()
	for _, name := range []string{"postgresql.conf", "postgresql.auto.conf", "pg_hba.conf"} {
		content, err := os.ReadFile(filepath.Join(target, "data", name))
		require.NoError(t, err)
		for _, line := range strings.Split(string(content), "\n") {
			if l := pgconf.Parse(line); strings.HasPrefix(l.Value, "/") {
				require.True(t, strings.HasPrefix(l.Value, target), "%s: %s = %s", name, l.Name, l.Value)
			}
		}
	}
}

// mutate returns a copy of list with the entry at i changed.
func mutate(list []entry, i int, change func([]byte) []byte) []entry {
	out := append([]entry(nil), list...)
	out[i] = entry{list[i].name, change(append([]byte(nil), list[i].content...))}
	return out
}

func find(t testing.TB, list []entry, part string) int {
	t.Helper()
	best := -1
	for i, e := range list {
		if strings.Contains(e.name, part) && !strings.HasSuffix(e.name, ".copy") && (best < 0 || len(e.content) > len(list[best].content)) {
			best = i
		}
	}
	require.GreaterOrEqual(t, best, 0, "no entry with %s", part)
	return best
}

func TestVerifierFindsEachDamage(t *testing.T) {
	p := lab.Postgres(t, lab.WithInitDB("--wal-segsize=1"))
	p.Psql("create table big as select i, md5(i::text) x from generate_series(1, 120000) i")
	for _, kind := range []string{"zst", "lz4", "gz", "bz2", "none"} {
		t.Run(kind, func(t *testing.T) {
			o := options(p)
			o.CompressType = kind
			w := newWork(t)
			part, _ := backUp(t, o, w)
			list := entries(t, w, part)
			require.Empty(t, verify(t, part, list))
			kinds := []string{"/bundle/", "/pg_data/base/", part.StartWAL}
			if kind == "zst" {
				kinds = append(kinds, "/backup.manifest", "/backup.info", "/archive.info")
			}
			for _, what := range kinds {
				i := find(t, list, what)
				name := list[i].name
				middle := len(list[i].content) / 2
				require.NotEmpty(t, verify(t, part, mutate(list, i, func(b []byte) []byte { b[middle] ^= 0x10; return b })), "flipped byte %d of %s", middle, name)
				if kind != "zst" {
					continue
				}
				require.NotEmpty(t, verify(t, part, append(append([]entry(nil), list[:i]...), list[i+1:]...)), "removed %s", name)
				for _, at := range []int{0, middle, len(list[i].content) - 1} {
					require.NotEmpty(t, verify(t, part, mutate(list, i, func(b []byte) []byte { b[at] ^= 0x10; return b })), "flipped byte %d of %s", at, name)
				}
				for _, to := range []int{0, middle, len(list[i].content) - 1} {
					require.NotEmpty(t, verify(t, part, mutate(list, i, func(b []byte) []byte { return b[:to] })), "cut %s to %d", name, to)
				}
				require.NotEmpty(t, verify(t, part, mutate(list, i, func(b []byte) []byte { return append(b, 'x') })), "added to %s", name)
				stray := entry{strings.Replace(name, "/", "/stray/", 4), []byte("x")}
				require.NotEmpty(t, verify(t, part, append(append([]entry(nil), list...), stray)), "added %s", stray.name)
				require.NotEmpty(t, verify(t, part, append(append([]entry(nil), list...), list[i])), "twice %s", name)
			}
			other := *part
			other.StopWAL = segmentAfter(t, part)
			require.NotEmpty(t, verify(t, &other, list))
			other = *part
			other.Size++
			require.NotEmpty(t, verify(t, &other, list))
		})
	}
}

func segmentAfter(t testing.TB, part *set.Postgres) string {
	s, err := parseSegment(part.StopWAL, part.WALSegmentSize)
	require.NoError(t, err)
	s.number++
	return s.name(part.WALSegmentSize)
}
