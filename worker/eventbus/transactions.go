package eventbus

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"catalog-backup/worker/stage"
)

// awaitTransactions lets some time pass for transactions that were open at the cut
// and hold back the given partitions. When that is over it fails or, where gaps are
// allowed, has the readers take what there is.
//
// The error is permanent: a broker ends a transaction by itself after
// transaction.max.timeout.ms at the latest, so one that outlived the wait hangs, and
// every retry would wait in vain as long.
func (d *dumper) awaitTransactions(ctx context.Context, held []*job) error {
	now := d.o.Now()
	left := d.cutAt.Add(d.o.TransactionWait).Sub(now)
	if left > 0 {
		if now.Sub(d.told) >= time.Minute {
			d.told = now
			d.o.Logf("eventbus: waiting %s at most for transactions that were open at the cut, in %s", left.Round(time.Second), names(places(held)))
		}
		if err := pause(ctx, 2); err != nil {
			return fmt.Errorf("eventbus: %w", err)
		}
		return nil
	}
	var fatal []*job
	for _, j := range held {
		j.r.giveUp = true
		if !d.o.allows(j.t.Name) {
			fatal = append(fatal, j)
		}
	}
	if len(fatal) == 0 {
		return nil
	}
	more := ""
	if len(fatal) > 1 {
		more = fmt.Sprintf(" (and so in %d more partitions: %s)", len(fatal)-1, names(places(fatal[1:])))
	}
	j := fatal[0]
	start, who := d.openTransaction(ctx, j)
	return stage.Permanentf("eventbus: topic %s partition %d: a transaction that is open since offset %d (%s) holds back offsets %d to %d longer than eventbus.transaction_wait (%s)%s; "+
		"end it with: kafka-transactions.sh --bootstrap-server %s abort --topic %s --partition %d --start-offset %d; or set eventbus.allow_gaps_in to [%s] to take the set without them",
		j.t.Name, j.partition().ID, start, who, j.r.off, j.partition().Listed-1, d.o.TransactionWait, more,
		strings.Join(d.o.Brokers, ","), j.t.Name, j.partition().ID, start, j.t.Name)
}

// places names partitions as topic/partition.
func places(jobs []*job) []string {
	var list []string
	for _, j := range jobs {
		list = append(list, fmt.Sprintf("%s/%d", j.t.Name, j.partition().ID))
	}
	return list
}

// openTransaction asks who keeps a transaction open, and since which offset. What
// the brokers do not tell (before Kafka 3.0, or for want of a right) it names so.
func (d *dumper) openTransaction(ctx context.Context, j *job) (start int64, who string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	start = j.r.off
	id := j.partition().ID
	topics := kadm.TopicsSet{}
	topics.Add(j.t.Name, id)
	described, err := d.adm.DescribeProducers(ctx, topics)
	if err == nil {
		err = described[j.t.Name].Partitions[id].Err
	}
	if err != nil {
		return start, fmt.Sprintf("the brokers do not tell of which producer: %v", err)
	}
	var first *kadm.DescribedProducer
	for _, p := range described[j.t.Name].Partitions[id].ActiveProducers {
		if p.CurrentTxnStartOffset >= 0 && (first == nil || p.CurrentTxnStartOffset < first.CurrentTxnStartOffset) {
			first = &p
		}
	}
	if first == nil {
		return start, "the brokers do not tell of which producer"
	}
	who = fmt.Sprintf("producer %d, epoch %d, which wrote last at %s", first.ProducerID, first.ProducerEpoch, time.UnixMilli(first.LastTimestamp).UTC().Format(time.RFC3339))
	if listed, err := d.adm.ListTransactions(ctx, []int64{first.ProducerID}, nil); err == nil {
		for _, t := range listed.Sorted() {
			who += fmt.Sprintf(", transactional id %q", t.TxnID)
		}
	}
	return first.CurrentTxnStartOffset, who
}
