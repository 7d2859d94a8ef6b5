package schedule

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// turnLimit is how long one round of the loop may take. It asks Redis for callLimit
	// at most, but a client that is not answered needs longer to give up.
	turnLimit = 3 * time.Minute
	// behindLimit is after how many rounds without success the scheduler is behind.
	behindLimit = 6 * lookInterval
)

// Alive tells whether the loop goes round. A Redis that is away does not stop it.
func (s *Service) Alive(ctx context.Context) error {
	if s.stopping.Load() {
		return nil
	}
	return s.beat.Check("main loop", turnLimit).Do(ctx)
}

// UpToDate tells whether the plans were all looked at lately.
func (s *Service) UpToDate(context.Context) error {
	if s.stopping.Load() {
		return errors.New("the scheduler is stopping")
	}
	if age := s.p.Clock.Now().Sub(s.Turned()); age > behindLimit {
		return fmt.Errorf("the plans were last looked at %s ago: Redis was away, or refuses writes; see the scheduler's log", age.Round(time.Second))
	}
	return nil
}
