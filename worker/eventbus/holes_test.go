package eventbus

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// Apache Kafka: a topic that was compacted once and deletes now is backed up; one
// whose broker lost a segment is not, nor does an allowance for the one cover the other.
func TestKafkaOnceCompactedAndReallyLost(t *testing.T) {
	t.Parallel()
	b := newBus(t, lab.Kafka(t, lab.KafkaOptions{Extra: cleaning}))
	keys := numbered("key", 60)
	options := func(topics ...string) Options {
		o := b.options()
		o.FetchBytes, o.SegmentBytes, o.Include = 20_000, 40_000, topics
		return o
	}

	// First batches that vanish whole, then such as keep one record of ten and so
	// tell, for these below too.
	told := b.journal("told", append(rolling, "cleanup.policy=delete")...)
	told.put(1, keys[:9]...)
	b.alter("told", "cleanup.policy=compact")
	for i, deadline := 0, time.Now().Add(eventually); ; i++ {
		told.put(10, append(slices.Clone(keys[:9]), fmt.Sprintf("once-%d", i))...)
		if list := b.read("told"); list[0].Offset >= 18 && list[1].Offset-list[0].Offset == 10 {
			break
		}
		require.True(t, time.Now().Before(deadline), "the cleaner does not come")
	}
	b.alter("told", "cleanup.policy=delete")
	s := newStore()
	e, f, err := dumpInto(options("told"), s)
	require.NoError(t, err)
	require.Empty(t, f.Warnings)
	p := told.requireValues(e, s)
	require.True(t, p.Compacted)
	require.NotEmpty(t, p.CompactedAway)
	require.Empty(t, p.Gaps)
	require.Equal(t, set.ByCatchingUp, p.EndedBy)

	// In batches of one record nothing is left that tells.
	untold := b.journal("untold", append(rolling, "cleanup.policy=compact")...)
	untold.put(1, keys...)
	untold.cleanUntil(keys, below(60))
	b.alter("untold", "cleanup.policy=delete")

	lost := b.journal("lost", "segment.bytes=20000")
	lost.put(10, numbered("key", 400)...)
	require.NoError(t, b.b.Shutdown())
	files, err := filepath.Glob(filepath.Join(b.b.DataDir, "lost-0", "*.log"))
	require.NoError(t, err)
	require.Greater(t, len(files), 4)
	for _, ending := range []string{"log", "index", "timeindex"} {
		require.NoError(t, os.Remove(strings.TrimSuffix(files[2], "log")+ending))
	}
	require.NoError(t, b.b.Start())

	for _, topic := range []string{"untold", "lost"} {
		_, _, err = dumpInto(options("told", topic), newStore())
		require.ErrorContains(t, err, "topic "+topic+" partition 0: offsets")
		require.ErrorContains(t, err, "missing in the broker's log")
		require.ErrorContains(t, err, "eventbus.allow_gaps_in to ["+topic+"]")
		require.True(t, stage.IsPermanent(err))
	}
	o := options("untold", "lost")
	o.AllowGapsIn = []string{"unt*"}
	_, _, err = dumpInto(o, newStore())
	require.ErrorContains(t, err, "topic lost partition 0: offsets")

	o.Include = []string{"untold"}
	s = newStore()
	e, f, err = dumpInto(o, s)
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "topic untold partition 0: offsets")
	p = untold.requireValues(e, s)
	require.NotEmpty(t, p.Gaps)
	require.Len(t, untold.at(p.Cut), 60)
}
