package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"catalog-backup/shared/lab"
	data "catalog-backup/shared/lab/sample"
)

// corpusOnce loads the text that the data sets are made of, when one must be made.
type corpusOnce struct {
	once sync.Once
	c    *data.Corpus
	err  error
}

func (o *corpusOnce) get() (*data.Corpus, error) {
	o.once.Do(func() {
		out, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			o.err = fmt.Errorf("go env GOROOT: %w", err)
			return
		}
		o.c, o.err = data.LoadCorpus(filepath.Join(strings.TrimSpace(string(out)), "src"), "/usr/share/doc")
	})
	return o.c, o.err
}

// complete marks a data set that was made to its end.
const complete = "complete"

// cached gives the folder of a data set, made by `make` when it is not there. Another
// bench that makes it meanwhile is refused.
func (b *bench) cached(name string, build func(dir string) error) (string, error) {
	dir := filepath.Join(b.dir, fmt.Sprintf("%s-%gGB", name, b.size))
	if _, err := os.Stat(filepath.Join(dir, complete)); err == nil {
		return dir, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	at := time.Now()
	say("making the data set %s (once)", dir)
	if err := build(dir); err != nil {
		return "", err
	}
	say("made in %.0f s", time.Since(at).Seconds())
	return dir, os.WriteFile(filepath.Join(dir, complete), nil, 0o644)
}

// cluster starts the PostgreSQL that is measured, after it was made.
func (b *bench) cluster(ctx context.Context) (*lab.PG, error) {
	dir, err := b.cached("postgres", func(dir string) error { return b.makeCluster(ctx, dir) })
	if err != nil {
		return nil, err
	}
	return lab.StartPostgres(lab.PGOptions{Dir: dir, Durable: true, Conf: []string{"shared_buffers = 128MB"}})
}

func (b *bench) makeCluster(ctx context.Context, dir string) error {
	text, err := b.text.get()
	if err != nil {
		return err
	}
	pg, err := lab.StartPostgres(lab.PGOptions{Dir: dir, Conf: []string{"wal_level = minimal", "max_wal_senders = 0", "max_wal_size = 8GB",
		"shared_buffers = 512MB", "autovacuum = off", "full_page_writes = off"}})
	if err != nil {
		return err
	}
	defer func() { _ = pg.Close() }()
	total := int64(b.size * 1e9)
	say("  pgbench's tables")
	// 15 MB a unit; a tenth of the data is theirs.
	cmd := pg.Command("pgbench", "-q", "-i", "-s", fmt.Sprint(max(1, total/10/15e6)))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench: %w: %s", err, out)
	}
	if err := text.Bulk(ctx, pg.DSN(), total-total/10, func(what string) { say("  %s", what) }); err != nil {
		return err
	}
	return pg.Stop()
}
