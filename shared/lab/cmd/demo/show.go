package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/lab/sample"
	"catalog-backup/shared/set"
)

const (
	instance = "demo"
	version  = "10.0.0.147420"
	// writeEvery is the pace of what goes on being written during the backup.
	writeEvery = 5 * time.Millisecond
	readyLimit = 60 * time.Second
)

// demo is one demonstration.
type demo struct {
	*place
	top     string // the checkout
	broker  string // kind of the lab's server: kfake or kafka
	keep    bool   // leave everything running
	servers []string
	writer  *sample.Writer
	begun   time.Time

	source, restored postgres
	bus, newBus      string // addresses
	before, after    int64  // rows committed when the backup was asked for, and events when it had ended
	set              string
	manifest         *set.Manifest
}

// postgres is how a server is reached.
type postgres struct {
	dsn, host, port, bin string
}

// show runs the demo's steps.
func (d *demo) show(ctx context.Context) error {
	d.begun = time.Now()
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"A catalog server: PostgreSQL, Event Bus, files", d.prepare},
		{"A worker, with the embedded Redis", d.startWorker},
		{"The backup, while rows and events go on being written", d.backUp},
		{"What came out", d.list},
		{"Every byte against the manifest", d.verify},
		{"A restore into a scratch place and into a second, empty broker", d.restore},
		{"The source against what came back", d.compare},
	}
	for i, s := range steps {
		fmt.Printf("\n== %d. %s\n", i+1, s.title)
		at := time.Now()
		if err := s.do(ctx); err != nil {
			return err
		}
		fmt.Printf("   (%.1f s)\n", time.Since(at).Seconds())
	}
	if !d.keep {
		if err := d.stop(); err != nil {
			return err
		}
	}
	return d.farewell()
}

// prepare makes the servers and what is on them.
func (d *demo) prepare(ctx context.Context) error {
	fmt.Printf("everything is in %s\n", d.dir)
	pg, err := d.start(ctx, "postgres", d.path("source", "postgres"))
	if err != nil {
		return err
	}
	d.source = postgres{pg["PG_DSN"], pg["PG_HOST"], pg["PG_PORT"], pg["PG_BIN"]}
	tablespace := d.path("source", "history")
	if err := d.serverOwned(tablespace); err != nil {
		return err
	}
	if err := sample.Fill(ctx, d.source.dsn, tablespace); err != nil {
		return err
	}
	fmt.Println("PostgreSQL: 4 databases, a tablespace, large objects, JSON, partitions, every kind of index")
	bus, err := d.start(ctx, d.broker, d.path("source", "broker"))
	if err != nil {
		return err
	}
	d.bus = bus["KAFKA_BROKERS"]
	if err := sample.FillBus(ctx, seeds(d.bus)...); err != nil {
		return err
	}
	fmt.Printf("Event Bus (%s): topics of every codec, transactions, compaction, consumer groups, access rules\n", d.broker)
	if err := os.MkdirAll(d.path("source", "site_data"), 0o755); err != nil {
		return err
	}
	if err := sample.MakeTree(d.path("source", "site_data")); err != nil {
		return err
	}
	fmt.Println("Files: hard links, symbolic links, holes, odd names, times before 1970, extended attributes")
	return d.configure()
}

func seeds(brokers string) []kgo.Opt {
	return []kgo.Opt{kgo.SeedBrokers(strings.Split(brokers, ",")...)}
}

// serverOwned makes a private directory of the user that PostgreSQL runs as.
func (d *demo) serverOwned(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cred, err := lab.PostgresUser()
	if err != nil || cred == nil {
		return err
	}
	return os.Chown(dir, int(cred.Uid), int(cred.Gid))
}

// configure writes the one configuration file.
func (d *demo) configure() error {
	brokers, err := json.Marshal(strings.Split(d.bus, ","))
	if err != nil {
		return err
	}
	text := fmt.Sprintf(`instance: %s
node: demo-host
version: %s
state_dir: %s
redis: embedded
postgres:
  dsn: "%s"
eventbus:
  brokers: %s
files:
  paths: [%s]
  exclude: ["*.tmp"]
alation.backup.data_dump_dir: %s
alation.backup.data_temp_dir: %s
`, instance, version, d.path("state"), d.source.dsn, brokers, d.path("source", "site_data"), d.path("backup"), d.path("tmp"))
	for _, name := range []string{"backup", "tmp"} {
		if err := os.MkdirAll(d.path(name), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(d.config(), []byte(text), 0o600)
}

func (d *demo) config() string { return d.path("config.yaml") }

func (d *demo) startWorker(ctx context.Context) error {
	fmt.Printf("$ worker run --config %s &\n", d.config())
	cmd := exec.Command(d.program("worker"), "run", "--config", d.config())
	cmd.Env = environment()
	if err := d.spawn(cmd, "worker", syscall.SIGTERM); err != nil {
		return err
	}
	log := func() string { b, _ := os.ReadFile(d.path("worker.log")); return string(b) }
	ended := false
	ok := await(readyLimit, func() bool {
		ended = !lab.Running(cmd.Process.Pid)
		return ended || ctx.Err() != nil || strings.Contains(log(), "the worker is ready")
	})
	if err := ctx.Err(); err != nil {
		return err
	}
	if !ok || ended {
		return fmt.Errorf("the worker did not get ready; its log:\n%s", log())
	}
	return nil
}

func (d *demo) backUp(ctx context.Context) error {
	publish, end, err := sample.Publisher(seeds(d.bus)...)
	if err != nil {
		return err
	}
	defer end()
	if d.writer, err = sample.StartWriter(ctx, d.source.dsn, publish, writeEvery); err != nil {
		return err
	}
	if !await(readyLimit, func() bool { return d.writer.Committed() >= 50 || ctx.Err() != nil }) {
		return fmt.Errorf("the writer does not get on: %w", d.writer.Stop())
	}
	d.before = d.writer.Committed()
	if err := d.call(ctx, "producer", "backup-all", "--full", "--wait", "--config", d.config()); err != nil {
		return fmt.Errorf("%w; the worker's log is %s", err, d.path("worker.log"))
	}
	err = d.writer.Stop()
	d.after = d.writer.Published()
	d.writer = nil
	return err
}

func (d *demo) list(ctx context.Context) error {
	if err := d.call(ctx, "producer", "list", "--config", d.config()); err != nil {
		return err
	}
	out, err := d.ask(ctx, "producer", "list", "--json", "--config", d.config())
	if err != nil {
		return err
	}
	var sets []struct {
		Set string `json:"set"`
	}
	if err := json.Unmarshal(out, &sets); err != nil {
		return fmt.Errorf("producer list --json: %w", err)
	}
	if len(sets) != 1 {
		return fmt.Errorf("producer list names %d sets, 1 was made", len(sets))
	}
	d.set = sets[0].Set
	files, err := filepath.Glob(d.path("backup", "*"))
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := os.Lstat(f)
		if err != nil {
			return err
		}
		fmt.Printf("%12d  %s\n", info.Size(), f)
	}
	d.manifest, err = set.ReadManifest(d.path("backup", set.ID(d.set).ManifestName()))
	return err
}

func (d *demo) verify(ctx context.Context) error {
	return d.call(ctx, "worker", "verify", d.set, "--dir", d.path("backup"))
}

func (d *demo) restore(ctx context.Context) error {
	bus, err := d.start(ctx, d.broker, d.path("restored-broker"))
	if err != nil {
		return err
	}
	d.newBus = bus["KAFKA_BROKERS"]
	if err := d.call(ctx, "worker", "restore", d.set, "--dir", d.path("backup"), "--target", d.path("restored"), "--bus", d.newBus); err != nil {
		return err
	}
	return d.startRestored(ctx)
}

// startRestored starts the restored PostgreSQL on a socket of its own.
func (d *demo) startRestored(ctx context.Context) error {
	// Nothing but -D: that it then serves, on this socket alone, is part of the promise.
	sockets := d.path("restored", "postgres", "socket")
	d.restored = postgres{fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres", sockets, "5432"), sockets, "5432", d.source.bin}
	cred, err := lab.PostgresUser()
	if err != nil {
		return err
	}
	args := []string{"-D", d.path("restored", "postgres", "data")}
	fmt.Printf("$ %s\n", shown("postgres", args))
	cmd := exec.Command(filepath.Join(d.source.bin, "postgres"), args...)
	cmd.Dir, cmd.Env = "/", environment()
	if cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	}
	if err := d.spawn(cmd, "restored-postgres", syscall.SIGQUIT); err != nil {
		return err
	}
	var last error
	ok := await(readyLimit, func() bool {
		if !lab.Running(cmd.Process.Pid) || ctx.Err() != nil {
			return true
		}
		last = promoted(ctx, d.restored.dsn)
		return last == nil
	})
	if err := ctx.Err(); err != nil {
		return err
	}
	if !ok || last != nil || !lab.Running(cmd.Process.Pid) {
		log, _ := os.ReadFile(d.path("restored-postgres.log"))
		return fmt.Errorf("the restored PostgreSQL does not serve (%v); its log:\n%s", last, log)
	}
	return nil
}
