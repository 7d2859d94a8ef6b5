package pipeline

import (
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

// slot is a task under way. asynq has few slots: one that hangs is given back once its
// run is over, while what hangs keeps its lock and can touch nothing of a later run.
type slot struct {
	run, stage string
	over       time.Time     // when its run was first seen as ended
	giveUp     chan struct{} // closed: nobody waits for it any more
}

// slotGrace is how long after its run a task may go on in its slot.
const slotGrace = time.Minute

func (e *Engine) occupy(s *slot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.slots = append(e.slots, s)
}

func (e *Engine) vacate(s *slot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.slots = slices.DeleteFunc(e.slots, func(x *slot) bool { return x == s })
}

// giveUp gives back the slots of tasks that hang though their run has ended: those
// not of open runs.
func (e *Engine) giveUp(open []string) {
	now, grace := e.p.Now(), min(slotGrace, e.p.Limits.CloseAfter)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.slots {
		switch {
		case slices.Contains(open, s.run):
			s.over = time.Time{}
		case s.over.IsZero():
			s.over = now
		case now.Sub(s.over) > grace && s.giveUp != nil:
			close(s.giveUp)
			s.giveUp = nil
			e.p.Log.WithFields(logrus.Fields{"run": s.run, "stage": s.stage}).Error(
				"the run is over, but its stage does not end in this worker and holds the run's lock; the worker takes other tasks meanwhile. Restart the worker to end it")
		}
	}
}

// underWay names what runs, for people.
func (e *Engine) underWay() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var names []string
	for _, s := range e.slots {
		names = append(names, "stage "+s.stage+" of run "+s.run)
	}
	return strings.Join(names, ", ")
}
