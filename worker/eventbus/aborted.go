package eventbus

import (
	"sort"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// abortedTxns finds the batches of aborted transactions as Kafka's consumer
// does (org.apache.kafka.clients.consumer.internals.CompletedFetch): each
// answer lists those that reach into it.
type abortedTxns struct {
	list   []kmsg.FetchResponseTopicPartitionAbortedTransaction
	active map[int64]bool // producers within an aborted transaction
}

func newAborted(list []kmsg.FetchResponseTopicPartitionAbortedTransaction) *abortedTxns {
	sort.Slice(list, func(i, j int) bool { return list[i].FirstOffset < list[j].FirstOffset })
	return &abortedTxns{list, map[int64]bool{}}
}

// drops tells whether the answer's next batch is no data of a reader of committed
// records, and whether that is because its transaction was aborted.
func (a *abortedTxns) drops(b batch) (drop, aborted bool) {
	for len(a.list) > 0 && a.list[0].FirstOffset <= b.last() {
		a.active[a.list[0].ProducerID] = true
		a.list = a.list[1:]
	}
	switch {
	case b.control():
		if isAbortMarker(b) {
			delete(a.active, b.producerID)
		}
		return true, false
	case b.transactional() && a.active[b.producerID]:
		return true, true
	}
	return false, false
}
