package lab

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestKafka(t *testing.T) {
	var pid int
	var dir string
	t.Run("life", func(t *testing.T) {
		b := Kafka(t, KafkaOptions{Extra: []string{"message.max.bytes=2000000"}})
		require.Empty(t, topics(t, b, User{}), "the probe left its topic")
		fill(t, b, "events", 100)
		require.NoError(t, b.Kill9())
		require.NoError(t, b.Start())
		require.Equal(t, int64(100), count(t, b, "events"))
		require.Equal(t, []string{"events"}, topics(t, b, User{}))
		require.NoError(t, b.Shutdown())
		segments, err := filepath.Glob(filepath.Join(b.DataDir, "events-*", "*.log"))
		require.NoError(t, err)
		require.Len(t, segments, 2)
		records := 0
		for _, s := range segments {
			out, err := b.DumpLogSegments(s)
			require.NoError(t, err)
			records += strings.Count(out, "| offset: ")
		}
		require.Equal(t, 100, records)
		require.NoError(t, b.Start())
		pid, dir = b.PID(), b.Root
	})
	gone(t, pid, dir)
}

func TestKafkaLoginsOverTLS(t *testing.T) {
	super := User{Mechanism: "SCRAM-SHA-512", Name: "super", Password: "super-secret", Super: true}
	scram := User{Mechanism: "SCRAM-SHA-256", Name: "scram", Password: `q"u\o te`}
	plain := User{Mechanism: "PLAIN", Name: "plain", Password: `q"u\o te ü`}
	b := Kafka(t, KafkaOptions{TLS: true, Users: []User{super, scram, plain}})
	fill(t, b, "events", 1)
	require.Equal(t, []string{"events"}, topics(t, b, super))
	require.Empty(t, topics(t, b, scram))
	require.Empty(t, topics(t, b, plain))
	for _, u := range []User{scram, plain} {
		u.Password = "wrong"
		c, err := kgo.NewClient(append(b.ClientOptsFor(u), kgo.RequestRetries(0))...)
		require.NoError(t, err)
		defer c.Close()
		_, err = kadm.NewClient(c).ListTopics(context.Background())
		require.ErrorIs(t, err, kerr.SaslAuthenticationFailed)
	}
	_, err := os.Stat(b.Certificates.CAFile)
	require.NoError(t, err)
	require.NoError(t, b.Kill9())
	require.NoError(t, b.Start())
	require.Equal(t, []string{"events"}, topics(t, b, super))
}

func TestKafkaClientCertificates(t *testing.T) {
	b := Kafka(t, KafkaOptions{TLS: true, ClientAuth: true, Extra: []string{"super.users=User:ANONYMOUS;User:CN=client"}})
	fill(t, b, "events", 1)
	require.Equal(t, int64(1), count(t, b, "events"))
}
