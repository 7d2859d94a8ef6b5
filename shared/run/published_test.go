package run

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// listed are the nodes whose word is listed, by the store and by the survey.
func (b *bench) listed() []string {
	b.t.Helper()
	all, err := b.Published(ctx, b.instance)
	require.NoError(b.t, err)
	nodes, surveyed := []string{}, []string{}
	for _, p := range all {
		nodes = append(nodes, p.Node)
	}
	for _, p := range b.surveyed().Published {
		surveyed = append(surveyed, p.Node)
	}
	require.ElementsMatch(b.t, nodes, surveyed)
	return nodes
}

func (b *bench) kept() []string {
	b.t.Helper()
	return append(must(b.rdb.HKeys(ctx, setsKey(b.instance)).Result()), must(b.rdb.HKeys(ctx, nodesKey(b.instance)).Result())...)
}

// works is a worker of the node that gives its sign and publishes.
func (b *bench) works(node string) {
	b.t.Helper()
	require.NoError(b.t, b.SignIn(ctx, b.instance, Worker{ID: "w-" + node, Node: node}))
	require.NoError(b.t, b.Publish(ctx, b.instance, Published{At: b.clock, Node: node}))
}

func TestWhatASilentNodePublishedIsDropped(t *testing.T) {
	b := newBench(t)
	b.works("host1")
	b.works("host2")
	b.clock = b.clock.Add(silentFor)
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w", Node: "host1"}))
	require.ElementsMatch(t, []string{"host1", "host2"}, b.listed())
	b.clock = b.clock.Add(time.Second)
	require.NoError(t, b.SignIn(ctx, b.instance, Worker{ID: "w", Node: "host1"}))
	require.Equal(t, []string{"host1"}, b.listed(), "at once, whoever looks")
	require.NoError(t, b.Publish(ctx, b.instance, Published{At: b.clock, Node: "host1"}))
	require.Equal(t, []string{"host1", "host1"}, b.kept(), "and it is removed")
	b.works("host2")
	require.ElementsMatch(t, []string{"host1", "host2"}, b.listed(), "it is back")
}

// The age of the newest set is what tells people that backups have stopped.
func TestTheLastWordOfAnInstanceStays(t *testing.T) {
	b := newBench(t)
	b.works("host1")
	b.clock = b.clock.Add(100 * silentFor)
	require.Equal(t, []string{"host1"}, b.listed())
}

func TestAHostFarAheadSilencesNobody(t *testing.T) {
	b := newBench(t)
	b.works("host1")
	require.NoError(t, b.rdb.HSet(ctx, nodesKey(b.instance), "host2", "2190-01-01T00:00:00Z").Err()) // by an earlier version
	require.NoError(t, b.Publish(ctx, b.instance, Published{At: b.clock.Add(99 * silentFor), Node: "host2"}))
	require.ElementsMatch(t, []string{"host1", "host2"}, b.listed())
}

func TestSurveysAreDatedByRedis(t *testing.T) {
	b := newBench(t)
	b.works("host1")
	all, err := b.real().Surveys(ctx)
	require.NoError(t, err)
	at, err := b.rdb.Time(ctx).Result()
	require.NoError(t, err)
	require.WithinDuration(t, at, all[0].At, time.Minute)
	require.Equal(t, b.clock, b.surveyed().At)
}

func TestForget(t *testing.T) {
	b := newBench(t)
	b.works("host1")
	b.works("host2")
	r := claimed(b) // on host1
	var used *InUseError
	_, err := b.Forget(ctx, b.instance, "host2")
	require.ErrorAs(t, err, &used)
	require.NoError(t, b.SignOut(ctx, b.instance, "w-host1"))
	_, err = b.Forget(ctx, b.instance, "host1")
	require.ErrorAs(t, err, &used)
	require.Contains(t, used.By, r.ID)
	b.advance(r, "")
	known, err := b.Forget(ctx, b.instance, "host1")
	require.NoError(t, err)
	require.True(t, known)
	require.Equal(t, []string{"host2", "host2"}, b.kept())
	known, err = b.Forget(ctx, b.instance, "host1")
	require.NoError(t, err)
	require.False(t, known)
}
