package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/worker/stage"

	"golang.org/x/term"
)

// progress shows on a terminal how far an offline verb is. Anywhere else it shows nothing.
type progress struct {
	out         *os.File
	mu          sync.Mutex
	name        string
	total, done atomic.Int64
	stop        chan struct{}
	gone        sync.WaitGroup
}

func newProgress(out *os.File, quiet bool) *progress {
	p := &progress{out: out, stop: make(chan struct{})}
	if quiet || !term.IsTerminal(int(out.Fd())) {
		return p
	}
	p.gone.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.draw()
			case <-p.stop:
				fmt.Fprint(p.out, "\r\x1b[K")
				return
			}
		}
	})
	return p
}

// phase begins another phase.
func (p *progress) phase(name string) stage.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name = name
	p.total.Store(0)
	p.done.Store(0)
	return p
}

func (p *progress) end() {
	close(p.stop)
	p.gone.Wait()
}

func (p *progress) Total(n int64) { p.total.Store(n) }
func (p *progress) Done(n int64)  { p.done.Store(n) }
func (p *progress) Add(n int64)   { p.done.Add(n) }

func (p *progress) draw() {
	p.mu.Lock()
	name := p.name
	p.mu.Unlock()
	total, done := p.total.Load(), p.done.Load()
	if total <= 0 {
		fmt.Fprintf(p.out, "\r\x1b[K%s %s", name, exit.Size(done))
		return
	}
	const width = 30
	part := min(1, float64(done)/float64(total))
	full := int(part * width)
	fmt.Fprintf(p.out, "\r\x1b[K%-8s [%s%s] %3.0f%%  %s of %s", name, strings.Repeat("=", full), strings.Repeat(" ", width-full), 100*part, exit.Size(done), exit.Size(total))
}
