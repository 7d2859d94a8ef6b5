package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// frozenRunner freezes pgBackRest while it copies, once its own list of what to copy is
// made, and runs something meanwhile.
type frozenRunner struct {
	t    testing.TB
	repo string
	run  func()
}

func (f frozenRunner) Run(ctx context.Context, c Command) error {
	if c.Args[len(c.Args)-1] != "backup" {
		return keptRunner{}.Run(ctx, c)
	}
	copying, stop := context.WithCancel(ctx)
	ran := false
	var freezing sync.WaitGroup
	freezing.Go(func() {
		for copying.Err() == nil && !ran {
			if lists, _ := filepath.Glob(f.repo + "/repo/backup/*/*F/pg_data"); len(lists) > 0 {
				f.signal(syscall.SIGSTOP)
				f.run()
				ran = true
				f.signal(syscall.SIGCONT)
			}
		}
	})
	err := keptRunner{}.Run(ctx, c)
	stop()
	freezing.Wait()
	require.True(f.t, ran, "pgBackRest was over before it could be frozen")
	return err
}

// signal sends to each pgBackRest that works in our repository.
func (f frozenRunner) signal(s syscall.Signal) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		content, _ := os.ReadFile(line)
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line)))
		if args := bytes.Split(content, []byte{0}); err == nil && filepath.Base(string(args[0])) == "pgbackrest" && bytes.Contains(content, []byte(f.repo)) {
			_ = syscall.Kill(pid, s)
		}
	}
}

// during backs up, with something that happens while pgBackRest copies.
func during(t testing.TB, p *lab.PG, run func()) (Work, *set.Postgres, error) {
	w := newWork(t)
	o := options(p)
	o.Processes = 1
	o.Runner = frozenRunner{t, w.Repo, run}
	f, _, err := Preflight(t.Context(), o, w)
	require.NoError(t, err)
	part, _, err := Backup(t.Context(), o, w, f, noProgress)
	noSlots(t, p)
	return w, part, err
}

// older backs up as a version did that did not look at what the WAL tells.
func older(t testing.TB, p *lab.PG, run func()) (Work, *set.Postgres) {
	w := newWork(t)
	o := options(p)
	o.Processes = 1
	f, found, err := Preflight(t.Context(), o, w)
	require.NoError(t, err)
	require.NoError(t, prepareRepo(o, f, w, ""))
	cfg, err := o.parseDSN()
	require.NoError(t, err)
	held, err := holdWAL(t.Context(), cfg, "", f)
	require.NoError(t, err)
	defer held.release()
	b := &backup{o: o, w: w, f: f, p: noProgress, found: &found, t: backupTool(o, w, f, false), wal: held}
	_, err = b.pgbackrest(t.Context(), "stanza-create", "stanza-create")
	require.NoError(t, err)
	b.t.runner = frozenRunner{t, w.Repo, run}
	_, err = b.pgbackrest(t.Context(), "backup", "--type=full", "--no-archive-check", "backup")
	require.NoError(t, err)
	b.t.runner = o.Runner
	part, err := b.describe(t.Context())
	require.NoError(t, err)
	_, err = b.pushWAL(t.Context(), part)
	require.NoError(t, err)
	part.WALResourceManagers = nil
	require.NoError(t, tidyRepo(w))
	return w, part
}

// bulk makes a cluster whose copying takes a moment.
func bulk(t testing.TB) *lab.PG {
	p := lab.Postgres(t, lab.WithInitDB("--wal-segsize=1"))
	p.Psql("create table bulk as select i, md5(i::text) || md5((i*3)::text) x from generate_series(1, 120000) i")
	return p
}

// TestWhatTheServerDoesWhilePgBackRestCopies makes and drops what the copy cannot bring
// back, and what it can.
func TestWhatTheServerDoesWhilePgBackRestCopies(t *testing.T) {
	p := bulk(t)
	before, err := p.Mkdir("before")
	require.NoError(t, err)
	space, err := p.Mkdir("odd name $x")
	require.NoError(t, err)
	p.Psql("create tablespace old location '" + before + "'")
	p.Psql("create database moving")
	for _, c := range []struct {
		name string
		sql  []string
		says []string
	}{
		{"a tablespace is made", []string{"create tablespace made location '" + space + "'", "create table away (i int) tablespace made", "insert into away values (1)"},
			[]string{`tablespace "made" (`, fmt.Sprintf("made at %q", space)}},
		{"a tablespace comes and goes", []string{"drop table away", "drop tablespace made"}, []string{"tablespace ", "was dropped"}},
		{"a database is copied", []string{"create database twin strategy file_copy"}, []string{`database "twin" (`, "copying the files of database 1 "}},
		{"a database moves", []string{"alter database moving set tablespace old"}, []string{`database "moving" (`, "was made by copying"}},
	} {
		w, part, err := during(t, p, func() {
			for _, sql := range c.sql {
				p.Psql(sql)
			}
		})
		require.Nil(t, part, c.name)
		saysWith(t, err, append(c.says, "while pgBackRest copied", "a retry begins anew")...)
		require.False(t, stage.IsPermanent(err), "%s: %v", c.name, err)
		require.NoError(t, os.RemoveAll(filepath.Dir(w.Dir)))
	}
	// What it can; and it is the retry of all the above.
	w, part, err := during(t, p, func() {
		p.Psql("create database logged strategy wal_log tablespace old")
		p.PsqlIn("logged", "create table t as select generate_series(1, 500) i")
		p.Psql("drop database twin")
		p.Psql("alter tablespace old rename to renamed")
	})
	require.NoError(t, err)
	require.Empty(t, verify(t, part, entries(t, w, part)))
	port := p.Port
	require.NoError(t, p.Stop())
	require.NoError(t, os.RemoveAll(before))
	r, target := restore(t, w, part)
	require.NotContains(t, strings.Join(r.Before, "\n"), "tablespace")
	require.Empty(t, r.Warnings)
	// The scan ends where recovery does: what lies behind the backup's end is not replayed.
	live := filepath.Join(place(t), "live")
	require.NoError(t, os.Mkdir(live, 0o755))
	require.NoError(t, os.Lchown(live, int(p.User().Uid), int(p.User().Gid)))
	writeBehindTheEnd(t, p.BinDir, filepath.Join(r.DataDir, "pg_wal", part.StopWAL), part, live)
	s := start(t, r, port)
	require.NoFileExists(t, filepath.Join(r.DataDir, "pg_tblspc", "999999"))
	left, err := os.ReadDir(live)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Equal(t, "500", s.query("logged", "select count(*) from t"))
	require.Equal(t, "0", s.query("postgres", "select count(*) from pg_database where datname = 'twin'"))
	require.Contains(t, s.query("postgres", "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'renamed'"), target+"/tablespaces/")
}

// TestAnOlderSetWithATablespaceInItsWAL: verify names it, a restore never touches the
// original's directory, and elsewhere the steps that it tells lead to the rows.
func TestAnOlderSetWithATablespaceInItsWAL(t *testing.T) {
	p := bulk(t)
	space, err := p.Mkdir("odd name $x")
	require.NoError(t, err)
	dropped, err := p.Mkdir("dropped")
	require.NoError(t, err)
	p.Psql("create tablespace old location '" + dropped + "'")
	w, part := older(t, p, func() {
		p.Psql("create tablespace made location '" + space + "'")
		p.Psql("create table away (i int primary key) tablespace made; insert into away select generate_series(1, 100)")
		p.Psql("create database twin strategy file_copy")
		p.Psql("drop tablespace old")
		p.Psql("set allow_in_place_tablespaces = on; create tablespace inside location ''")
		p.Psql("create table within tablespace inside as select 7 i")
	})
	p.Psql("insert into away select generate_series(101, 200)")

	list := entries(t, w, part)
	var said []string
	for _, d := range verify(t, part, list) {
		require.True(t, d.Restorable, d.Problem)
		find(t, list, d.Entry)
		said = append(said, d.Problem)
	}
	require.Len(t, said, 4)
	for i, words := range []string{fmt.Sprintf("made at %q", space), "copying the files of database 1 ", "was dropped", "within the data directory"} {
		require.Contains(t, said[i], words)
	}

	target := filepath.Join(place(t), "postgres")
	require.NoError(t, os.Mkdir(target, 0o700))
	try := func() (*Restored, error) {
		return Restore(t.Context(), RestoreOptions{Part: part, Repo: w.RepoDir(), Target: target, ConfigFrom: w.ConfigDir(), Runner: keptRunner{}})
	}
	refused := func() {
		t.Helper()
		_, err := try()
		permanentWith(t, err, fmt.Sprintf("%q", space), "exists on this host", "another set")
		left, err := os.ReadDir(target)
		require.NoError(t, err)
		require.Empty(t, left)
	}
	refused()
	require.Equal(t, "200", p.Psql("select count(*) from away"))
	port := p.Port
	require.NoError(t, p.Stop())
	away := space + " away"
	require.NoError(t, os.Rename(space, away))
	require.NoError(t, os.Symlink(away, space)) // through a link, and a dangling one
	refused()
	require.NoError(t, os.Rename(away, space+" further"))
	refused()
	require.NoError(t, os.Remove(space))

	r, err := try()
	require.NoError(t, err)
	require.Len(t, r.Warnings, 3)
	require.Contains(t, strings.Join(r.Warnings, "\n"), "pg_amcheck")
	require.Len(t, r.Before, 4) // two of them of every quiet server
	for _, step := range r.Before[:2] {
		if strings.Contains(step, "mkdir") { // taken meanwhile: the step fails, as it says
			require.NoError(t, os.Mkdir(space, 0o700))
			require.Error(t, exec.Command("sh", "-c", commandOf(t, step)).Run())
			require.NoError(t, os.Remove(space))
		}
		out, err := exec.Command("sh", "-c", commandOf(t, step)).CombinedOutput()
		require.NoError(t, err, "%s: %s", step, out)
	}
	s := start(t, r, port)
	require.Equal(t, "100", s.query("postgres", "select count(*) from away"))
	require.Equal(t, "7", s.query("postgres", "select i from within"))
	require.Equal(t, "1", s.query("twin", "select 1"))
	require.Equal(t, "0", s.query("postgres", "select count(*) from pg_tablespace where spcname = 'old'"))
}

// commandOf takes the command out of a step.
func commandOf(t testing.TB, step string) string {
	_, command, ok := strings.Cut(step, ": ")
	require.True(t, ok, step)
	return regexp.MustCompile(` \(if this says.*`).ReplaceAllString(command, "")
}

// writeBehindTheEnd puts a record into the restored WAL right behind the one of the
// backup's end, as another session may write one before the segment is switched. It makes
// a tablespace in a directory that is there.
func writeBehindTheEnd(t testing.TB, bin, path string, part *set.Postgres, live string) {
	content := []byte(read(t, path))
	stop, err := parseLSN(part.StopLSN)
	require.NoError(t, err)
	seg, err := parseSegment(part.StopWAL, part.WALSegmentSize)
	require.NoError(t, err)
	base := seg.number * uint64(part.WALSegmentSize)
	last := content[stop-base:]
	if (stop-base)%walPage == 0 {
		last = last[walShortHead:]
	}
	require.Equal(t, []byte{infoSwitch, rmXLOG}, last[16:18])
	b := &walBuilder{base: base, page: walPage, seg: int(part.WALSegmentSize), out: content[: stop-base : stop-base]}
	record := recordOf(rmTablespace, infoTablespaceCreate, last[8:16], tablespaceData(999999, live))
	b.header(0, 0)
	b.write(record)
	copy(content[stop-base:], b.out[stop-base:])
	require.NoError(t, os.WriteFile(path, content, 0o600))
	// PostgreSQL's tool takes the record as it takes its own.
	out, err := exec.Command(filepath.Join(bin, "pg_waldump"), "-p", filepath.Dir(path), "-s", part.StopLSN, "-n", "1").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), fmt.Sprintf("CREATE 999999 %q", live))
}

// TestAServerThatWasStopped: a checkpoint of a shutdown cancels a backup, and a crash may
// overwrite the rest of a record.
func TestAServerThatWasStopped(t *testing.T) {
	p := lab.Postgres(t, lab.WithInitDB("--wal-segsize=1"), lab.WithConf("wal_keep_size = 200MB", "full_page_writes = off"))
	start := p.Psql("checkpoint; select redo_lsn from pg_control_checkpoint()")
	p.Psql("create table t as select generate_series(1, 1000) i; select pg_logical_emit_message(true, 'x', repeat('y', 3000000))")
	last := p.Psql("select pg_walfile_name(pg_current_wal_lsn())")
	require.NoError(t, p.Kill9())
	require.NoError(t, os.Remove(filepath.Join(p.DataDir, "pg_wal", last)))
	require.NoError(t, p.Start())
	stop := p.Psql("create table u (i int); select pg_switch_wal()")
	s := &walSample{part: walPart(t, start, stop, 1<<20, 150000, p.Psql("select system_identifier from pg_control_system()"))}
	names, err := segmentNames(s.part.StartWAL, s.part.StopWAL, 1<<20)
	require.NoError(t, err)
	for _, name := range names {
		s.segments = append(s.segments, []byte(read(t, filepath.Join(p.DataDir, "pg_wal", name))))
	}
	dump := exec.Command(filepath.Join(p.BinDir, "pg_waldump"), "-p", filepath.Join(p.DataDir, "pg_wal"), "-s", start, "-e", stop)
	out, err := dump.Output()
	require.NoError(t, err)
	s.dump(t, bytes.NewReader(out))
	require.Contains(t, string(out), "OVERWRITE_CONTRECORD")
	require.Contains(t, string(out), "CHECKPOINT_SHUTDOWN")
	h, records := s.scan(t, orderOf(len(s.segments)), func() int { return 4096 })
	require.Contains(t, h.problem, "the server was stopped there")
	n := strings.Count(string(out[:bytes.Index(out, []byte("OVERWRITE_CONTRECORD"))]), "\n")
	require.Greater(t, len(records), n)
	same(t, s.records[:len(records)], records)
}
