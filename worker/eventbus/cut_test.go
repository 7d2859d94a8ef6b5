package eventbus

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/shared/lab"
)

// Topics and partitions that are made between the look at the topics and the cut
// are in the set, or at least named.
func TestTopicsMadeBeforeTheCut(t *testing.T) {
	t.Parallel()
	for _, times := range []int32{1, 100} {
		c, o := inside(t)
		u := &bus{t: t, b: &lab.Broker{Brokers: c.ListenAddrs()}}
		u.Client = u.client()
		u.adm = kadm.NewClient(u.Client)
		var n atomic.Int32
		c.ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
			c.KeepControl()
			if i := n.Add(1); i <= times {
				c.SleepControl(func() {
					u.create(fmt.Sprintf("made-%d", i), 1)
					u.produce(u.Client, rec(fmt.Sprintf("made-%d", i), 0, 1))
					if i == 1 {
						_, err := u.adm.CreatePartitions(bg, 1, "t")
						require.NoError(t, err)
					}
				})
			}
			return nil, nil, false
		})
		s := newStore()
		e, f, err := dumpInto(o, s)
		require.NoError(t, err)
		require.Empty(t, s.verify(t, e))
		require.Contains(t, topicNames(e.Topics), "made-1")
		require.Equal(t, int64(1), e.Topics[0].Partitions[0].Records)
		for _, topic := range e.Topics {
			if topic.Name == "t" {
				require.Len(t, topic.Partitions, 2)
			}
		}
		if times == 1 {
			require.Empty(t, f.Warnings)
			continue
		}
		require.Len(t, f.Warnings, 1)
		require.True(t, strings.Contains(f.Warnings[0], "may not be in the set: made-10, made-9;"), f.Warnings[0])
	}
}
