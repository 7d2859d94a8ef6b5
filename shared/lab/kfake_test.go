package lab

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fill makes a topic with records.
func fill(t *testing.T, b *Broker, topic string, records int) {
	t.Helper()
	ctx := context.Background()
	c, err := b.Client(kgo.DefaultProduceTopic(topic))
	require.NoError(t, err)
	defer c.Close()
	_, err = kadm.NewClient(c).CreateTopic(ctx, 2, 1, nil, topic)
	require.NoError(t, err)
	for i := range records {
		require.NoError(t, c.ProduceSync(ctx, &kgo.Record{Key: fmt.Append(nil, i), Value: []byte("value")}).FirstErr())
	}
}

// count counts the records of a topic by its end offsets.
func count(t *testing.T, b *Broker, topic string) int64 {
	t.Helper()
	c, err := b.Client()
	require.NoError(t, err)
	defer c.Close()
	ends, err := kadm.NewClient(c).ListEndOffsets(context.Background(), topic)
	require.NoError(t, err)
	var n int64
	ends.Each(func(o kadm.ListedOffset) { require.NoError(t, o.Err); n += o.Offset })
	return n
}

// topics lists the names of all topics.
func topics(t *testing.T, b *Broker, u User) []string {
	t.Helper()
	c, err := kgo.NewClient(b.ClientOptsFor(u)...)
	require.NoError(t, err)
	defer c.Close()
	all, err := kadm.NewClient(c).ListTopics(context.Background())
	require.NoError(t, err)
	return all.Names()
}

func TestKfake(t *testing.T) {
	var pid int
	var dir string
	t.Run("life", func(t *testing.T) {
		b := Kfake(t, KfakeOptions{Nodes: 2})
		require.Len(t, b.Brokers, 2)
		fill(t, b, "events", 100)
		require.NoError(t, b.Kill9())
		require.NoError(t, b.Start())
		require.Equal(t, int64(100), count(t, b, "events"))
		pid, dir = b.PID(), b.Root
	})
	gone(t, pid, dir)
}

func TestKfakeUsersAndACLs(t *testing.T) {
	reader := User{Mechanism: "SCRAM-SHA-256", Name: "reader", Password: "reader-secret"}
	b := Kfake(t, KfakeOptions{ACLs: true, Users: []KfakeUser{
		{User: User{Mechanism: "PLAIN", Name: "admin", Password: "admin-secret", Super: true}},
		{User: reader, ACLs: []kfake.ACL{{
			Resource: kmsg.ACLResourceTypeTopic, Name: "seen", Pattern: kmsg.ACLResourcePatternTypeLiteral,
			Operation: kmsg.ACLOperationDescribe, Allow: true,
		}}},
	}})
	fill(t, b, "seen", 1)
	fill(t, b, "hidden", 1)
	require.Equal(t, []string{"seen"}, topics(t, b, reader))
	require.Equal(t, []string{"hidden", "seen"}, topics(t, b, *b.Admin))
}
