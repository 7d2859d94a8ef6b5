package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// stop ends everything that the demo started.
func (d *demo) stop() error {
	var errs []error
	if d.writer != nil {
		if err := d.writer.Stop(); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs,
		endNoted(d.path("worker.pid"), syscall.SIGTERM),
		endNoted(d.path("restored-postgres.pid"), syscall.SIGINT)) // PostgreSQL's "fast"
	for i := len(d.servers) - 1; i >= 0; i-- {
		_, err := d.ask(context.Background(), "lab", "stop", d.servers[i])
		errs = append(errs, err)
	}
	d.servers = nil
	return errors.Join(errs...)
}

// end stops a demo that was left running, and removes it.
func end(dir string) error {
	top, err := os.Getwd()
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	lock, err := hold(filepath.Join(dir, markName), 0)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is no folder of a demo", dir)
	}
	if err != nil {
		return fmt.Errorf("the demo in %s is at work: end it by Ctrl-C", dir)
	}
	d := &demo{place: &place{dir, lock}, top: top}
	defer d.place.unlock()
	d.servers = []string{d.path("source", "postgres"), d.path("source", "broker"), d.path("restored-broker")}
	if err := d.stop(); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
