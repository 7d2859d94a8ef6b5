package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/lab"
)

// files measures application files against tar czf. Ours are the stages that read them
// (prepare, archive) in a run on an all but empty server.
func (b *bench) files(ctx context.Context) (err error) {
	dir, err := b.cached("files", func(dir string) error {
		text, err := b.text.get()
		if err != nil {
			return err
		}
		return text.BulkTree(filepath.Join(dir, "site_data"), int64(b.size*1e9/4))
	})
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "site_data")
	pg, err := lab.StartPostgres(lab.PGOptions{Dir: filepath.Join(b.work, "small")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	p, err := b.startProduct("files", pg, tree)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	ours := &contender{name: "ours: stages prepare and archive", prepare: p.removeSets, run: func(ctx context.Context) (sample, error) {
		before := treeCPU(p.worker.Process.Pid)
		o, err := p.backUp(ctx)
		if err != nil {
			return sample{}, err
		}
		s := sample{cpu: treeCPU(p.worker.Process.Pid) - before, stages: o.stages, memory: peakMemory(p.worker.Process.Pid)}
		took := timed(unix.Sync)
		s.seconds = o.stages["prepare"] + o.stages["archive"] + took
		s.bytes, err = o.size()
		return s, err
	}}
	out := filepath.Join(b.work, "files.tar.gz")
	tar := &contender{name: "tar czf", prepare: func() error { return remove(out) }, run: func(ctx context.Context) (sample, error) {
		used, err := execute(ctx, command("tar", "czf", out, "-C", dir, "site_data"))
		s := sample{cpu: used}
		if err == nil {
			s.bytes, err = treeSize(out)
		}
		return s, err
	}}
	if err := alternate(ctx, b.rounds, []*contender{ours, tar}); err != nil {
		return err
	}
	n, err := treeSize(tree)
	if err != nil {
		return err
	}
	b.report.section(fmt.Sprintf("Files: %.0f MB, a third logs, a third small files, a third compressed already", float64(n)/1e6), ours, tar)
	return errors.Join(p.removeSets(), os.RemoveAll(p.dir), remove(out))
}
