package schedule

import "time"

// Clock is where the scheduler takes the time from, so that tests can turn it.
type Clock interface {
	Now() time.Time
	// After sends once, when d has passed.
	After(d time.Duration) <-chan time.Time
}

// System is the machine's clock.
type System struct{}

// Now is the time without Go's monotonic reading: a clock that was set counts.
func (System) Now() time.Time { return time.Now().Round(0) }

// After is time.After.
func (System) After(d time.Duration) <-chan time.Time { return time.After(d) }
