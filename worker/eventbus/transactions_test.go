package eventbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// opened begins a transaction with one record, in a topic that has records before
// and gets some behind. It returns how to end it.
func (j *journal) opened(keys []string) (end func(kgo.TransactionEndTry)) {
	j.u.t.Helper()
	j.put(10, keys...)
	tx := j.u.client(kgo.TransactionalID("tx-"+j.topic), kgo.TransactionTimeout(10*time.Minute))
	require.NoError(j.u.t, tx.BeginTransaction())
	r := &kgo.Record{Topic: j.topic, Key: []byte("in the transaction"), Value: []byte("of " + j.topic)}
	require.NoError(j.u.t, tx.ProduceSync(bg, r).FirstErr())
	j.put(10, keys...)
	return func(how kgo.TransactionEndTry) {
		require.NoError(j.u.t, tx.EndTransaction(bg, how))
		if how == kgo.TryCommit {
			j.log = append(j.log, r)
		}
	}
}

func TestAbortCommandLogsIn(t *testing.T) {
	o := Options{Brokers: []string{"b1:9093", "b2:9093"}}
	require.Equal(t, "kafka-transactions.sh --bootstrap-server b1:9093,b2:9093 abort --topic t --partition 3 --start-offset 7", o.abortCommand("t", 3, 7))
	for _, o := range []Options{{TLS: &TLS{}}, {SASL: &SASL{}}} {
		require.Contains(t, o.abortCommand("t", 3, 7), " --command-config FILE abort ")
	}
}

// A transaction is open at the cut, on Apache Kafka. What stands behind it in the
// log is waited for.
func TestKafkaOpenTransactionAtTheCut(t *testing.T) {
	t.Parallel()
	b := newBus(t, lab.Kafka(t, lab.KafkaOptions{Extra: cleaning}))
	keys := numbered("key", 40)
	b.create("other", 1)
	b.produce(b.client(kgo.ProducerBatchMaxBytes(8<<10), kgo.ProducerBatchCompression(kgo.NoCompression())), recs("other", 1, 300)...)
	options := func(topic string, wait time.Duration) Options {
		o := b.options()
		o.Include, o.TransactionWait, o.Parallel, o.SegmentBytes = []string{topic, "other"}, wait, 1, 40_000
		return o
	}
	// waiting calls f at the log's word that a transaction is waited for: the others are read then.
	waiting := func(o *Options, s *store, f func()) {
		var once sync.Once
		o.Logf = func(format string, args ...any) {
			if strings.Contains(format, "waiting") {
				once.Do(func() {
					require.Contains(t, strings.Join(s.order, "\n"), "/other/0/")
					f()
				})
			}
		}
	}

	for _, policy := range []string{"delete", "compact"} {
		for how, name := range map[kgo.TransactionEndTry]string{kgo.TryCommit: "committed", kgo.TryAbort: "aborted"} {
			j := b.journal(policy+"-"+name, append(rolling, "cleanup.policy="+policy)...)
			end := j.opened(keys)
			cut := b.end(j.topic)
			o, s := options(j.topic, 20*time.Second), newStore()
			waiting(&o, s, func() {
				end(how)
				if policy == "compact" { // and the cleaner takes away what stood behind
					j.cleanUntil(keys, func(list []*kgo.Record) bool { return list[0].Key[0] == 'i' || list[0].Offset >= cut })
				}
			})
			e, f, err := dumpInto(o, s)
			require.NoError(t, err)
			require.Empty(t, f.Warnings)
			require.Contains(t, strings.Join(f.Notes, "\n"), "transactions that were open at the cut were waited for, in "+j.topic+"/0")
			p := j.requireValues(e, s)
			require.Equal(t, cut, p.Listed)
			if policy == "delete" {
				require.Equal(t, set.ByCut, p.EndedBy)
				require.Equal(t, cut, p.Cut)
			} else {
				require.Equal(t, set.ByCatchingUp, p.EndedBy)
				require.Greater(t, p.Cut, cut)
			}
			_, there := j.at(p.Cut)["in the transaction"]
			require.Equal(t, how == kgo.TryCommit, there)
		}
	}

	for _, policy := range []string{"delete", "compact"} {
		j := b.journal(policy+"-never", append(rolling, "cleanup.policy="+policy)...)
		end := j.opened(keys)
		o := options(j.topic, 300*time.Millisecond)
		_, _, err := dumpInto(o, newStore())
		require.True(t, stage.IsPermanent(err), "%v", err)
		topics := kadm.TopicsSet{}
		topics.Add(j.topic, 0)
		producers, derr := b.adm.DescribeProducers(bg, topics)
		require.NoError(t, derr)
		told := false
		for _, p := range producers[j.topic].Partitions[0].ActiveProducers {
			told = told || p.CurrentTxnStartOffset == 40 && strings.Contains(err.Error(), fmt.Sprintf("producer %d, epoch %d,", p.ProducerID, p.ProducerEpoch))
		}
		require.True(t, told, "%v", err)
		for _, text := range []string{"topic " + j.topic + " partition 0", "open since offset 40 ", `transactional id "tx-` + j.topic + `"`, "holds back offsets 40 to 80",
			"kafka-transactions.sh --bootstrap-server " + b.b.Brokers[0] + " abort --topic " + j.topic + " --partition 0 --start-offset 40", "eventbus.allow_gaps_in to [" + j.topic + "]"} {
			require.ErrorContains(t, err, text)
		}

		o.AllowGapsIn = []string{j.topic}
		s := newStore()
		e, f, err := dumpInto(o, s)
		require.NoError(t, err)
		require.Len(t, f.Warnings, 1)
		require.Contains(t, f.Warnings[0], "topic "+j.topic+" partition 0: an open transaction holds back offsets 40 to 80; they are not in the set")
		p := j.requireValues(e, s)
		require.Equal(t, set.ByTransaction, p.EndedBy)
		require.Equal(t, []int64{40, 81}, []int64{p.Cut, p.Listed})

		o.AllowGapsIn, o.TransactionWait = nil, 10*time.Minute
		ctx, cancel := context.WithCancelCause(bg)
		var at time.Time
		s = newStore()
		waiting(&o, s, func() { at = time.Now(); cancel(errors.New("the user had enough")) })
		pos, _, err := ReadPositions(ctx, o)
		require.NoError(t, err)
		_, _, err = Dump(ctx, o, pos, s, stage.NoProgress{})
		require.ErrorContains(t, err, "the user had enough")
		require.Less(t, time.Since(at), 3*time.Second)
		end(kgo.TryAbort)
	}

	// It ended while others were read, for longer than the wait.
	j := b.journal("ended", append(rolling, "cleanup.policy=delete")...)
	end := j.opened(keys)
	o, s := options("ended", time.Minute), newStore()
	var late atomic.Int64
	o.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	while(s, "/ended/", 1, func() {
		end(kgo.TryCommit)
		require.Eventually(t, func() bool { return b.stable("ended") > 40 }, eventually, tick)
		late.Store(int64(time.Hour))
	})
	e, f, err := dumpInto(o, s)
	require.NoError(t, err)
	require.Empty(t, f.Warnings)
	require.Len(t, j.requireValues(e, s).Segments, 2)

	// Many partitions are held: the time is kept, and all of them are named.
	b.create("wide", 40)
	tx := b.client(kgo.TransactionalID("tx-wide"))
	require.NoError(t, tx.BeginTransaction())
	require.NoError(t, tx.ProduceSync(bg, recs("wide", 40, 40)...).FirstErr())
	end = j.opened(keys)
	o = options("wide", time.Second)
	o.Include = []string{"wide", "ended"}
	began := time.Now()
	_, _, err = dumpInto(o, newStore())
	require.Less(t, time.Since(began), 5*time.Second)
	require.ErrorContains(t, err, "stay open longer than eventbus.transaction_wait (1s): topic ended partition 0: ")
	require.ErrorContains(t, err, "and so in 31 more partitions: wide/9, ")
	require.ErrorContains(t, err, "abort --topic ended --partition 0 ")
	require.ErrorContains(t, err, "abort --topic wide --partition 8 ")
	require.ErrorContains(t, err, "eventbus.allow_gaps_in to [ended, wide]")
	require.NoError(t, tx.EndTransaction(bg, kgo.TryAbort))
	end(kgo.TryAbort)
}
