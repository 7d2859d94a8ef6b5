package pipeline

import (
	"context"
	"strings"
	"time"
)

// Shutdown takes no new task, lets attempts hand their stages on, and ends. It does not
// wait longer than StopWithin for what does not end: the process goes, its tools with
// it, and then the lock of the run is free.
func (w *Worker) Shutdown() {
	w.stopping.Store(true)
	w.server.Stop()
	parts := map[string]func(){"the reconciler": w.reconcile.Shutdown, "attempts": w.engine.Stop}
	for name, h := range w.p.Others {
		parts[name] = h.Stop
	}
	ctx, cancel := context.WithTimeout(context.Background(), w.engine.p.StopWithin)
	defer cancel()
	late := within(ctx, parts)
	close(w.done)
	last, cancelLast := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancelLast()
	late = append(late, within(last, map[string]func(){"sweeping": w.wg.Wait, "asynq": w.server.Shutdown})...)
	if len(late) > 0 {
		w.p.Log.Errorf("the worker ends, though these do not: %s (%s); what they left is taken up by the next worker", strings.Join(late, ", "), w.engine.underWay())
	}
	w.near.leave()
}

// within does all parts at once and names those that have not ended when ctx has.
func within(ctx context.Context, parts map[string]func()) []string {
	ended := make(chan string, len(parts))
	for name, do := range parts {
		go func() { do(); ended <- name }()
	}
	waits := make(map[string]bool, len(parts))
	for name := range parts {
		waits[name] = true
	}
	for len(waits) > 0 {
		select {
		case name := <-ended:
			delete(waits, name)
		case <-ctx.Done():
			var late []string
			for name := range waits {
				late = append(late, name)
			}
			return late
		}
	}
	return nil
}
