// poll measures what idle workers cost their Redis and their host, and what a longer
// poll costs a run (make bench-poll):
//
//	poll [SECONDS]
//
// The workers are real ones of one process, each with its own node and its own
// connections, on a Redis of their own with the settings of the embedded one. They
// have no stages that do anything.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/task"
	"catalog-backup/worker/dump"
	"catalog-backup/worker/pipeline"

	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
)

func main() {
	if err := measure(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "poll:", err)
		os.Exit(1)
	}
}

func measure(args []string) error {
	seconds := 15
	if len(args) > 0 {
		var err error
		if seconds, err = strconv.Atoi(args[0]); err != nil || seconds < 1 {
			return fmt.Errorf("usage: poll [SECONDS]")
		}
	}
	fmt.Printf("%-8s %-6s %12s %12s %18s\n", "WORKERS", "POLL", "COMMANDS/S", "REDIS CPU", "CPU OF A WORKER")
	for _, n := range []int{1, 10, 50} {
		for _, poll := range []time.Duration{100 * time.Millisecond, time.Second} {
			if err := idle(n, poll, time.Duration(seconds)*time.Second); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\n%-6s %22s\n", "POLL", "WAIT BEFORE A STAGE")
	for _, poll := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second} {
		if err := latency(poll, 10); err != nil {
			return err
		}
	}
	return nil
}

// fleet is a Redis with workers on it.
type fleet struct {
	redis   *lab.RedisServer
	dir     string
	rdb     *redis.Client
	workers []*pipeline.Worker
	clients []*redis.Client
}

func newFleet(n int, poll time.Duration) (*fleet, error) {
	server, err := lab.StartRedis(lab.RedisOptions{Conf: []string{"appendfsync always"}})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "cb-poll-")
	f := &fleet{redis: server, dir: dir, rdb: server.Client()}
	for i := 0; i < n && err == nil; i++ {
		err = f.add(fmt.Sprintf("node%d", i), poll)
	}
	if err != nil {
		f.end()
		return nil, err
	}
	return f, nil
}

func (f *fleet) add(node string, poll time.Duration) error {
	root := filepath.Join(f.dir, node)
	for _, d := range []string{root, root + "/dump", root + "/temp"} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	rdb, log := f.redis.Client(), logrus.New()
	f.clients = append(f.clients, rdb)
	log.SetOutput(io.Discard)
	p := pipeline.Params{Store: run.NewStore(rdb, nil, time.Hour), Instance: "catalog", Node: node, Now: time.Now, Log: log,
		Dir: &dump.Directory{Dump: root + "/dump", Temp: root + "/temp", Instance: "catalog", Node: node},
		Limits: pipeline.Limits{Errors: 3, Interruptions: 50, Crashes: 5, Backoff: time.Second, Timeout: time.Hour, NodeLostAfter: time.Hour,
			RedisGrace: time.Minute, Poll: poll}}
	for _, name := range stages {
		p.Stages = append(p.Stages, nothing(name))
	}
	w := pipeline.New(p, rdb, run.Worker{ID: node, Node: node, PID: os.Getpid(), Started: time.Now()})
	if err := w.Start(context.Background()); err != nil {
		return err
	}
	f.workers = append(f.workers, w)
	return nil
}

func (f *fleet) end() {
	done := make(chan struct{})
	for _, w := range f.workers {
		go func() { w.Shutdown(); done <- struct{}{} }()
	}
	for range f.workers {
		<-done
	}
	for _, c := range f.clients {
		_ = c.Close()
	}
	_ = f.rdb.Close()
	_ = f.redis.Close()
	_ = os.RemoveAll(f.dir)
}

var stages = []string{run.Prepare, "postgres", "eventbus", "archive"}

// nothing is a stage that is over at once.
type nothing string

func (s nothing) Name() string { return string(s) }

func (s nothing) Run(context.Context, *pipeline.Attempt) (any, error) {
	return map[string]string{}, nil
}

// cost is what has been spent so far.
type cost struct {
	at            time.Time
	commands      float64
	redis, worker time.Duration
}

func (f *fleet) cost() (c cost, err error) {
	text, err := f.rdb.Info(context.Background(), "stats", "cpu").Result()
	if err != nil {
		return c, err
	}
	number := func(name string) float64 {
		_, after, _ := strings.Cut(text, "\n"+name+":")
		line, _, _ := strings.Cut(after, "\r")
		x, _ := strconv.ParseFloat(line, 64)
		return x
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return c, err
	}
	return cost{at: time.Now(), commands: number("total_commands_processed"),
		redis:  time.Duration((number("used_cpu_sys") + number("used_cpu_user")) * float64(time.Second)),
		worker: time.Duration(u.Utime.Nano() + u.Stime.Nano())}, nil
}

func idle(n int, poll, limit time.Duration) error {
	f, err := newFleet(n, poll)
	if err != nil {
		return err
	}
	defer f.end()
	time.Sleep(2 * time.Second) // the start is over
	a, err := f.cost()
	if err != nil {
		return err
	}
	time.Sleep(limit)
	b, err := f.cost()
	if err != nil {
		return err
	}
	took := b.at.Sub(a.at)
	fmt.Printf("%-8d %-6s %12.0f %11.1f%% %17.2f%%\n", n, poll, (b.commands-a.commands)/took.Seconds(),
		100*float64(b.redis-a.redis)/float64(took), 100*float64(b.worker-a.worker)/float64(took)/float64(n))
	return nil
}

// latency is how long a stage of a run waits until it begins, over some runs.
func latency(poll time.Duration, runs int) error {
	f, err := newFleet(1, poll)
	if err != nil {
		return err
	}
	defer f.end()
	ctx, store, queue := context.Background(), run.NewStore(f.rdb, nil, time.Hour), task.NewEnqueuer(f.rdb, time.Now)
	var sum, longest time.Duration
	for i := range runs {
		id := run.NewID(time.Now(), []byte{byte(i), 2, 3, 4, 5})
		r, err := store.Start(ctx, run.Request{ID: id, Instance: "catalog", Requested: "full", Type: "full", FirstStage: run.Prepare, Epoch: "poll"})
		if err != nil {
			return err
		}
		if err := queue.Enqueue(ctx, r.Epoch, "", task.Payload{Run: id, Instance: "catalog", Stage: run.Prepare, Generation: 1}, nil); err != nil {
			return err
		}
		began := time.Now()
		for !r.State.Over() {
			if time.Since(began) > time.Minute {
				return fmt.Errorf("run %s does not end: %s", id, r.Stage)
			}
			time.Sleep(2 * time.Millisecond)
			if r, err = store.Get(ctx, id); err != nil {
				return err
			}
		}
		each := time.Since(began) / time.Duration(len(stages))
		sum, longest = sum+each, max(longest, each)
	}
	fmt.Printf("%-6s %8.0f ms, at most %.0f ms\n", poll, sum.Seconds()*1000/float64(runs), longest.Seconds()*1000)
	return nil
}
