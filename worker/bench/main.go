// bench measures the product against other ways to do the same, in one run, alternating,
// everything ended by one sync:
//
//	bench all|postgres|files|eventbus|restore
//
// SIZE (GB, default 4), ROUNDS (default 3) and BENCH_DIR (default
// /var/tmp/catalog-backup-bench, where the data set stays for the next time) are taken
// from the environment. It runs in the top of a checkout after `make build`; .ci/bench
// sees to that.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"catalog-backup/shared/lab"
)

func init() {
	// Children are told when the thread that started them ends (prctl(2)).
	runtime.LockOSThread()
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := measure(ctx, os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

var errUsage = errors.New("usage: bench all|postgres|files|eventbus|restore   (environment: SIZE=…, ROUNDS=…, BENCH_DIR=…)")

// bench is what all measurements share.
type bench struct {
	top    string // the checkout
	dir    string // BENCH_DIR
	work   string // below it, removed at the end
	size   float64
	rounds int
	text   *corpusOnce
	report report
}

func measure(ctx context.Context, args []string) error {
	if len(args) == 4 && (args[0] == "dump" || args[0] == "consume") { // what eventbus.go runs
		return readBus(ctx, args[0], args[1], args[2], args[3])
	}
	if len(args) != 1 {
		return errUsage
	}
	parts := map[string]func(*bench, context.Context) error{
		"postgres": (*bench).postgres, "files": (*bench).files, "eventbus": (*bench).eventBus, "restore": (*bench).restore,
	}
	names := []string{args[0]}
	if args[0] == "all" {
		names = []string{"postgres", "restore", "files", "eventbus"}
	} else if parts[args[0]] == nil {
		return errUsage
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.work) }()
	b.report.begin(b)
	for _, name := range names {
		if err := parts[name](b, ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return b.report.show()
}

func newBench() (*bench, error) {
	top, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	b := &bench{top: top, dir: "/var/tmp/catalog-backup-bench", size: 4, rounds: 3, text: &corpusOnce{}}
	if dir := os.Getenv("BENCH_DIR"); dir != "" {
		if b.dir, err = filepath.Abs(dir); err != nil {
			return nil, err
		}
	}
	if s := os.Getenv("SIZE"); s != "" {
		if b.size, err = strconv.ParseFloat(s, 64); err != nil || b.size < 0.05 || b.size > 1000 {
			return nil, fmt.Errorf("SIZE=%s: it takes gigabytes, 0.05 to 1000", s)
		}
	}
	if s := os.Getenv("ROUNDS"); s != "" {
		if b.rounds, err = strconv.Atoi(s); err != nil || b.rounds < 1 || b.rounds > 100 {
			return nil, fmt.Errorf("ROUNDS=%s: it takes 1 to 100", s)
		}
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	// Cluster, staging, archive and the others' results lie there at once.
	var fs syscall.Statfs_t
	if err := syscall.Statfs(b.dir, &fs); err != nil {
		return nil, err
	}
	need := int64(b.size * 5e9)
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		return nil, fmt.Errorf("%s has %.1f GB free, SIZE=%g needs %.1f: choose another place by BENCH_DIR=… or a smaller SIZE", b.dir, float64(free)/1e9, b.size, float64(need)/1e9)
	}
	sweep(b.dir)
	b.work = filepath.Join(b.dir, workPrefix+strconv.Itoa(os.Getpid()))
	if err := os.MkdirAll(b.work, 0o755); err != nil {
		return nil, err
	}
	return b, os.Chmod(b.work, 0o755)
}

const workPrefix = "work-"

// sweep removes the work folders of benches that were killed.
func sweep(dir string) {
	olds, _ := filepath.Glob(filepath.Join(dir, workPrefix+"*"))
	for _, old := range olds {
		pid, err := strconv.Atoi(filepath.Base(old)[len(workPrefix):])
		if err == nil && !lab.Running(pid) {
			_ = os.RemoveAll(old)
		}
	}
}

// say tells what is being done.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}
