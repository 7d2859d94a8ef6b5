package run

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever came earlier is shown to whoever came later, also when many come at once,
// and also when the clock of Redis went back.
func TestOfTwoWorkersTheLaterSeesTheOther(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	ahead := time.Now().Add(time.Hour).UnixMicro()
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "ahead", Node: "n", Neighbour: Neighbour{Joined: ahead}}))
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "earlier-version", Node: "n"}))
	const n = 20
	joined, seen := make([]Worker, n), make([][]Worker, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w := Worker{ID: fmt.Sprintf("w%d", i), Node: `n","joined":1,"x":"`, Host: "h", Neighbour: Neighbour{Boot: "b"}}
			var err error
			if w.Joined, err = b.Join(ctx, b.instance, w); err == nil {
				seen[i], err = b.Workers(ctx, b.instance)
			}
			joined[i] = w
			if err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	for i, w := range joined {
		require.Greater(t, w.Joined, ahead)
		require.Contains(t, seen[i], w, "as it was signed in")
		for j, other := range joined {
			require.True(t, i == j || w.Before(other) != other.Before(w))
			if other.Before(w) {
				require.Contains(t, seen[i], other)
			}
		}
		require.True(t, Worker{ID: "earlier-version"}.Before(w))
	}
	left, err := b.Sign(ctx, b.instance, "w1")
	require.NoError(t, err)
	require.InDelta(t, presenceTTL, left, float64(5*time.Second))
	left, err = b.Sign(ctx, b.instance, "nobody")
	require.NoError(t, err)
	require.Zero(t, left)
}
