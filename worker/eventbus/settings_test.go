package eventbus

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"catalog-backup/shared/lab"
)

// Topics without settings of their own, under brokers with another default: they
// stay what they were, and whoever restores them is told. The Kafka's default is
// compact meanwhile, kfake's is delete.
func (b *bus) keepsPolicies(t *testing.T) {
	policy, size := "compact", "2000000"
	for k, v := range map[string]*string{"log.cleanup.policy": &policy, "message.max.bytes": &size} {
		b.alterDefault(kadm.AlterConfig{Op: kadm.SetConfig, Name: k, Value: v})
		defer b.alterDefault(kadm.AlterConfig{Op: kadm.DeleteConfig, Name: k})
	}
	j := b.journal("inherits")
	j.put(10, numbered("key", 30)...)
	fake := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	back := fake.journal("deletes")
	back.put(10, numbered("key", 30)...)

	for _, c := range []struct {
		j      *journal
		to     *bus
		policy string
	}{{j, fake, "compact"}, {back, b, "delete"}} {
		for _, final := range []bool{true, false} {
			o := c.j.u.options()
			o.Include = []string{c.j.topic}
			e, s, f := dumpAll(t, o)
			require.Empty(t, f.Warnings)
			require.Equal(t, c.policy, e.Topics[0].Defaults["cleanup.policy"])
			require.NotContains(t, e.Topics[0].Configs, "cleanup.policy")
			out, err := Load(bg, c.to.options(), e, s, LoadOptions{FinalRetention: final})
			require.NoError(t, err)
			require.Empty(t, out.Warnings)
			require.Contains(t, strings.Join(out.Notes, "\n"), "cleanup.policy="+c.policy+", set on the topic itself: 1 topics ("+c.j.topic+")")
			configs, _, err := c.to.connected().topicConfigs(bg, []string{c.j.topic})
			require.NoError(t, err)
			now := configs[c.j.topic]
			require.NotNil(t, now.own["cleanup.policy"])
			require.Equal(t, c.policy, *now.own["cleanup.policy"])
			for k, v := range e.Topics[0].Defaults {
				if here, told := now.effective[k]; told && k != "max.message.bytes" && (final || !strings.HasPrefix(k, "retention.")) {
					require.Equal(t, v, here, k)
				}
			}
			require.True(t, atLeast(now.effective["max.message.bytes"], e.Topics[0].Defaults["max.message.bytes"]))
			if final {
				require.NotContains(t, now.own, "retention.ms")
			}

			e.Topics[0].Defaults = nil // as in a set of before
			e.Topics[0].Partitions[0].Compacted = c.policy == "compact"
			_, err = c.to.adm.DeleteTopics(bg, c.j.topic)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return CheckTarget(bg, c.to.options(), e) == nil }, eventually, tick)
			out, err = Load(bg, c.to.options(), e, s, LoadOptions{FinalRetention: final})
			require.NoError(t, err)
			require.Equal(t, c.policy == "compact", strings.Contains(strings.Join(out.Warnings, "\n"), "topic inherits was compacted, by a default"))
			_, err = c.to.adm.DeleteTopics(bg, c.j.topic)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return CheckTarget(bg, c.to.options(), e) == nil }, eventually, tick)
		}
	}
}
