package redisserver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"catalog-backup/worker/keeper"
)

const (
	// hung is Options.Hung where it is not set.
	hung = 30 * time.Second
	// askEvery is how often the owner asks; an answer may take as long.
	askEvery = time.Second
)

// endIfHung asks the server for a sign of life until it ends, and ends it where none
// came for s.Hung: its process stopped, it waits for a disk, or a script never ends.
// What was written is in the append-only file, and serve starts it again on that.
//
// The time is counted in questions, not on a clock: where the worker was frozen with
// its server, or the machine slept, nobody has asked.
func (s *Server) endIfHung(p *keeper.Process, end context.CancelCauseFunc) {
	t := time.NewTicker(askEvery)
	defer t.Stop()
	for silent := time.Duration(0); silent < s.Hung; {
		select {
		case <-p.Done():
			return
		case <-t.C:
		}
		err := answers(s.Socket)
		if silent += askEvery; lives(err) {
			silent = 0
		}
	}
	s.Errorf("the embedded Redis has answered nothing for %v: it is ended, by force if it must be, and started again on its data", s.Hung)
	end(fmt.Errorf("it answered nothing for %v", s.Hung))
}

// lives tells whether what answers returned came from a server at work. One that loads
// its data, or refuses because its disk is full, is: a restart would not mend it.
// One that is busy with a script answers, but does nothing for anybody.
func lives(err error) bool {
	return err == nil || strings.HasPrefix(err.Error(), "-") && !strings.HasPrefix(err.Error(), "-BUSY ")
}
