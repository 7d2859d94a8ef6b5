package postgres

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// slowRunner stops pgbackrest's backup at its first sign of life, so that
// something can be done in the middle of it.
type slowRunner struct {
	keptRunner
	w      Work
	during func(pids []int)
}

func (s slowRunner) Run(ctx context.Context, c Command) error {
	if c.Args[len(c.Args)-1] != "backup" {
		return s.keptRunner.Run(ctx, c)
	}
	seen := make(chan struct{})
	c.Stdout = &trigger{Writer: c.Stdout.(*lineWriter), word: []byte("backup start archive"), fire: func() { close(seen) }}
	go func() {
		select {
		case <-seen:
			pids := tools(s.w)
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGSTOP)
			}
			s.during(pids)
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		case <-ctx.Done():
		}
	}()
	return s.keptRunner.Run(ctx, c)
}

// tools lists the processes of pgBackRest that work for w.
func tools(w Work) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if bytes.Contains(cmdline, []byte("pgbackrest\x00")) && bytes.Contains(cmdline, []byte(w.Repo)) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

type trigger struct {
	Writer *lineWriter
	word   []byte
	fire   func()
	fired  bool
}

func (w *trigger) Write(p []byte) (int, error) {
	if !w.fired && bytes.Contains(p, w.word) {
		w.fired = true
		w.fire()
	}
	return w.Writer.Write(p)
}

// interrupted runs a backup that something happens to, and gives its error.
func interrupted(t *testing.T, ctx context.Context, p *lab.PG, during func(pids []int)) error {
	t.Helper()
	o := options(p)
	w := newWork(t)
	f, _, err := Preflight(t.Context(), o, w)
	require.NoError(t, err)
	o.Runner = slowRunner{w: w, during: during}
	begun := time.Now()
	_, _, err = Backup(ctx, o, w, f, stage.NoProgress{})
	require.Error(t, err)
	require.Less(t, time.Since(begun), 20*time.Second)
	noTools(t, w)
	return err
}

// noTools asserts that no pgBackRest of this work is left.
func noTools(t *testing.T, w Work) {
	t.Helper()
	require.Eventually(t, func() bool { return len(tools(w)) == 0 }, 2*time.Second, 20*time.Millisecond, "a pgbackrest is left")
}

func TestInterrupted(t *testing.T) {
	p := lab.Postgres(t, lab.WithInitDB("--wal-segsize=1"))
	p.Psql("create table big as select i, md5(i::text) x from generate_series(1, 50000) i")

	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		var at time.Time
		err := interrupted(t, ctx, p, func([]int) { at = time.Now(); cancel(errTest) })
		require.ErrorIs(t, err, errTest)
		require.Less(t, time.Since(at), 2*time.Second)
		require.False(t, stage.IsPermanent(err))
		noSlots(t, p)
	})
	t.Run("pgbackrest killed", func(t *testing.T) {
		err := interrupted(t, t.Context(), p, func(pids []int) {
			require.NotEmpty(t, pids)
			_ = syscall.Kill(pids[0], syscall.SIGKILL) // the main one: started first
		})
		require.False(t, stage.IsPermanent(err), err)
		noSlots(t, p)
	})
	t.Run("replication connection ended", func(t *testing.T) {
		err := interrupted(t, t.Context(), p, func([]int) {
			p.Psql("select pg_terminate_backend(pid) from pg_stat_replication")
			time.Sleep(time.Second) // longer than the watch's interval: what is tested
		})
		saysWith(t, err, "replication connection")
		require.False(t, stage.IsPermanent(err), err)
	})
	t.Run("WAL lost", func(t *testing.T) {
		p.Psql("alter system set max_slot_wal_keep_size = '2MB'")
		p.Psql("alter system set max_wal_size = '2MB'")
		p.Psql("alter system set min_wal_size = '2MB'")
		p.Psql("select pg_reload_conf()")
		err := interrupted(t, t.Context(), p, func([]int) {
			for range 12 {
				p.Psql("create table x as select generate_series(1, 20000); drop table x; select pg_switch_wal()")
			}
			p.Psql("checkpoint")
			time.Sleep(time.Second)
		})
		permanentWith(t, err, "max_slot_wal_keep_size", "ALTER SYSTEM")
		p.Psql("alter system reset all")
		p.Psql("select pg_reload_conf()")
	})
	t.Run("PostgreSQL restarted", func(t *testing.T) {
		err := interrupted(t, t.Context(), p, func([]int) {
			require.NoError(t, p.Kill9())
			require.NoError(t, p.Start())
			time.Sleep(time.Second)
		})
		require.False(t, stage.IsPermanent(err), err)
		saysWith(t, err, "retry")
		noSlots(t, p)
	})
	t.Run("another pgBackRest", func(t *testing.T) {
		err := interrupted(t, t.Context(), p, func([]int) {
			o := options(p)
			w := newWork(t)
			f, _, err := Preflight(t.Context(), o, w)
			require.NoError(t, err)
			_, _, err = Backup(t.Context(), o, w, f, stage.NoProgress{})
			saysWith(t, err, "another pgBackRest")
			require.False(t, stage.IsPermanent(err), err)
			p.Psql("select pg_terminate_backend(pid) from pg_stat_replication")
			time.Sleep(time.Second)
		})
		require.Error(t, err)
	})
	w := newWork(t)
	part, _ := backUp(t, options(p), w)
	require.Empty(t, verify(t, part, entries(t, w, part)))
}

func TestNoSpace(t *testing.T) {
	p := lab.Postgres(t)
	p.Psql("create table big as select i, md5(i::text) x, md5((i*3)::text) y from generate_series(1, 300000) i")
	o := options(p)
	o.CompressType = "none"
	w := newWork(t)
	mount(t, w.Repo, "40m")
	_, _, err := Preflight(t.Context(), o, w)
	permanentWith(t, err, "MB free", w.Repo)
	ok := newWork(t)
	f, _, err := Preflight(t.Context(), o, ok)
	require.NoError(t, err)
	_, _, err = Backup(t.Context(), o, w, f, stage.NoProgress{})
	permanentWith(t, err, "full")
	noSlots(t, p)
	noTools(t, w)
}

func mount(t *testing.T, dir, size string) {
	t.Helper()
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
}

func TestCorruptPage(t *testing.T) {
	p := lab.Postgres(t)
	p.Psql(`create database shop`)
	p.PsqlIn("shop", `create schema "S x"; create table "S x".orders as select i, md5(i::text) x from generate_series(1, 20000) i; checkpoint`)
	path := p.PsqlIn("shop", `select pg_relation_filepath('"S x".orders')`)
	require.NoError(t, p.Stop())
	file, err := os.OpenFile(filepath.Join(p.DataDir, path), os.O_RDWR, 0)
	require.NoError(t, err)
	for _, page := range []int64{3, 7, 8} {
		_, err = file.WriteAt([]byte("damaged"), page*8192+4000)
		require.NoError(t, err)
	}
	require.NoError(t, file.Close())
	require.NoError(t, p.Start())

	o := options(p)
	w := newWork(t)
	f, _, err := Preflight(t.Context(), o, w)
	require.NoError(t, err)
	_, _, err = Backup(t.Context(), o, w, f, stage.NoProgress{})
	permanentWith(t, err, `"shop"."S x"."orders"`, path, "blocks 3, 7-8", "allow_corrupt_pages")

	o.AllowCorruptPages = true
	w = newWork(t)
	part, found := backUp(t, o, w)
	require.Len(t, found.Warnings, 1)
	require.Contains(t, found.Warnings[0], "orders")
	require.Equal(t, []set.PageError{{File: "pg_data/" + path, Relation: `"shop"."S x"."orders"`, Blocks: "3, 7-8"}}, part.PageErrors)
	require.Empty(t, verify(t, part, entries(t, w, part)))
}

// TestOtherRepositoryIsLeftAlone backs up a server that archives with pgBackRest
// to a repository of its own.
func TestOtherRepositoryIsLeftAlone(t *testing.T) {
	dir := place(t)
	conf := filepath.Join(dir, "other.conf")
	p := lab.Postgres(t, lab.WithInitDB("--wal-segsize=1"), lab.WithConf("archive_mode = on",
		"archive_command = 'pgbackrest --config="+conf+" --stanza=catalog archive-push %p'"))
	require.NoError(t, os.WriteFile(conf, []byte("[global]\nrepo1-path="+dir+"/repo\nlog-level-file=off\nlock-path="+dir+"/lock\nspool-path="+dir+"/spool\nlog-path="+dir+"\n[catalog]\npg1-path="+p.DataDir+
		"\npg1-socket-path="+p.SocketDir+"\npg1-port="+strconv.Itoa(p.Port)+"\n"), 0o644))
	require.NoError(t, os.Chown(dir, int(p.User().Uid), -1))
	other := func(args ...string) {
		out, err := p.Command("/usr/bin/pgbackrest", append([]string{"--config=" + conf, "--stanza=catalog"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	other("stanza-create")
	other("check")
	w := newWork(t)
	part, _ := backUp(t, options(p), w)
	require.Empty(t, verify(t, part, entries(t, w, part)))
	other("check")
	require.Equal(t, "t", p.Psql("select failed_count = 0 or last_archived_time > last_failed_time from pg_stat_archiver"))
	require.NoDirExists(t, filepath.Join(dir, "repo", "backup", "catalog", part.Label))
}

func TestChecksumsOffIsANote(t *testing.T) {
	p := lab.Postgres(t, lab.WithoutChecksums())
	_, found, err := Preflight(t.Context(), options(p), newWork(t))
	require.NoError(t, err)
	require.Empty(t, found.Warnings)
	require.Contains(t, strings.Join(found.Notes, " "), "checksums are off")
}

func TestRefusals(t *testing.T) {
	p := lab.Postgres(t, lab.WithTCP())
	w := newWork(t)
	refused := func(t *testing.T, change func(*Options)) error {
		t.Helper()
		o := options(p)
		change(&o)
		_, _, err := Preflight(t.Context(), o, w)
		require.Error(t, err)
		return err
	}
	dsn := func(text string) func(*Options) { return func(o *Options) { o.DSN = text } }

	err := refused(t, dsn("host="+place(t)+" user=postgres"))
	saysWith(t, err, "no server answers")
	require.False(t, stage.IsPermanent(err))
	permanentWith(t, refused(t, dsn("host=x port=notaport password=hunter2")), "postgres.dsn")
	require.NotContains(t, refused(t, dsn("host=x port=notaport password=hunter2")).Error(), "hunter2")
	permanentWith(t, refused(t, dsn(strings.Replace(p.DSN(), "dbname=postgres", "dbname=nowhere", 1))), "dbname")
	permanentWith(t, refused(t, func(o *Options) { o.PgBackRest = "/nowhere/pgbackrest" }), "apt-get install pgbackrest")
	permanentWith(t, refused(t, func(o *Options) { o.CompressType = "rar" }), "rar")

	p.Psql("create role plain login; create role copies login replication; create role reader login replication; grant pg_read_all_settings to reader")
	as := func(role string) func(*Options) {
		return dsn(strings.Replace(p.DSN(), "user=postgres", "user="+role, 1))
	}
	permanentWith(t, refused(t, as("plain")), `ALTER ROLE "plain" REPLICATION`)
	permanentWith(t, refused(t, as("copies")), "pg_read_all_settings")
	permanentWith(t, refused(t, as("reader")), "superuser")

	p.Psql("grant execute on function pg_backup_start(text, boolean) to reader; revoke connect on database postgres from public; grant connect on database postgres to reader")
	err = refused(t, as("reader"))
	permanentWith(t, err, "superuser")

	script := func(text string) string {
		path := filepath.Join(place(t), "pgbackrest")
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755))
		require.NoError(t, os.Chmod(path, 0o755))
		return path
	}
	permanentWith(t, refused(t, func(o *Options) { o.PgBackRest = script("echo pgBackRest 2.30") }), "too old")
	permanentWith(t, refused(t, func(o *Options) { o.PgBackRest = script("echo pgBackRest 2.39.1") }), "PostgreSQL 15 is newer")
	permanentWith(t, refused(t, func(o *Options) { o.PgBackRest = script("echo hello") }), "right program")

	closed := newWork(t)
	require.NoError(t, os.Chmod(filepath.Dir(closed.Repo), 0o700))
	_, _, err = Preflight(t.Context(), options(p), closed)
	permanentWith(t, err, "cannot enter "+filepath.Dir(closed.Repo), "chmod o+x")

	// As it is when a container's server names a path that is another cluster here.
	f, _, err := Preflight(t.Context(), options(p), w)
	require.NoError(t, err)
	f.DataDirectory = lab.Postgres(t).DataDir
	permanentWith(t, f.checkDataDirectory(), "belongs to another cluster", f.DataDirectory)
	f.DataDirectory = "/nowhere"
	permanentWith(t, f.checkDataDirectory(), "run the worker where the server runs")

	for slot := range 10 {
		p.Psql("select pg_create_physical_replication_slot('s" + strconv.Itoa(slot) + "')")
	}
	err = refused(t, func(*Options) {})
	saysWith(t, err, "no free replication slot", "max_replication_slots")
	p.Psql("select pg_drop_replication_slot(slot_name) from pg_replication_slots")

	f.Port = 1
	permanentWith(t, f.findSocket(p.SocketDir+", /tmp"), "unix_socket_directories")
	for _, c := range []struct{ setting, remedy string }{
		{"wal_level = minimal\nmax_wal_senders = 0", "wal_level"},
		{"max_wal_senders = 0", "max_wal_senders"},
		{"max_replication_slots = 0", "max_replication_slots"},
	} {
		q := lab.Postgres(t, lab.WithTCP())
		require.NoError(t, q.Stop())
		appendTo(t, filepath.Join(q.DataDir, "postgresql.conf"), c.setting+"\n")
		require.NoError(t, q.Start())
		_, _, err := Preflight(t.Context(), options(q), w)
		permanentWith(t, err, c.remedy)
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, file.Close())
}

func TestRefusedByHBAAndStandby(t *testing.T) {
	p := lab.Postgres(t, lab.WithHBA("local all all trust"))
	_, _, err := Preflight(t.Context(), options(p), newWork(t))
	permanentWith(t, err, "local  replication  postgres  peer", "pg_hba.conf")

	require.NoError(t, p.Stop())
	require.NoError(t, os.WriteFile(filepath.Join(p.DataDir, "standby.signal"), nil, 0o644))
	require.NoError(t, p.Start())
	_, _, err = Preflight(t.Context(), options(p), newWork(t))
	permanentWith(t, err, "standby", "primary")
}
