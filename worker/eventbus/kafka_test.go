package eventbus

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/worker/stage"
)

// Logins, TLS, rights and hidden topics on Apache Kafka.
func TestKafkaLoginsAndRights(t *testing.T) {
	t.Parallel()
	users := []lab.User{
		{Mechanism: ScramSHA256, Name: "backup", Password: "backup-secret"},
		{Mechanism: ScramSHA512, Name: "backup512", Password: "backup-secret"},
		{Mechanism: Plain, Name: "alice", Password: "alice-secret"},
	}
	b := newBus(t, lab.Kafka(t, lab.KafkaOptions{TLS: true, Users: users}))
	b.create("seen", 1)
	b.create("hidden", 1)
	b.produce(b.Client, recs("seen", 1, 100)...)
	allow := func(user string, build *kadm.ACLBuilder) {
		_, err := b.adm.CreateACLs(bg, build.Allow("User:"+user).AllowHosts("*"))
		require.NoError(t, err)
	}
	literal := kadm.ACLPatternLiteral
	for _, u := range users[:2] {
		allow(u.Name, kadm.NewACLs().Topics("seen").ResourcePatternType(literal).Operations(kadm.OpRead, kadm.OpDescribeConfigs))
		allow(u.Name, kadm.NewACLs().Groups("*").ResourcePatternType(literal).Operations(kadm.OpDescribe))
	}
	o := func(u lab.User) Options {
		o := b.options()
		o.TLS = &TLS{CAFile: b.b.Certificates.CAFile}
		o.SASL = &SASL{u.Mechanism, u.Name, u.Password}
		return o
	}
	_, f, err := Probe(bg, o(users[1])) // no right to compare: a warning
	require.NoError(t, err)
	require.Contains(t, strings.Join(f.Warnings, "\n"), "could not be checked")
	allow("backup", kadm.NewACLs().Clusters().ResourcePatternType(literal).Operations(kadm.OpDescribe))
	require.Eventually(t, func() bool {
		_, _, err = Probe(bg, o(users[0]))
		return err != nil && strings.Contains(err.Error(), "hidden")
	}, eventually, tick)
	require.True(t, stage.IsPermanent(err))
	allow("backup", kadm.NewACLs().Topics("hidden").ResourcePatternType(literal).Operations(kadm.OpRead, kadm.OpDescribeConfigs))
	require.Eventually(t, func() bool { _, _, err = Probe(bg, o(users[0])); return err == nil }, eventually, tick)
	e, s, f := dumpAll(t, o(users[0]))
	require.Empty(t, f.Warnings)
	require.Len(t, e.Topics, 2)
	require.Empty(t, s.verify(t, e))

	_, _, err = Probe(bg, o(users[2])) // PLAIN, without any right
	require.ErrorContains(t, err, "backup of nothing")
	for _, u := range users {
		u.Password = "wrong-secret"
		_, _, err = Probe(bg, o(u))
		require.True(t, stage.IsPermanent(err), "%v", err)
		require.ErrorContains(t, err, "password")
		require.NotContains(t, err.Error(), "wrong-secret")
	}
	unknown := o(users[0])
	unknown.TLS = &TLS{}
	_, _, err = Probe(bg, unknown)
	require.True(t, stage.IsPermanent(err), "%v", err)
	require.ErrorContains(t, err, "unknown authority")
	plain := o(users[0])
	plain.TLS = nil
	_, _, err = Probe(bg, plain)
	require.True(t, stage.IsPermanent(err), "%v", err)
}

// Apache Kafka killed in the dump and in the load.
func TestKafkaKilled(t *testing.T) {
	b := newBus(t, lab.Kafka(t, lab.KafkaOptions{}))
	b.create("t", 3)
	b.produce(b.client(kgo.ProducerBatchMaxBytes(8<<10), kgo.ProducerBatchCompression(kgo.NoCompression())), recs("t", 3, 6000)...)
	o := b.options()
	o.FetchBytes, o.SegmentBytes, o.Budget = 20_000, 40_000, 0
	calm, calmStore, _ := dumpAll(t, o)
	s := newStore()
	var wg sync.WaitGroup
	restart := func() {
		require.NoError(t, b.b.Kill9())
		wg.Go(func() { require.NoError(t, b.b.Start()) })
	}
	once(s, restart)
	e, _, err := dumpInto(o, s)
	wg.Wait()
	require.NoError(t, err)
	require.Equal(t, calm.Topics, e.Topics)
	require.Equal(t, calmStore.content, s.content)

	// The same broker takes the set after the topic is gone, and dies in between.
	from := newBus(t, lab.Kfake(t, lab.KfakeOptions{}))
	_, err = Load(bg, from.options(), e, s, LoadOptions{})
	require.NoError(t, err)
	_, err = b.adm.DeleteTopics(bg, "t")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return CheckTarget(bg, o, e) == nil }, eventually, tick)
	_, err = Load(bg, o, e, &killing{store: s, at: 4, kill: restart}, LoadOptions{Parallel: 1})
	wg.Wait()
	require.NoError(t, err)
	compare(t, e, from, b)
}
