package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sample is what one measurement gave.
type sample struct {
	seconds float64
	cpu     float64            // seconds, children and the server's share included
	bytes   int64              // what came out
	queue   float64            // seconds of the run in which no stage was at work
	memory  int64              // peak of our process without its children, bytes; 0: not measured
	stages  map[string]float64 // seconds of each stage of our run
}

// contender is one way to do the job.
type contender struct {
	name    string
	prepare func() error // not measured: makes room
	run     func(ctx context.Context) (sample, error)
	samples []sample
}

// alternate measures the contenders in turn, another one first in each round. seconds
// are those of run and of the one sync that follows.
func alternate(ctx context.Context, rounds int, all []*contender) error {
	for round := range rounds {
		for i := range all {
			c := all[(i+round)%len(all)]
			if err := c.prepare(); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			unix.Sync()
			at := time.Now()
			s, err := c.run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if s.seconds == 0 {
				unix.Sync()
				s.seconds = time.Since(at).Seconds()
			}
			c.samples = append(c.samples, s)
			say("round %d of %d: %-44s %7.2f s", round+1, rounds, c.name, s.seconds)
		}
	}
	return nil
}

// median of one property of a contender's samples.
func (c *contender) median(of func(sample) float64) float64 {
	v := make([]float64, 0, len(c.samples))
	for _, s := range c.samples {
		v = append(v, of(s))
	}
	sort.Float64s(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func seconds(s sample) float64 { return s.seconds }
func cpu(s sample) float64     { return s.cpu }
func size(s sample) float64    { return float64(s.bytes) }
func queue(s sample) float64   { return s.queue }

// peak is the largest memory of all samples.
func (c *contender) peak() int64 {
	var most int64
	for _, s := range c.samples {
		most = max(most, s.memory)
	}
	return most
}

// execute runs a command to its end; an error carries what it said. The CPU seconds are
// those of the process and of the children that it waited for.
func execute(ctx context.Context, cmd *exec.Cmd) (cpu float64, err error) {
	return executeWatched(ctx, cmd, func(int) {})
}

// executeWatched is execute that tells the process number.
func executeWatched(ctx context.Context, cmd *exec.Cmd, started func(pid int)) (cpu float64, err error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	started(cmd.Process.Pid)
	done := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		case <-done:
		}
	}()
	err = cmd.Wait()
	close(done)
	if err != nil {
		text := strings.TrimSpace(out.String())
		return 0, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, text[max(0, len(text)-2000):])
	}
	return cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds(), nil
}

// treeCPU gives the CPU seconds of a process, of its ended children and of those that
// live, all the way down (proc(5): fields 14 to 17).
func treeCPU(pid int) float64 {
	children := map[int][]int{}
	ticks := map[int]float64{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) < 15 {
			continue
		}
		parent, _ := strconv.Atoi(f[1])
		children[parent] = append(children[parent], n)
		for _, field := range f[11:15] {
			v, _ := strconv.ParseFloat(field, 64)
			ticks[n] += v
		}
	}
	const ticksPerSecond = 100 // USER_HZ on Linux
	var total float64
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		total += ticks[todo[0]]
		todo = append(todo, children[todo[0]]...)
	}
	return total / ticksPerSecond
}

// peakMemory gives the largest resident memory that a process has had so far, bytes.
func peakMemory(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// watchMemory follows the peak of a process until done is closed.
func watchMemory(pid int, done <-chan struct{}) <-chan int64 {
	out := make(chan int64, 1)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		var most int64
		for {
			select {
			case <-done:
				out <- most
				return
			case <-tick.C:
				most = max(most, peakMemory(pid))
			}
		}
	}()
	return out
}

// treeSize is the sum of the files below path, or of the file.
func treeSize(path string) (int64, error) {
	var total int64
	err := filepath.Walk(path, func(_ string, info os.FileInfo, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return err
	})
	return total, err
}
