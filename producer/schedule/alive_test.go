package schedule

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSchedulerWhoseLoopHangsIsNotAlive(t *testing.T) {
	y := newYard(t, "2026-11-23T18:00:00Z", "")
	h := y.scheduler("s1")
	armed, caught, release := atomic.Bool{}, make(chan struct{}), make(chan struct{})
	h.p.Read = func() ([]byte, error) { // as a file on a dead mount
		if armed.CompareAndSwap(true, false) {
			close(caught)
			<-release
		}
		return y.read()
	}
	h.run()
	defer h.end()
	require.NoError(t, h.Alive(ctx))
	require.NoError(t, h.UpToDate(ctx))

	armed.Store(true)
	y.clock.set(y.clock.Now().Add(10 * time.Second))
	<-caught
	require.NoError(t, h.Alive(ctx), "not at once")
	y.clock.set(y.clock.Now().Add(turnLimit + time.Minute))
	require.ErrorContains(t, h.Alive(ctx), "it has not gone round for 4m0s (limit 3m0s)")
	require.ErrorContains(t, h.UpToDate(ctx), "the plans were last looked at 4m10s ago")
	close(release)
	y.asleep(1)
	y.at("2026-11-23T19:00:00Z", 1)
	require.NoError(t, h.Alive(ctx))
	require.NoError(t, h.UpToDate(ctx))

	// Redis away: the loop goes round and tells that it is behind.
	require.NoError(t, y.redis.Kill9())
	y.at("2026-11-23T19:00:31Z", 1)
	require.NoError(t, h.Alive(ctx))
	require.ErrorContains(t, h.UpToDate(ctx), "the plans were last looked at 31s ago")
	require.NoError(t, y.redis.Start())
	for deadline := time.Now().Add(patience); h.UpToDate(ctx) != nil; { // a connection of before may fail once
		require.True(t, time.Now().Before(deadline), "the scheduler does not catch up")
		y.clock.set(y.clock.Now().Add(time.Second))
		y.asleep(1)
	}
}
