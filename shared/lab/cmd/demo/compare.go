package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/lab/sample"
	"catalog-backup/shared/set"
)

// promoted tells, by nil, that a server serves and has ended its recovery.
func promoted(ctx context.Context, dsn string) error {
	c, err := sample.Connect(ctx, dsn, "postgres")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	var recovering bool
	if err := c.QueryRow(ctx, "select pg_is_in_recovery()").Scan(&recovering); err != nil {
		return err
	}
	if recovering {
		return errors.New("it is still recovering")
	}
	return nil
}

// check is one comparison: what it proved, or how it went wrong.
type check struct {
	what string
	do   func(context.Context) (proved string, wrong []string, err error)
}

// compare does all comparisons and prints them as a table; one that fails fails the demo
// after all are done.
func (d *demo) compare(ctx context.Context) error {
	var read struct{ source, restored *sample.Bus }
	checks := []check{
		{"rows", d.rows},
		{"rows written meanwhile", d.liveRows},
		{"definitions", d.definitions},
		{"indexes", d.indexes},
		{"records", func(ctx context.Context) (string, []string, error) {
			var err error
			if read.source, err = sample.ReadBus(ctx, d.manifest.EventBus, seeds(d.bus)...); err != nil {
				return "", nil, err
			}
			if read.restored, err = sample.ReadBus(ctx, nil, seeds(d.newBus)...); err != nil {
				return "", nil, err
			}
			wrong := sample.Differences(read.source.Digests, read.restored.Digests)
			return fmt.Sprintf("%d in %d partitions: equal, in order, up to the cut", read.restored.Records, len(read.restored.Digests)), wrong, nil
		}},
		{"events of restored rows", func(ctx context.Context) (string, []string, error) { return d.liveEvents(ctx, read.restored) }},
		{"positions", func(context.Context) (string, []string, error) {
			if read.restored == nil {
				return "", nil, errors.New("the records could not be read")
			}
			wrong := sample.Differences(read.source.Next, read.restored.Next)
			return fmt.Sprintf("%d: each group reads the same record next", len(read.restored.Next)), wrong, nil
		}},
		{"topic settings, access rules", func(context.Context) (string, []string, error) {
			if read.restored == nil {
				return "", nil, errors.New("the records could not be read")
			}
			wrong := append(sample.Differences(read.source.Configs, read.restored.Configs), sample.Differences(read.source.Rules, read.restored.Rules)...)
			return fmt.Sprintf("%d topics, %d rules: equal", len(read.restored.Configs), len(read.restored.Rules)), wrong, nil
		}},
		{"files", d.files},
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	failed := 0
	for _, c := range checks {
		at := time.Now()
		proved, wrong, err := c.do(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		verdict := "proved"
		if len(wrong) > 0 {
			verdict, proved = "WRONG", strings.Join(wrong, "\n\t\t  ")
			failed++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f s\n", verdict, c.what, proved, time.Since(at).Seconds())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d comparisons went wrong", failed, len(checks))
	}
	return nil
}

func (d *demo) rows(ctx context.Context) (string, []string, error) {
	source, _, err := sample.Rows(ctx, d.source.dsn)
	if err != nil {
		return "", nil, err
	}
	restored, n, err := sample.Rows(ctx, d.restored.dsn)
	if err != nil {
		return "", nil, err
	}
	wrong := sample.Differences(source, restored)
	unlogged, err := sample.UnloggedRows(ctx, d.restored.dsn)
	if err == nil && unlogged != "0" {
		wrong = append(wrong, "the unlogged table is not empty")
	}
	return fmt.Sprintf("%d in %d tables and large objects: equal hashes; the unlogged table is there, empty", n, len(restored)), wrong, err
}

// liveRows compares the table that was written during the backup: it ends at one point
// between the backup's begin and its end, and holds all rows up to there.
func (d *demo) liveRows(ctx context.Context) (string, []string, error) {
	n, hash, err := sample.LiveRows(ctx, d.restored.dsn, 0)
	if err != nil {
		return "", nil, err
	}
	if n < d.before || n > d.after {
		return "", []string{fmt.Sprintf("%d rows came back; %d were committed before the backup and %d after it", n, d.before, d.after)}, nil
	}
	_, want, err := sample.LiveRows(ctx, d.source.dsn, n)
	if err != nil {
		return "", nil, err
	}
	if hash != want {
		return "", []string{fmt.Sprintf("the first %d rows differ", n)}, nil
	}
	return fmt.Sprintf("1…%d without a hole, equal (%d were there at the start, %d at the end)", n, d.before, d.after), nil, nil
}

// liveEvents proves the order across the two halves of the set: row n was committed
// before event n was published, and the bus is cut after PostgreSQL, so no restored row
// may miss its event, but for one that was under way.
func (d *demo) liveEvents(ctx context.Context, restored *sample.Bus) (string, []string, error) {
	if restored == nil {
		return "", nil, errors.New("the records could not be read")
	}
	rows, _, err := sample.LiveRows(ctx, d.restored.dsn, 0)
	if err != nil {
		return "", nil, err
	}
	last, err := strconv.ParseInt(restored.LastValue[sample.LiveTopic+"/0"], 10, 64)
	if err != nil {
		return "", nil, fmt.Errorf("the last event of %s: %w", sample.LiveTopic, err)
	}
	if last+1 < rows {
		return "", []string{fmt.Sprintf("row %d came back, but the last event is %d", rows, last)}, nil
	}
	return fmt.Sprintf("none is missing: last row %d, last event %d", rows, last), nil, nil
}

// definitions compares what pg_dumpall says of everything but the rows.
func (d *demo) definitions(ctx context.Context) (string, []string, error) {
	source, err := d.dumpAll(ctx, d.source)
	if err != nil {
		return "", nil, err
	}
	restored, err := d.dumpAll(ctx, d.restored)
	if err != nil {
		return "", nil, err
	}
	if !bytes.Equal(source, restored) {
		return "", []string{"pg_dumpall --schema-only differs"}, nil
	}
	return fmt.Sprintf("pg_dumpall --schema-only: %d lines, equal", bytes.Count(restored, []byte("\n"))), nil, nil
}

func (d *demo) dumpAll(ctx context.Context, p postgres) ([]byte, error) {
	out, err := d.tool(ctx, p, "pg_dumpall", "--schema-only")
	if err != nil {
		return nil, err
	}
	var kept []string
	for _, line := range strings.Split(string(out), "\n") {
		// The tablespace has moved; \restrict carries a random word.
		if !strings.HasPrefix(line, "CREATE TABLESPACE") && !strings.HasPrefix(line, `\restrict`) && !strings.HasPrefix(line, `\unrestrict`) {
			kept = append(kept, line)
		}
	}
	return []byte(strings.Join(kept, "\n")), nil
}

// indexes lets PostgreSQL's own checker hold every index against its table.
func (d *demo) indexes(ctx context.Context) (string, []string, error) {
	out, err := d.tool(ctx, d.restored, "pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--jobs=2")
	if err != nil {
		return "", nil, err
	}
	if len(bytes.TrimSpace(out)) > 0 {
		return "", []string{string(out)}, nil
	}
	return "pg_amcheck --all --heapallindexed: no complaint", nil, nil
}

// tool runs a client program of PostgreSQL.
func (d *demo) tool(ctx context.Context, p postgres, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, name), append(args, "-h", p.host, "-p", p.port, "-U", "postgres")...)
	cmd.Dir, cmd.Env = "/", environment()
	if cred, err := lab.PostgresUser(); err == nil && cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s%s", name, err, strings.TrimSpace(errs.String()), strings.TrimSpace(out.String()))
	}
	return out.Bytes(), nil
}

func (d *demo) files(context.Context) (string, []string, error) {
	root := d.path("source", "site_data")
	source, _, err := sample.Tree(root, func(path string) bool { return strings.HasSuffix(path, ".tmp") })
	if err != nil {
		return "", nil, err
	}
	restored, n, err := sample.Tree(d.path("restored", "files", root), func(string) bool { return false })
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("%d (%.0f MB): content, modes, owners, times, %d links, attributes: equal", n.Entries, float64(n.Bytes)/1e6, n.Links),
		sample.Differences(source, restored), nil
}

// farewell says what to do next.
func (d *demo) farewell() error {
	fmt.Printf("\nA full backup of a running catalog server came back equal, %.0f s after the demo began.\n\n", time.Since(d.begun).Seconds())
	producer, worker := d.program("producer"), d.program("worker")
	if d.keep {
		if err := os.WriteFile(d.path(keptName), nil, 0o600); err != nil {
			return err
		}
		fmt.Printf(`All of it runs on:
  export CATALOG_BACKUP_CONFIG=%[1]s
  %[2]s status                     how the run went
  %[2]s backup-all --full --wait   another set
  %[2]s list
  %[3]s verify %[4]s
  psql "%[5]s"          the source
  psql "%[6]s"     what was restored
  brokers: %[7]s (source), %[8]s (restored)
Stop and remove it all:
  %[9]s stop %[10]s
`, d.config(), producer, worker, d.set, d.source.dsn, d.restored.dsn, d.bus, d.newBus, filepath.Join(d.top, ".ci", "demo"), d.dir)
		return nil
	}
	fmt.Printf(`The servers are stopped now; the set and what was restored stay until the next demo. To look further:
  %[1]s list --dir %[2]s
  %[1]s verify %[3]s --dir %[2]s
  %[1]s restore %[3]s --dir %[2]s --only files --target %[4]s
  tar tzvf %[2]s/%[5]s | less
  less %[2]s/%[6]s
  less %[2]s/%[8]s     what somebody has who finds nothing but the files
KEEP=1 make demo leaves everything running. Remove it all:
  rm -rf %[7]s
`, worker, d.path("backup"), d.set, d.path("again"), set.ID(d.set).MainName(), set.ID(d.set).ManifestName(), d.dir, set.ID(d.set).TextName())
	return nil
}
