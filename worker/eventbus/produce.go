package eventbus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/worker/stage"
)

// producer sends raw batches to one partition, one at a time, and insists on
// the offset that each gets.
type producer struct {
	l      *loader
	topic  string
	id     kadm.TopicID
	part   int32
	leader int32
	next   int64 // offset that the next batch must get
	end    int64 // the log's end when it was last looked at
	who    identity
}

// identify gets a producer id: the broker then drops a batch that is sent again
// though it had been written. Where that is not allowed the batches are anonymous
// and the log's end alone tells.
func (c *client) identify(ctx context.Context) identity {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.ProducerID, req.ProducerEpoch = -1, -1
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	resp, err := req.RequestWith(ctx, c.Client)
	if err != nil || resp.ErrorCode != 0 || resp.ProducerID < 0 {
		return anonymous
	}
	return identity{resp.ProducerID, resp.ProducerEpoch, 0}
}

// after is the identity of the batch after one with n records; sequences wrap
// around as in org.apache.kafka.common.record.DefaultRecordBatch.
func (w identity) after(n int64) identity {
	if w.id >= 0 {
		w.seq = int32((int64(w.seq) + n) & math.MaxInt32)
	}
	return w
}

// send writes a batch of n records; it stamps raw. It returns the offset of the
// first one.
func (p *producer) send(ctx context.Context, raw []byte, n int64) (int64, error) {
	var began time.Time
	for try := 1; ; try++ {
		stamp(raw, p.who)
		base, err := p.once(ctx, raw)
		if err == nil && base != p.next {
			return 0, stage.Permanentf("a batch landed at offset %d, %d was expected: something else writes to this topic, or the target has lost records; see to it and restore again", base, p.next)
		}
		if err == nil {
			return p.written(n), nil
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if err := p.final(err); err != nil {
			return 0, err
		}
		if began.IsZero() {
			began = time.Now()
		}
		if time.Since(began) > p.l.o.Budget {
			if p.end < p.next {
				err = fmt.Errorf("%w (its log ends at %d: it has lost records that it had taken)", err, p.end)
			}
			return 0, fmt.Errorf("offset %d could not be written for %s: %w; see to the target's brokers", p.next, p.l.o.Budget, err)
		}
		if perr := pause(ctx, try); perr != nil {
			return 0, perr
		}
		done, ferr := p.found(ctx, n, err)
		if ferr != nil {
			return 0, ferr
		}
		if done {
			return p.written(n), nil
		}
	}
}

// written moves on after n records.
func (p *producer) written(n int64) int64 {
	base := p.next
	p.next += n
	p.end = p.next
	p.who = p.who.after(n)
	return base
}

// final tells errors that no retry mends.
func (p *producer) final(err error) error {
	for _, e := range []*kerr.Error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.CorruptMessage, kerr.InvalidRecord, kerr.InvalidTimestamp,
		kerr.UnsupportedCompressionType, kerr.UnsupportedForMessageFormat, kerr.PolicyViolation, kerr.InvalidRequiredAcks} {
		if errors.Is(err, e) {
			return stage.Permanentf("the target refuses the batch for offset %d: %w; see to the target's limits", p.next, err)
		}
	}
	if isDenied(err) {
		return stage.Permanentf("the target does not let the user write: %w; grant the user ALL on Topic *, Group * and Cluster for the restore", err)
	}
	return nil
}

// once sends a batch without retries.
func (p *producer) once(ctx context.Context, raw []byte) (int64, error) {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 30000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.TopicID = p.topic, p.id
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Partition, rp.Records = p.part, raw
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	kresp, err := p.l.Broker(int(p.leader)).Request(ctx, req)
	if err != nil {
		return 0, err
	}
	resp := kresp.(*kmsg.ProduceResponse)
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, errNoAnswer
	}
	a := resp.Topics[0].Partitions[0]
	err = kerr.ErrorForCode(a.ErrorCode)
	if err != nil && a.ErrorMessage != nil {
		err = fmt.Errorf("%w (%s)", err, *a.ErrorMessage)
	}
	return a.BaseOffset, err
}

// found looks after an unclear failure whether the batch is in the log, by its
// end, and who leads the partition now.
func (p *producer) found(ctx context.Context, n int64, failure error) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if md, err := p.l.metadata(ctx, p.topic); err == nil {
		if now, ok := md.Topics[p.topic].Partitions[p.part]; ok && now.Leader >= 0 {
			p.leader = now.Leader
		}
	}
	listed, err := p.l.adm.ListEndOffsets(ctx, p.topic)
	end, ok := listed.Lookup(p.topic, p.part)
	if err != nil || !ok || end.Err != nil {
		return false, nil
	}
	switch p.end = end.Offset; {
	case end.Offset == p.next+n:
		return true, nil
	case end.Offset > p.next:
		return false, stage.Permanentf("the log ends at %d, %d or %d was expected: something else writes to this topic; stop it and restore again", end.Offset, p.next, p.next+n)
	case end.Offset == p.next && (errors.Is(failure, kerr.OutOfOrderSequenceNumber) || errors.Is(failure, kerr.UnknownProducerID) || errors.Is(failure, kerr.InvalidProducerEpoch)):
		p.who = p.l.identify(ctx) // the broker has forgotten the old one
	}
	return false, nil
}
