package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os/signal"
	"syscall"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
)

const (
	// reconnectLimit is how long Redis may be away before a waiting command gives up.
	reconnectLimit = 60 * time.Second
	pollEvery      = 250 * time.Millisecond
	// answerLimit is how long one answer may take while waiting: short, so that a
	// Redis that is frozen is noticed and Ctrl-C is heard.
	answerLimit = 5 * time.Second
)

// errInterrupted means that the person stopped waiting.
var errInterrupted = errors.New("interrupted")

// waitFor shows the run until it is over and ends with its exit code.
func (a *app) waitFor(ctx context.Context, c *connection, r run.Record, reconnect time.Duration) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	show := newDisplay(a)
	last, err := a.follow(ctx, c, r, reconnect, show)
	show.end(last, c.now(ctx))
	if a.json {
		e := endingOf(last)
		if err != nil {
			e.Error = optional(err.Error())
		}
		if jerr := exit.JSON(a.out, e); jerr != nil {
			return jerr
		}
	}
	switch {
	case errors.Is(err, errInterrupted):
		return exit.Withf(exit.Other, "no longer waiting: the run goes on; see it with `watch %s`, stop it with `cancel %s`", r.ID, r.ID)
	case err != nil:
		return err
	}
	if !a.json {
		a.summary(last)
	}
	return exit.Silent(codeOf(last))
}

// patiently calls try again while Redis cannot be reached at all: after a reboot,
// or while another worker takes the embedded Redis over. What was sent and got no
// answer is not sent again, and a Redis that refuses us is not asked again.
func (a *app) patiently(ctx context.Context, reconnect time.Duration, try func() error) error {
	began, said := a.now(), false
	for {
		err := try()
		var dial *net.OpError
		if err == nil || !errors.As(err, &dial) || dial.Op != "dial" || errors.Is(err, fs.ErrPermission) {
			return err
		}
		if a.now().Sub(began) >= reconnect {
			return err
		}
		if !said {
			said = true
			fmt.Fprintf(a.err, "note: %s; trying for %s\n", exit.Printable(err.Error()), standing.Span(reconnect))
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pollEvery):
		}
	}
}

// codeOf is the exit code of a run that is over.
func codeOf(r run.Record) int {
	switch {
	case r.State == run.Cancelled:
		return exit.Cancelled
	case r.State != run.Succeeded:
		return exit.RunFailed
	case len(r.Warnings) > 0:
		return exit.Warnings
	}
	return exit.Good
}

// follow reads the record again and again until the run is over. It outlives a
// Redis that is away for less than reconnect. The record it returns is the last
// one read; an error is one of waiting, not of the run.
func (a *app) follow(ctx context.Context, c *connection, r run.Record, reconnect time.Duration, show display) (run.Record, error) {
	heard := a.now() // when Redis last answered
	away := false
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	show.update(r, c.now(ctx))
	for {
		read, err := c.read(ctx, r.ID, min(answerLimit, max(time.Second, reconnect)))
		switch {
		case ctx.Err() != nil:
			return r, errInterrupted
		case err == nil:
			if away {
				away = false
				show.back(c.now(ctx))
			}
			heard, r = a.now(), read
			show.update(r, c.now(ctx))
			if r.State.Over() {
				return r, nil
			}
		case errors.Is(err, run.ErrNotFound):
			r.State, r.Error = run.Failed, "the run's record is gone: Redis was emptied or replaced; its workers stop and clean up; run backup-all again"
			return r, nil
		case exit.Code(c.explain(err)) != exit.Unreachable:
			return r, err
		case a.now().Sub(heard) >= reconnect:
			return r, exit.Withf(exit.Unreachable, "%w; tried for %s; the run may go on without us: see `status %s` later", c.explain(err), standing.Span(reconnect), r.ID)
		case !away:
			away = true
			show.away("Redis is away, trying for "+standing.Span(reconnect)+": "+exit.Printable(err.Error()), c.now(ctx))
		}
		select {
		case <-ctx.Done():
			return r, errInterrupted
		case <-tick.C:
		}
	}
}

func (c *connection) read(ctx context.Context, id string, limit time.Duration) (run.Record, error) {
	ctx, done := context.WithTimeout(ctx, limit)
	defer done()
	return c.store.Get(ctx, id)
}

// summary says how the run ended, for people.
func (a *app) summary(r run.Record) {
	e := endingOf(r)
	line := fmt.Sprintf("run %s %s", r.ID, r.State)
	if r.Started != nil && r.Ended != nil {
		line += " after " + standing.Span(r.Ended.Sub(*r.Started))
	}
	fmt.Fprintln(a.out, line)
	if e.Set != nil {
		fmt.Fprintf(a.out, "set       %s (%s)\n", *e.Set, e.Type)
	}
	for _, archive := range e.Archives {
		fmt.Fprintf(a.out, "archive   %s\n", exit.Printable(archive))
	}
	if e.Manifest != nil {
		fmt.Fprintf(a.out, "manifest  %s\n", exit.Printable(*e.Manifest))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(a.out, "note      %s\n", exit.Printable(n))
	}
	for _, w := range e.Warnings {
		fmt.Fprintf(a.out, "warning   %s\n", exit.Printable(w))
	}
	if e.Error != nil {
		fmt.Fprintf(a.out, "error     %s\n", exit.Printable(*e.Error))
	}
}
