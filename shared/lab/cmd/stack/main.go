// stack proves the compose example on a real engine: it brings docker-compose.yml up under
// a project name of its own, makes a set, restores it in fresh containers, kills a worker's
// container in the middle of a run, and takes everything down again. .ci/compose calls it,
// in the top of a checkout, with an engine that answers.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// limit bounds the whole proof, images included.
const limit = 25 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := prove(ctx)
	switch {
	case err == nil:
		return
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "stack: interrupted; what was started has been taken down")
		os.Exit(130)
	}
	fmt.Fprintln(os.Stderr, "stack:", err)
	os.Exit(1)
}

// step is one part of the proof.
type step struct {
	what string
	do   func(context.Context) (proved string, err error)
}

// prove does all steps and takes everything down, however they end.
func prove(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	name := fmt.Sprintf("catalogbackup%d", os.Getpid())
	s := &stack{
		site:  project{name: name, file: "docker-compose.yml"},
		fresh: project{name: name + "fresh", file: "docs/compose/restore.yml"},
	}
	if err := s.prepare(name); err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			s.tellLogs(ctx)
		}
		// Neither a second Ctrl-C nor the limit keeps us from taking down what runs.
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		err = errors.Join(err, s.do(down, step{"down -v", s.takeDown}))
	}()
	for _, p := range []step{
		{"images", s.build},
		{"up", s.up},
		{"set made", s.backUp},
		{"set verified", s.verify},
		{"dashboard", s.lookAt},
		{"restored, fresh", s.restore},
		{"rows and events", s.compareServers},
		{"files", s.compareFiles},
		{"worker killed", s.killWorker},
		{"left clean", s.clean},
		{"plan's time came", s.schedule},
	} {
		if err := s.do(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// do does one step and prints how it went.
func (s *stack) do(ctx context.Context, p step) error {
	at := time.Now()
	proved, err := p.do(ctx)
	took := time.Since(at).Seconds()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		fmt.Printf("WRONG   %-18s %6.1f s\n", p.what, took)
		return fmt.Errorf("%s: %w", p.what, err)
	}
	fmt.Printf("proved  %-18s %6.1f s  %s\n", p.what, took, strings.TrimSpace(proved))
	return nil
}
