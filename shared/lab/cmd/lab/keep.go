package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/lab"
)

const (
	noteName = "lab.env" // how to reach the server; there while it runs
	lockName = "lab.lock"
	logName  = "lab.log"
	// stopLimit is above the time that a server gets to end by itself.
	stopLimit = 90 * time.Second
	pollEvery = 50 * time.Millisecond
)

// start runs serve in the background and returns when the server serves.
func start(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	on, err := runs(o.dir)
	if err != nil {
		return err
	}
	if on {
		return fmt.Errorf("a server of ours runs in %s already: lab stop %[1]s", o.dir)
	}
	log, err := os.OpenFile(filepath.Join(o.dir, logName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"serve"}, args...)...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it stays when the terminal goes
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	// It closes its standard output when the server serves, or by ending.
	if _, err := io.Copy(io.Discard, ready); err != nil {
		return err
	}
	err = show(o.dir)
	if err == nil {
		return nil
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%s did not start: %s", o.kind, bytes.TrimSpace(text))
}

// serve starts the server and stays until it is told to end, or its owner or the
// server itself ends.
func serve(o order) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	lock, err := os.OpenFile(filepath.Join(o.dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("a server of ours is being started in %s already", o.dir)
	}
	s, err := launch(o)
	if err != nil {
		return err
	}
	note := filepath.Join(o.dir, noteName)
	err = writeNote(note, append(s.reach, "LAB_PID", fmt.Sprint(os.Getpid())))
	if err == nil {
		err = os.Stdout.Close() // start goes on
	}
	if err == nil {
		await(end, o.owner, s.pid)
	}
	return errors.Join(err, s.end(), os.Remove(note))
}

// await returns on a signal or when one of the processes has ended.
func await(end <-chan os.Signal, pids ...int) {
	tick := time.NewTicker(10 * pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
			for _, pid := range pids {
				if pid != 0 && !lab.Running(pid) {
					return
				}
			}
		}
	}
}

// writeNote writes NAME, value, … as lines that a shell can evaluate.
func writeNote(path string, pairs []string) error {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "%s='%s'\n", pairs[i], strings.ReplaceAll(pairs[i+1], "'", `'\''`))
	}
	part := path + ".part"
	if err := os.WriteFile(part, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// runs tells whether a serve holds the folder.
func runs(dir string) (bool, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }()
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	return err != nil, nil
}

// show prints how to reach a running server.
func show(dir string) error {
	on, err := runs(dir)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, noteName))
	if !on || err != nil {
		return fmt.Errorf("no server of ours runs in %s", dir)
	}
	_, err = os.Stdout.Write(text)
	return err
}

// stop ends the server of a folder and waits until it is gone. None there is no
// error.
func stop(dir string) error {
	on, err := runs(dir)
	if err != nil || !on {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, noteName))
	if err != nil {
		return fmt.Errorf("the server in %s is just starting or ending: try again: %w", dir, err)
	}
	var pid int
	for _, line := range strings.Split(string(text), "\n") {
		if _, err := fmt.Sscanf(line, "LAB_PID='%d'", &pid); err == nil {
			break
		}
	}
	if pid <= 1 {
		return fmt.Errorf("%s names no process", filepath.Join(dir, noteName))
	}
	// The lock is held, so the number is still its own.
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for deadline := time.Now().Add(stopLimit); time.Now().Before(deadline); time.Sleep(pollEvery) {
		if on, err := runs(dir); err != nil || !on {
			return err
		}
	}
	return fmt.Errorf("the server in %s did not end within %s: kill -9 %d", dir, stopLimit, pid)
}
