// earlier makes the fixtures of a version with the programs of that version:
//
//	earlier PROGRAMS OUT
//
// PROGRAMS holds the version's producer and worker, and filesonly (its source is beside
// the fixtures), which makes what no verb makes. OUT must not be there yet.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/lab/earlier"
	"catalog-backup/shared/set"
)

func main() {
	runtime.LockOSThread() // children get a signal when this thread ends
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: earlier PROGRAMS OUT")
		os.Exit(2)
	}
	if err := make3(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "earlier:", err)
		os.Exit(1)
	}
}

func make3(programs, out string) error {
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	for name, make := range map[string]func(*site) error{"bus": withBus, "tablespace": withTablespace, "files": filesOnly} {
		s, err := newSite(programs, filepath.Join(out, name))
		if err == nil {
			err = make(s)
		}
		if err = errors.Join(err, s.close()); err != nil {
			return fmt.Errorf("the set %s: %w\n%s", name, err, &s.log)
		}
	}
	return nil
}

// site is a catalog server with the version's programs on it.
type site struct {
	programs, out, root string

	pg     *lab.PG
	bus    *lab.Broker
	redis  *lab.RedisServer
	worker *exec.Cmd
	log    lab.Buffer
	facts  *earlier.Facts
}

func newSite(programs, out string) (*site, error) {
	s := &site{programs: programs, out: out, facts: &earlier.Facts{Files: map[string]string{}, Rows: map[string]string{}}}
	var err error
	if s.root, err = earlier.NewRoot(); err != nil {
		return s, err
	}
	s.facts.Root = s.root
	for _, dir := range []string{"backup", "tmp", "state", "app"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(s.root, dir), 0o755))
	}
	return s, errors.Join(err, os.Mkdir(out, 0o755))
}

func (s *site) close() error {
	var errs []error
	if s.worker != nil {
		errs = append(errs, s.kill())
	}
	if s.pg != nil {
		errs = append(errs, s.pg.Close())
	}
	if s.bus != nil {
		errs = append(errs, s.bus.Close())
	}
	if s.redis != nil {
		errs = append(errs, s.redis.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.root))...)
}

// configure writes the configuration: more are further keys.
func (s *site) configure(more string) error {
	text := fmt.Sprintf(`instance: catalog
node: host1
version: 10.0.0.147420
state_dir: %[1]s/state
redis: {address: "unix:%[2]s"}
postgres: {dsn: %[3]q, compress_level: 19}
files: {paths: [%[1]s/app], exclude: ["*.tmp"]}
archive: {level: 9}
alation.backup.data_dump_dir: %[1]s/backup
alation.backup.data_temp_dir: %[1]s/tmp
alation.backup.chef_timeout: 630720000
queue: {backoff: 500ms, retry_errors: 1}
%[4]s`, s.root, s.redis.Addr, s.pg.DSN(), more)
	return os.WriteFile(s.config(), []byte(text), 0o600)
}

func (s *site) config() string { return filepath.Join(s.root, "config.yaml") }

func (s *site) start() error {
	s.worker = exec.Command(filepath.Join(s.programs, "worker"), "run", "--config", s.config())
	s.worker.Stdout, s.worker.Stderr = &s.log, &s.log
	s.worker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return s.worker.Start()
}

// kill ends the worker as kill -9 does.
func (s *site) kill() error {
	err := s.worker.Process.Kill()
	_ = s.worker.Wait()
	s.worker = nil
	return err
}

// producer runs a verb, and gives its answer also where that is a failure.
func (s *site) producer(args ...string) (map[string]any, error) {
	cmd := exec.Command(filepath.Join(s.programs, "producer"), append(args, "--json", "--config", s.config())...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var v map[string]any
	if json.Unmarshal(out.Bytes(), &v) != nil {
		return nil, fmt.Errorf("producer %s: %v: %s%s", strings.Join(args, " "), err, &out, &errs)
	}
	return v, nil
}

// backup makes a set, and keeps it with its facts.
func (s *site) backup() error {
	if err := s.keepFacts(); err != nil {
		return err
	}
	v, err := s.producer("backup-all", "--full", "--wait")
	if err != nil {
		return err
	}
	if v["state"] != "succeeded" {
		return fmt.Errorf("the backup: %v", v)
	}
	return s.keepSet(v["set"].(string))
}

func (s *site) keepFacts() (err error) {
	if s.facts.Files, err = earlier.Tree(filepath.Join(s.root, "app")); err != nil {
		return err
	}
	delete(s.facts.Files, "left.tmp") // excluded
	if s.pg == nil {
		return nil
	}
	s.facts.Port = s.pg.Port
	for sql := range s.facts.Rows {
		if s.facts.Rows[sql], err = s.pg.Query(sql); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) keepSet(id string) error {
	s.facts.Set = id
	for _, name := range []string{set.ID(id).MainName(), set.ID(id).EventBusName(), set.ID(id).ManifestName()} {
		if err := copyFile(filepath.Join(s.root, "backup", name), filepath.Join(s.out, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	m, err := set.ReadManifest(filepath.Join(s.out, set.ID(id).ManifestName()))
	if err != nil {
		return err
	}
	s.facts.Program = m.Program.Version
	return s.facts.Write(s.out)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func eventually(what string, limit time.Duration, ok func() bool) error {
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %s", limit, what)
		}
	}
	return nil
}
