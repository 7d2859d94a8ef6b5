package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// restore measures the way back: from our archive, by pgBackRest from its repository, and
// by pgBackRest from an archive of its repository that has to be unpacked first.
func (b *bench) restore(ctx context.Context) (err error) {
	pg, err := b.cluster(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	p, err := b.startProduct("restore", pg)
	if err != nil {
		return err
	}
	say("making the set and the repository to restore")
	o, err := p.backUp(ctx)
	err = errors.Join(err, p.stop())
	if err != nil {
		return err
	}
	r, err := b.rivals(pg, "restores")
	if err != nil {
		return err
	}
	source := r.backrest("", "source", ourOptions(), true)
	if err := source.prepare(); err != nil {
		return err
	}
	if _, err := source.run(ctx); err != nil {
		return err
	}
	ours := p.restoring(o)
	repo := r.restoring("pgbackrest restore, from its repository", "restored", filepath.Join(r.dir, "source"), "")
	packed := r.restoring("tar xzf of its repository, pgbackrest restore", "unpacked", filepath.Join(r.dir, "unpacked"),
		"tar xzf "+quoted(filepath.Join(r.dir, "source", "out.tar.gz"))+"; ")
	if err := alternate(ctx, b.rounds, []*contender{ours, repo, packed}); err != nil {
		return err
	}
	b.report.section("Restore of PostgreSQL (ours reads and checks every byte of the set before it writes)", ours, repo, packed)
	return errors.Join(p.removeSets(), os.RemoveAll(r.dir), os.RemoveAll(p.dir))
}

func (p *product) restoring(o *outcome) *contender {
	target := p.path("target")
	return &contender{name: "worker restore", prepare: func() error { return os.RemoveAll(target) }, run: func(ctx context.Context) (sample, error) {
		cmd := exec.Command(p.program("worker"), "restore", o.set, "--dir", p.path("backup"), "--target", target, "--only", "postgres")
		cmd.Env = environment()
		var s sample
		var err error
		done, peak := make(chan struct{}), make(<-chan int64)
		s.cpu, err = executeWatched(ctx, cmd, func(pid int) { peak = watchMemory(pid, done) })
		close(done)
		if err != nil {
			return s, err
		}
		s.memory = <-peak
		s.bytes, err = treeSize(filepath.Join(target, "postgres"))
		return s, err
	}}
}

func (r *rivals) restoring(title, name, repo, before string) *contender {
	return &contender{name: title, prepare: func() error { return r.fresh(name) }, run: func(ctx context.Context) (sample, error) {
		data := filepath.Join(r.dir, name, "data")
		s, err := r.shell(ctx, name, before+fmt.Sprintf("mkdir -m 700 data; pgbackrest --no-config --stanza=bench --pg1-path=%s --repo1-path=%s/repo --lock-path=%s/lock "+
			"--log-level-file=off --log-level-console=warn --process-max=%d --type=none restore", quoted(data), repo, filepath.Join(r.dir, name), runtime.NumCPU()))
		if err == nil {
			s.bytes, err = treeSize(data)
		}
		return s, err
	}}
}
