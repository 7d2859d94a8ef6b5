// demo shows the product at work, from beginning to end, on real servers of its own:
//
//	demo           back up, verify, restore and compare; DEMO_DIR, KEEP=1, KAFKA=real
//	demo stop DIR  end and remove a demo that was kept
//
// It runs in the top of a checkout after `make build`; .ci/demo sees to that.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

func init() {
	// Our children get a signal when the thread that started them ends (prctl(2),
	// PR_SET_PDEATHSIG): the main thread lives as long as we do.
	runtime.LockOSThread()
}

func main() {
	err := run(os.Args[1:])
	switch {
	case err == nil:
		return
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "usage: demo | demo stop DIR   (environment: DEMO_DIR=…, KEEP=1, KAFKA=real)")
		os.Exit(2)
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "demo: interrupted; what was started has been stopped")
		os.Exit(130)
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	os.Exit(1)
}

var errUsage = errors.New("wrong arguments")

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	switch {
	case len(args) == 0:
		return demonstrate(ctx)
	case len(args) == 2 && args[0] == "stop":
		return end(args[1])
	}
	return errUsage
}

// demonstrate runs the demo and stops what it started, however it ends.
func demonstrate(ctx context.Context) (err error) {
	top, err := os.Getwd()
	if err != nil {
		return err
	}
	broker := "kfake"
	switch os.Getenv("KAFKA") {
	case "":
	case "real":
		broker = "kafka"
	default:
		return errors.New("KAFKA takes only one value: real")
	}
	p, err := newPlace(os.Getenv("DEMO_DIR"))
	if err != nil {
		return err
	}
	defer p.unlock()
	d := &demo{place: p, top: top, broker: broker, keep: os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0"}
	defer func() {
		if d.keep && err == nil {
			return
		}
		// A second Ctrl-C must not keep us from ending what runs.
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		if serr := d.stop(); serr != nil {
			err = errors.Join(err, serr)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "demo: what it made is in %s; remove it by: rm -rf %[1]s\n", p.dir)
		}
	}()
	if err := d.show(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}
