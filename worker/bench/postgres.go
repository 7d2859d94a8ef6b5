package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"catalog-backup/shared/lab"
)

// rivals are the other ways to back up a cluster, each in a folder of its own.
type rivals struct {
	pg  *lab.PG
	dir string // of the user that PostgreSQL runs as
}

func (b *bench) rivals(pg *lab.PG, name string) (*rivals, error) {
	r := &rivals{pg, filepath.Join(b.work, name)}
	return r, r.fresh("")
}

// fresh makes an empty folder that PostgreSQL's user owns; "" is the folder of all.
func (r *rivals) fresh(name string) error {
	dir := filepath.Join(r.dir, name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if cred := r.pg.User(); cred != nil {
		return os.Chown(dir, int(cred.Uid), int(cred.Gid))
	}
	return nil
}

// shell runs a script in one of the folders as PostgreSQL's user, with the server's
// share in the CPU seconds.
func (r *rivals) shell(ctx context.Context, name, script string) (sample, error) {
	cmd := r.pg.Command("/bin/sh", "-euc", script)
	cmd.Dir = filepath.Join(r.dir, name)
	before := treeCPU(r.pg.PID())
	used, err := execute(ctx, cmd)
	return sample{cpu: used + treeCPU(r.pg.PID()) - before}, err
}

// quoted makes a word of a shell script.
func quoted(s string) string { return "'" + s + "'" } // our own paths hold no quotes

// pgbackrest is a script's call of it in the folder `name`. --no-archive-check: the
// server does not archive; --start-fast is for the rival's good.
func (r *rivals) pgbackrest(name, options, command string) string {
	dir := filepath.Join(r.dir, name)
	return fmt.Sprintf("pgbackrest --no-config --stanza=bench --pg1-path=%s --pg1-socket-path=%s --pg1-port=%d --pg1-user=postgres "+
		"--repo1-path=%s/repo --lock-path=%[4]s/lock --log-level-file=off --log-level-console=warn %s %s",
		quoted(r.pg.DataDir), quoted(r.pg.SocketDir), r.pg.Port, dir, options, command)
}

func ourOptions() string {
	return fmt.Sprintf("--process-max=%d --compress-type=zst --compress-level=1 --repo1-bundle --no-resume", runtime.NumCPU())
}

func backupOptions(more string) string {
	return "--no-archive-check --start-fast --repo1-retention-full=9 " + more
}

// baseBackup is (a): pg_basebackup -Fp and tar czf.
func (r *rivals) baseBackup() *contender {
	const name = "basebackup"
	return &contender{name: "(a) pg_basebackup -Fp, tar czf", prepare: func() error { return r.fresh(name) }, run: func(ctx context.Context) (sample, error) {
		s, err := r.shell(ctx, name, quoted(r.pg.BinDir)+"/pg_basebackup -h "+quoted(r.pg.SocketDir)+fmt.Sprintf(" -p %d", r.pg.Port)+
			" -U postgres -D data -Fp -c fast --no-sync; tar czf out.tar.gz data")
		if err == nil {
			s.bytes, err = treeSize(filepath.Join(r.dir, name, "out.tar.gz"))
		}
		return s, err
	}}
}

// backrest is (b) and (c): pgBackRest, with and without tar czf of its repository.
func (r *rivals) backrest(title, name, options string, pack bool) *contender {
	prepare := func() error {
		if err := r.fresh(name); err != nil {
			return err
		}
		_, err := execute(context.Background(), r.pg.Command("/bin/sh", "-euc", r.pgbackrest(name, "--no-online", "stanza-create")))
		return err
	}
	return &contender{name: title, prepare: prepare, run: func(ctx context.Context) (sample, error) {
		script, out := r.pgbackrest(name, backupOptions(options), "--type=full backup"), "repo"
		if pack {
			script, out = script+"; tar czf out.tar.gz repo", "out.tar.gz"
		}
		s, err := r.shell(ctx, name, script)
		if err == nil {
			s.bytes, err = treeSize(filepath.Join(r.dir, name, out))
		}
		return s, err
	}}
}

// whole is our backup, as a person asks for it.
func (p *product) whole(pg *lab.PG) *contender {
	return &contender{name: "our whole backup: archive, manifest, hashes", prepare: p.removeSets, run: func(ctx context.Context) (sample, error) {
		before := treeCPU(p.worker.Process.Pid) + treeCPU(pg.PID())
		o, err := p.backUp(ctx)
		if err != nil {
			return sample{}, err
		}
		s := sample{cpu: treeCPU(p.worker.Process.Pid) + treeCPU(pg.PID()) - before, queue: o.idle(), stages: o.stages, memory: peakMemory(p.worker.Process.Pid)}
		s.bytes, err = o.size()
		return s, err
	}}
}

func (b *bench) postgres(ctx context.Context) (err error) {
	pg, err := b.cluster(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	p, err := b.startProduct("postgres", pg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	r, err := b.rivals(pg, "rivals")
	if err != nil {
		return err
	}
	cluster, err := treeSize(pg.DataDir)
	if err != nil {
		return err
	}
	ours, a := p.whole(pg), r.baseBackup()
	defaults := r.backrest("(b) pgBackRest with its defaults, tar czf", "defaults", "", true)
	alone := r.backrest("(c) pgBackRest alone with our options", "alone", ourOptions(), false)
	if err := alternate(ctx, b.rounds, []*contender{ours, a, defaults, alone}); err != nil {
		return err
	}
	b.report.section(fmt.Sprintf("PostgreSQL: a cluster of %.0f MB", float64(cluster)/1e6), ours, a, defaults, alone)
	ratio := a.median(seconds) / ours.median(seconds)
	b.report.bar("at least 9 times as fast as (a)", ratio >= 9, "%.1f times", ratio)
	ratio = ours.median(seconds) / alone.median(seconds)
	b.report.bar("at most 1.35 times the time of (c)", ratio <= 1.35, "%.2f times", ratio)
	b.report.bar("worker's memory at most 150 MB", ours.peak() <= 150e6, "%.0f MB", float64(ours.peak())/1e6)
	ratio = ours.median(size) / a.median(size)
	b.report.bar("at most 1.1 times the size of (a)", ratio <= 1.1, "%.2f times", ratio)
	b.report.bar("queue overhead at most 1.5 s a run", ours.median(queue) <= 1.5, "%.2f s", ours.median(queue))
	return errors.Join(p.removeSets(), os.RemoveAll(r.dir))
}
