package pipeline

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An idle worker looks for work as often as it is told: ten times the default here.
func TestPoll(t *testing.T) {
	g := newGround(t)
	g.worker(func(o *workerOptions) { o.Limits.Poll = 10 * time.Millisecond })
	calls := func() (n int) {
		text, err := g.rdb.Info(context.Background(), "commandstats").Result()
		require.NoError(t, err)
		_, after, _ := strings.Cut(text, "cmdstat_evalsha:calls=")
		_, _ = fmt.Sscanf(after, "%d", &n)
		return n
	}
	g.eventually(5*time.Second, "the worker looks", func() bool { return calls() > 10 })
	begin := calls()
	g.eventually(4*time.Second, "300 looks", func() bool { return calls() > begin+300 })
}
