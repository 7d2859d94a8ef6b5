package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/lab"
)

const (
	stopLimit = 60 * time.Second
	pollEvery = 50 * time.Millisecond
)

// environment is ours without what would change the product's configuration or the
// servers' clients.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "CATALOG_BACKUP_") && !strings.HasPrefix(e, "PG") {
			env = append(env, e)
		}
	}
	return env
}

// program gives a program of ours.
func (d *demo) program(name string) string {
	if name == "lab" || name == "kfaked" {
		return filepath.Join(d.top, ".cache", "lab", name)
	}
	return filepath.Join(d.top, "bin", name)
}

// call runs one of our programs and shows what it says.
func (d *demo) call(ctx context.Context, name string, args ...string) error {
	fmt.Printf("$ %s\n", shown(name, args))
	cmd := d.command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", shown(name, args), err)
	}
	return nil
}

// ask runs one of our programs and gives what it prints.
func (d *demo) ask(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := d.command(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", shown(name, args), err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), nil
}

func (d *demo) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.program(name), args...)
	cmd.Env = environment()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if name == "lab" {
		cmd.Env = append(cmd.Env, "LAB_KFAKED="+d.program("kfaked")) // built by .ci/demo
		// Ctrl-C is for us: half started, it would leave its server behind.
		cmd.SysProcAttr.Setpgid = true
	}
	return cmd
}

func shown(name string, args []string) string {
	return strings.Join(append([]string{name}, args...), " ")
}

// spawn starts a daemon in a session of its own, its output in a log, its number in a
// file for `demo stop`. Unless the demo is kept it gets `death` when we die.
func (d *demo) spawn(cmd *exec.Cmd, name string, death syscall.Signal) error {
	log, err := os.OpenFile(d.path(name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own copy
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if !d.keep {
		cmd.SysProcAttr.Pdeathsig = death
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = cmd.Wait() }()
	return writeRunning(d.path(name+".pid"), cmd.Process.Pid)
}

// writeRunning notes a process by number and start time.
func writeRunning(path string, pid int) error {
	return os.WriteFile(path, []byte(fmt.Sprintf("%d %s\n", pid, started(pid))), 0o600)
}

// started gives the start time of a process (proc(5), field 22): it tells the process
// from a later one with its number.
func started(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return ""
	}
	return f[19]
}

// endNoted ends the process that a file names and waits until it is gone.
func endNoted(path string, sig syscall.Signal) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var pid int
	var start string
	if _, err := fmt.Sscan(string(b), &pid, &start); err != nil || pid <= 1 {
		return fmt.Errorf("%s names no process", path)
	}
	alive := func() bool { return lab.Running(pid) && started(pid) == start }
	if alive() {
		_ = syscall.Kill(pid, sig)
	}
	if !await(stopLimit, func() bool { return !alive() }) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return fmt.Errorf("process %d of %s did not end within %s and was killed", pid, path, stopLimit)
	}
	return os.Remove(path)
}

// await calls done until it is true or limit is over, and tells whether it was.
func await(limit time.Duration, done func() bool) bool {
	for deadline := time.Now().Add(limit); !done(); time.Sleep(pollEvery) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// start starts a server of the lab and gives how to reach it.
func (d *demo) start(ctx context.Context, kind, dir string, flags ...string) (map[string]string, error) {
	args := append([]string{"start", kind, dir}, flags...)
	if !d.keep {
		args = append(args, "-owner", fmt.Sprint(os.Getpid()))
	}
	d.servers = append(d.servers, dir)
	out, err := d.ask(context.WithoutCancel(ctx), "lab", args...)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	reach := map[string]string{}
	for _, line := range strings.Split(string(out), "\n") {
		if name, value, ok := strings.Cut(line, "="); ok {
			reach[name] = strings.Trim(value, "'")
		}
	}
	return reach, nil
}
