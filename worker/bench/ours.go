package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
)

const readyLimit = 60 * time.Second

// product is a running worker with its configuration.
type product struct {
	top, dir string
	worker   *exec.Cmd
	ended    chan struct{}
}

// startProduct starts a worker that backs up the server and the paths.
func (b *bench) startProduct(name string, pg *lab.PG, paths ...string) (*product, error) {
	p := &product{top: b.top, dir: filepath.Join(b.work, name), ended: make(chan struct{})}
	for _, d := range []string{"backup", "tmp"} {
		if err := os.MkdirAll(p.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	quoted, err := json.Marshal(paths)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("instance: bench\nnode: bench-host\nversion: 10.0.0.147420\nstate_dir: %s\nredis: embedded\npostgres: {dsn: %q}\nfiles: {paths: %s}\n"+
		"alation.backup.data_dump_dir: %s\nalation.backup.data_temp_dir: %s\n", p.path("state"), pg.DSN(), quoted, p.path("backup"), p.path("tmp"))
	if len(paths) == 0 {
		text = strings.Replace(text, "files: {paths: null}\n", "", 1)
	}
	if err := os.WriteFile(p.config(), []byte(text), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(p.path("worker.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the worker has its own copy
	p.worker = exec.Command(p.program("worker"), "run", "--config", p.config())
	p.worker.Stdout, p.worker.Stderr, p.worker.Env = log, log, environment()
	p.worker.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.worker.Start(); err != nil {
		return nil, err
	}
	go func() { _ = p.worker.Wait(); close(p.ended) }()
	for deadline := time.Now().Add(readyLimit); ; time.Sleep(20 * time.Millisecond) {
		said, _ := os.ReadFile(p.path("worker.log"))
		if bytes.Contains(said, []byte("the worker is ready")) {
			return p, nil
		}
		if time.Now().After(deadline) || !lab.Running(p.worker.Process.Pid) {
			return nil, errors.Join(fmt.Errorf("the worker did not get ready; its log:\n%s", said), p.stop())
		}
	}
}

// environment is ours without what would change the product's configuration or its clients.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "CATALOG_BACKUP_") && !strings.HasPrefix(e, "PG") {
			env = append(env, e)
		}
	}
	return env
}

func (p *product) path(name string) string    { return filepath.Join(p.dir, name) }
func (p *product) config() string             { return p.path("config.yaml") }
func (p *product) program(name string) string { return filepath.Join(p.top, "bin", name) }

func (p *product) stop() error {
	_ = p.worker.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return nil
	case <-time.After(readyLimit):
		_ = p.worker.Process.Kill()
		return fmt.Errorf("the worker did not end within %s and was killed", readyLimit)
	}
}

// outcome is what a run came to.
type outcome struct {
	set      string
	archives []string
	wall     float64            // of `producer backup-all --wait`
	stages   map[string]float64 // seconds of each stage's attempt
}

// backUp runs `producer backup-all --full --wait`.
func (p *product) backUp(ctx context.Context) (*outcome, error) {
	at := time.Now()
	text, err := p.ask(ctx, "producer", "backup-all", "--full", "--wait", "--json", "--config", p.config())
	if err != nil {
		return nil, err
	}
	o := &outcome{wall: time.Since(at).Seconds(), stages: map[string]float64{}}
	var result struct {
		Run, Set string
		Archives []string
	}
	if err := json.Unmarshal(text, &result); err != nil {
		return nil, err
	}
	o.set, o.archives = result.Set, result.Archives
	if text, err = p.ask(ctx, "producer", "status", result.Run, "--json", "--config", p.config()); err != nil {
		return nil, err
	}
	var status struct{ Attempts []run.Attempt }
	if err := json.Unmarshal(text, &status); err != nil {
		return nil, err
	}
	for _, a := range status.Attempts {
		if a.Ended == nil || o.stages[a.Stage] != 0 {
			return nil, fmt.Errorf("stage %s took more than one attempt: the measurement is spoilt; the worker's log is in %s", a.Stage, p.dir)
		}
		o.stages[a.Stage] = a.Ended.Sub(a.Started).Seconds()
	}
	return o, nil
}

// idle is how long no stage was at work: start, hops, end, and the producer's waiting.
func (o *outcome) idle() float64 {
	left := o.wall
	for _, s := range o.stages {
		left -= s
	}
	return left
}

func (o *outcome) size() (int64, error) {
	var total int64
	for _, a := range o.archives {
		n, err := treeSize(a)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// removeSets makes room for the next round.
func (p *product) removeSets() error {
	files, err := filepath.Glob(p.path("backup/*_alation_*"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

func (p *product) ask(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, p.program(name), args...)
	cmd.Env = environment()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, errs.String(), out.String())
	}
	return out.Bytes(), nil
}
