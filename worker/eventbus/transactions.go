package eventbus

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"catalog-backup/worker/stage"
)

// awaitTransactions lets time pass for transactions that were open at the cut and
// hold back the given partitions, until some can be read on. When the time is over,
// one more look decides: what is held still fails the dump or, where gaps are
// allowed, its readers take what there is.
//
// The error is permanent: a broker ends a transaction by itself after
// transaction.max.timeout.ms at the latest, so one that outlived the wait hangs, and
// every retry would wait in vain as long.
func (d *dumper) awaitTransactions(ctx context.Context, held []*job) (todo, still []*job, err error) {
	for {
		now := d.o.Now()
		left := d.cutAt.Add(d.o.TransactionWait).Sub(now)
		if todo, still, err = d.released(ctx, held); err != nil || len(todo) > 0 {
			return todo, still, err
		}
		if left <= 0 {
			return held, nil, d.giveUp(ctx, held)
		}
		if now.Sub(d.told) >= time.Minute {
			if d.told.IsZero() {
				d.f.Note("eventbus: transactions that were open at the cut were waited for, in %s", names(places(held)))
			}
			d.told = now
			d.o.Logf("eventbus: waiting %s at most for transactions that were open at the cut, in %s", left.Round(time.Second), names(places(held)))
		}
		if err := pause(ctx, 3); err != nil {
			return nil, nil, fmt.Errorf("eventbus: %w", err)
		}
	}
}

// released asks for the stable offsets of all partitions at once. todo are those
// that can be read on, and those that the brokers do not tell of: their readers
// find out why.
func (d *dumper) released(ctx context.Context, held []*job) (todo, still []*job, err error) {
	var topics []string
	for _, j := range held {
		topics = append(topics, j.t.Name)
	}
	slices.Sort(topics)
	stable, err := d.adm.ListCommittedOffsets(ctx, slices.Compact(topics)...)
	if ctx.Err() != nil {
		return nil, nil, fmt.Errorf("eventbus: %w", context.Cause(ctx))
	}
	if err = d.explain(err); stage.IsPermanent(err) {
		return nil, nil, err
	}
	for _, j := range held {
		if o, ok := stable.Lookup(j.t.Name, j.partition().ID); ok && o.Err == nil && o.Offset <= j.r.off {
			still = append(still, j)
		} else {
			todo = append(todo, j)
		}
	}
	return todo, still, nil
}

// giveUp has the readers take what there is, or names what holds them.
func (d *dumper) giveUp(ctx context.Context, held []*job) error {
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
	slices.SortFunc(fatal, func(a, b *job) int {
		return strings.Compare(fmt.Sprintf("%s %9d", a.t.Name, a.i), fmt.Sprintf("%s %9d", b.t.Name, b.i))
	})
	var topics, what, commands []string
	for _, j := range fatal {
		topics = append(topics, j.t.Name)
	}
	topics = slices.Compact(topics)
	named := fatal[:min(len(fatal), 10)]
	open := d.openTransactions(ctx, named)
	for i, j := range named {
		what = append(what, fmt.Sprintf("topic %s partition %d: a transaction that is open since offset %d (%s) holds back offsets %d to %d",
			j.t.Name, j.partition().ID, open[i].start, open[i].who, j.r.off, j.partition().Listed-1))
		commands = append(commands, d.o.abortCommand(j.t.Name, j.partition().ID, open[i].start))
	}
	more, file := "", ""
	if n := len(fatal) - len(named); n > 0 {
		more = fmt.Sprintf("; and so in %d more partitions: %s", n, names(places(fatal[len(named):])))
	}
	if d.o.TLS != nil || d.o.SASL != nil {
		file = " (FILE has the TLS and SASL settings of an administrator)"
	}
	return stage.Permanentf("eventbus: transactions that were open at the cut stay open longer than eventbus.transaction_wait (%s): %s%s; end each transaction with: %s%s; or set eventbus.allow_gaps_in to [%s] to take the set without them",
		d.o.TransactionWait, strings.Join(what, "; "), more, strings.Join(commands, "; "), file, names(topics))
}

// abortCommand ends a transaction of one partition.
func (o Options) abortCommand(topic string, partition int32, start int64) string {
	login := ""
	if o.TLS != nil || o.SASL != nil {
		login = " --command-config FILE"
	}
	return fmt.Sprintf("kafka-transactions.sh --bootstrap-server %s%s abort --topic %s --partition %d --start-offset %d", strings.Join(o.Brokers, ","), login, topic, partition, start)
}

// places names partitions as topic/partition.
func places(jobs []*job) []string {
	var list []string
	for _, j := range jobs {
		list = append(list, fmt.Sprintf("%s/%d", j.t.Name, j.partition().ID))
	}
	return list
}

// openTransaction is since which offset, and by whom, a transaction is kept open.
type openTransaction struct {
	start int64
	who   string
}

// openTransactions asks for them. What the brokers do not tell (before Kafka 3.0, or
// for want of a right) it names so.
func (d *dumper) openTransactions(ctx context.Context, jobs []*job) []openTransaction {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	topics := kadm.TopicsSet{}
	for _, j := range jobs {
		topics.Add(j.t.Name, j.partition().ID)
	}
	described, err := d.adm.DescribeProducers(ctx, topics)
	ids := map[int64]string{}
	var list []openTransaction
	for _, j := range jobs {
		p, ok := described[j.t.Name].Partitions[j.partition().ID]
		perr := err
		if ok {
			perr = p.Err
		}
		first := oldest(p.ActiveProducers)
		switch {
		case perr != nil:
			list = append(list, openTransaction{j.r.off, fmt.Sprintf("the brokers do not tell of which producer: %v", perr)})
		case first == nil:
			list = append(list, openTransaction{j.r.off, "the brokers do not tell of which producer"})
		default:
			id, asked := ids[first.ProducerID]
			if !asked {
				id = d.transactionalID(ctx, first.ProducerID)
				ids[first.ProducerID] = id
			}
			list = append(list, openTransaction{first.CurrentTxnStartOffset, fmt.Sprintf("producer %d, epoch %d, which wrote last at %s%s",
				first.ProducerID, first.ProducerEpoch, time.UnixMilli(first.LastTimestamp).UTC().Format(time.RFC3339), id)})
		}
	}
	return list
}

// oldest is the producer whose transaction has been open longest, nil if there is none.
func oldest(producers kadm.DescribedProducers) (first *kadm.DescribedProducer) {
	for _, p := range producers {
		if p.CurrentTxnStartOffset >= 0 && (first == nil || p.CurrentTxnStartOffset < first.CurrentTxnStartOffset) {
			first = &p
		}
	}
	return first
}

// transactionalID names it, for an error text.
func (d *dumper) transactionalID(ctx context.Context, producer int64) (text string) {
	if listed, err := d.adm.ListTransactions(ctx, []int64{producer}, nil); err == nil {
		for _, t := range listed.Sorted() {
			text += fmt.Sprintf(", transactional id %q", t.TxnID)
		}
	}
	return text
}
