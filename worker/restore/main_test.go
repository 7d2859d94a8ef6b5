package restore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/keeper"
)

// real is a set that the real programs made of real servers. It is made once;
// tests work on copies.
type real struct {
	root   string
	bin    string // directory of both programs
	app    string // the application's files
	extra  string // a configuration file outside of the data directory
	dump   string
	pg     *lab.PG
	bus    *lab.Broker
	set    string
	rows   string // a digest of all tables
	record string // a digest of all records and positions
}

var source *real

func TestMain(m *testing.M) {
	keeper.Hook()
	var err error
	if source, err = makeSet(); err != nil {
		fmt.Fprintln(os.Stderr, "making the set:", err)
		source.close()
		os.Exit(1)
	}
	code := m.Run()
	source.close()
	os.Exit(code)
}

func (r *real) close() {
	if r.pg != nil {
		_ = r.pg.Close()
	}
	if r.bus != nil {
		_ = r.bus.Close()
	}
	_ = os.RemoveAll(r.root)
}

func makeSet() (r *real, err error) {
	r = &real{}
	if r.root, err = os.MkdirTemp("", "cb-restore-"); err != nil {
		return r, err
	}
	if err := os.Chmod(r.root, 0o755); err != nil {
		return r, err
	}
	r.bin, r.app, r.dump = filepath.Join(r.root, "bin"), filepath.Join(r.root, "app"), filepath.Join(r.root, "dump")
	r.extra = filepath.Join(r.root, "etc", "extra.conf")
	for _, step := range []func() error{r.build, r.files, r.database, r.events, r.backUp} {
		if err := step(); err != nil {
			return r, err
		}
	}
	r.rows, err = r.pg.Query(rowsDigest)
	if err == nil {
		r.record, err = busDigest(r.bus)
	}
	return r, err
}

func (r *real) build() error {
	for _, name := range []string{"worker", "producer"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(r.bin, name), "catalog-backup/"+name).CombinedOutput()
		if err != nil {
			return fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return nil
}

// files makes application files with everything that must come back.
func (r *real) files() error {
	var errs []error
	put := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(r.app, name)
		errs = append(errs, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode))
		return path
	}
	put("etc/alation_conf.yaml", strings.Repeat("key: value\n", 2000), 0o640)
	run := put("bin/run", "#!/bin/sh\n", 0o755|os.ModeSetuid)
	put("odd/na\xffme", "not UTF-8", 0o600)
	put("odd/new\nline", "x", 0o400)
	put("empty", "", 0o644)
	tagged := put("tagged", "with an attribute", 0o644)
	errs = append(errs, unix.Setxattr(tagged, "user.origin", []byte("catalog\x00\xff"), 0))
	errs = append(errs, os.Link(run, filepath.Join(r.app, "bin/same")), os.Symlink("../../../etc/passwd", filepath.Join(r.app, "odd/link")))
	sparse := put("sparse", "", 0o644)
	errs = append(errs, os.WriteFile(sparse, []byte("begin"), 0o644), os.Truncate(sparse, 64<<20))
	errs = append(errs, os.MkdirAll(filepath.Join(r.app, "closed/dir"), 0o755), os.Chmod(filepath.Join(r.app, "closed"), 0o500))
	if os.Geteuid() == 0 {
		errs = append(errs, os.Lchown(tagged, 1234, 5678), os.Lchown(filepath.Join(r.app, "odd/link"), 4321, 8765))
	}
	conf := filepath.Join(r.place(), "conf")
	errs = append(errs, os.MkdirAll(conf, 0o750), os.WriteFile(filepath.Join(conf, "site.conf"), []byte("release 5"), 0o640), os.Chmod(filepath.Dir(r.place()), 0o711),
		os.Symlink("srv/releases/5", filepath.Join(r.root, "current")), os.Symlink(conf, filepath.Join(r.root, "alias")))
	then := time.Unix(1_000_000_000, 123_456_789)
	errs = append(errs, os.Chtimes(tagged, then, then), os.Chtimes(filepath.Join(r.app, "closed/dir"), then, then))
	return errors.Join(errs...)
}

// place is what the configured paths linked lead to, and nothing else does.
func (r *real) place() string { return filepath.Join(r.root, "srv/releases/5") }

// linked are configured paths through and of symbolic links, two to one place.
func (r *real) linked() []string {
	return []string{filepath.Join(r.root, "current/conf"), filepath.Join(r.root, "alias")}
}

// rowsDigest is one line that tells of every row and of what else a cluster holds.
const rowsDigest = `select (select count(*)||' '||md5(string_agg(t::text, ',' order by id)) from big t), (select count(*) from spaced),
 (select string_agg(oid||':'||md5(lo_get(oid)), ',') from pg_largeobject_metadata), (select string_agg(datname, ',' order by datname) from pg_database)`

func (r *real) database() (err error) {
	if err := errors.Join(os.MkdirAll(filepath.Dir(r.extra), 0o755), os.WriteFile(r.extra, []byte("work_mem = '5MB'\n"), 0o644)); err != nil {
		return err
	}
	if r.pg, err = lab.StartPostgres(lab.PGOptions{Conf: []string{"include = '" + r.extra + "'", "archive_mode = on", "archive_command = 'touch " + r.root + "/archived'"}}); err != nil {
		return err
	}
	space, err := r.pg.Mkdir("space")
	if err != nil {
		return err
	}
	// A table that is too large for a bundle and does not compress.
	_, err = r.pg.Query(`create table big as select id, md5(id::text)||md5((id+1)::text) as text from generate_series(1, 90000) id;
		create tablespace spaced location '` + space + `'; create table spaced tablespace spaced as select generate_series(1, 5000) id;
		select lo_from_bytea(0, 'a large object'); create database other;`)
	return err
}

func (r *real) events() (err error) {
	if r.bus, err = lab.StartKfake(lab.KfakeOptions{}); err != nil {
		return err
	}
	c, err := r.bus.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := context.Background()
	adm := kadm.NewClient(c)
	keep := "604800000"
	if _, err := adm.CreateTopics(ctx, 2, 1, map[string]*string{"retention.ms": &keep}, "lineage", "empty"); err != nil {
		return err
	}
	for i := range 300 {
		k := &kgo.Record{Topic: "lineage", Partition: int32(i % 2), Key: fmt.Append(nil, i), Value: bytes.Repeat([]byte("v"), i),
			Headers: []kgo.RecordHeader{{Key: "h", Value: nil}}, Timestamp: time.UnixMilli(1_700_000_000_000 + int64(i))}
		if err := c.ProduceSync(ctx, k).FirstErr(); err != nil {
			return err
		}
	}
	at := kadm.Offsets{}
	at.Add(kadm.Offset{Topic: "lineage", Partition: 0, At: 100, LeaderEpoch: -1, Metadata: "seen"})
	at.Add(kadm.Offset{Topic: "lineage", Partition: 1, At: 7, LeaderEpoch: -1})
	answers, err := adm.CommitOffsets(ctx, "indexer", at)
	return errors.Join(err, answers.Error())
}

// busDigest tells of every record and of the positions, as an ordinary consumer sees them.
func busDigest(b *lab.Broker) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := b.Client(kgo.ConsumeTopics("lineage"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return "", err
	}
	defer c.Close()
	lines := map[int32][]string{}
	for n := 0; n < 300; {
		f := c.PollFetches(ctx)
		if err := f.Err(); err != nil {
			return "", err
		}
		f.EachRecord(func(r *kgo.Record) {
			lines[r.Partition] = append(lines[r.Partition], fmt.Sprintf("%d %s %s %v %d", r.Offset, r.Key, r.Value, r.Headers, r.Timestamp.UnixMilli()))
			n++
		})
	}
	adm := kadm.NewClient(c)
	at, err := adm.FetchOffsets(ctx, "indexer")
	if err != nil {
		return "", err
	}
	var positions []string
	for _, o := range at.Sorted() {
		positions = append(positions, fmt.Sprintf("%s %d %d %s", o.Topic, o.Partition, o.At, o.Metadata))
	}
	topics, err := adm.ListTopics(ctx)
	return fmt.Sprint(lines, positions, topics.Names()), err
}

// backUp drives both programs.
func (r *real) backUp() error {
	conf := filepath.Join(r.root, "config.yaml")
	text := fmt.Sprintf("instance: catalog\nnode: here\nversion: 10.0.0.147420\nstate_dir: %s/state\nredis: embedded\npostgres:\n  dsn: %q\neventbus:\n  brokers: [%s]\nfiles:\n  paths: [%s, %s]\nalation.backup.data_dump_dir: %s\nalation.backup.data_temp_dir: %s/tmp\n",
		r.root, r.pg.DSN(), r.bus.Brokers[0], r.app, strings.Join(r.linked(), ", "), r.dump, r.root)
	if err := errors.Join(os.WriteFile(conf, []byte(text), 0o600), os.Mkdir(r.dump, 0o755), os.Mkdir(r.root+"/tmp", 0o755)); err != nil {
		return err
	}
	var log bytes.Buffer
	worker := exec.Command(filepath.Join(r.bin, "worker"), "run", "--config", conf)
	worker.Stderr = &log
	worker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := worker.Start(); err != nil {
		return err
	}
	var out []byte
	var err error
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) { // until the worker's Redis is there
		var errs bytes.Buffer
		producer := exec.Command(filepath.Join(r.bin, "producer"), "backup-all", "--full", "--wait", "--json", "--config", conf)
		producer.Stderr = &errs
		if out, err = producer.Output(); err == nil || len(out) > 0 || time.Now().After(deadline) {
			if err != nil {
				err = fmt.Errorf("backup-all: %w: %s %s", err, out, &errs)
			}
			break
		}
	}
	err = errors.Join(err, worker.Process.Signal(syscall.SIGTERM), worker.Wait())
	if err != nil {
		return fmt.Errorf("%w\n%s", err, &log)
	}
	var v struct{ Set string }
	err = json.Unmarshal(out, &v)
	r.set = v.Set
	return err
}

// copyOf gives a copy of the set in a directory of its own.
func (r *real) copyOf(t testing.TB) (dir string, m *set.Manifest) {
	t.Helper()
	dir = scratch(t)
	id := set.ID(r.set)
	for _, name := range []string{id.MainName(), id.EventBusName(), id.TextName(), id.ScriptName(), id.ManifestName()} {
		in, err := os.Open(filepath.Join(r.dump, name))
		require.NoError(t, err)
		out, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		require.NoError(t, err)
		_, err = io.Copy(out, in)
		require.NoError(t, errors.Join(err, in.Close(), out.Close()))
	}
	m, err := set.ReadManifest(filepath.Join(dir, id.ManifestName()))
	require.NoError(t, err)
	return dir, m
}

// scratch is a directory that the account postgres may enter, gone after the test.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cb-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (r *real) id() set.ID { return set.ID(r.set) }

func (r *real) manifest(dir string) string { return filepath.Join(dir, r.id().ManifestName()) }

// run runs `worker` and gives what it printed and its exit code.
func (r *real) run(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(r.bin, "worker"), args...)
	cmd.Env = append(os.Environ(), "CATALOG_BACKUP_CONFIG=/nonexistent")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
