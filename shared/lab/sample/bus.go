package sample

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// LiveTopic is the topic that is written while the backup runs.
const LiveTopic = "catalog.activity"

// fillLimit bounds how long the filling of a broker may take.
const fillLimit = time.Minute

type topicPlan struct {
	name       string
	partitions int32
	codec      kgo.CompressionCodec
	records    int
	configs    map[string]*string
}

func plans() []topicPlan {
	s := kadm.StringPtr
	return []topicPlan{
		{LiveTopic, 1, kgo.SnappyCompression(), 0, nil},
		{"lineage.events", 4, kgo.ZstdCompression(), 24000, map[string]*string{"retention.ms": s("31536000000"), "max.message.bytes": s("2097152")}},
		{"query.log", 3, kgo.Lz4Compression(), 16000, map[string]*string{"retention.ms": s("-1")}},
		{"audit-trail", 2, kgo.GzipCompression(), 8000, nil},
		{"compose_history", 1, kgo.SnappyCompression(), 6000, nil},
		{"plain", 2, kgo.NoCompression(), 6000, map[string]*string{"segment.bytes": s("2097152")}},
		{"object.state", 2, kgo.ZstdCompression(), 4000, map[string]*string{"cleanup.policy": s("compact")}},
		{"payments.tx", 2, kgo.Lz4Compression(), 0, nil},
		{"trimmed", 1, kgo.NoCompression(), 3000, nil},
		{"empty.topic", 3, kgo.NoCompression(), 0, nil},
	}
}

// FillBus makes topics of every codec, a compacted, a trimmed, an empty and a
// transactional one with aborted records, consumer groups with positions, and access
// rules.
func FillBus(ctx context.Context, opts ...kgo.Opt) error {
	ctx, cancel := context.WithTimeout(ctx, fillLimit)
	defer cancel()
	c, err := kgo.NewClient(opts...)
	if err != nil {
		return err
	}
	defer c.Close()
	admin := kadm.NewClient(c)
	for _, p := range plans() {
		if _, err := admin.CreateTopic(ctx, p.partitions, 1, p.configs, p.name); err != nil {
			return fmt.Errorf("make topic %s: %w", p.name, err)
		}
	}
	if err := awaitLeaders(ctx, c); err != nil {
		return err
	}
	for _, p := range plans() {
		if err := publish(ctx, p, opts); err != nil {
			return fmt.Errorf("fill topic %s: %w", p.name, err)
		}
	}
	if err := transactions(ctx, "payments.tx", opts); err != nil {
		return fmt.Errorf("fill topic payments.tx: %w", err)
	}
	trim := kadm.Offsets{}
	trim.Add(kadm.Offset{Topic: "trimmed", Partition: 0, At: 1234, LeaderEpoch: -1})
	if r, err := admin.DeleteRecords(ctx, trim); err != nil || r.Error() != nil {
		return fmt.Errorf("trim a topic: %w", errors.Join(err, r.Error()))
	}
	if err := commit(ctx, admin); err != nil {
		return err
	}
	return rules(ctx, admin)
}

// awaitLeaders returns when every topic is in the metadata: Kafka answers CreateTopics
// earlier.
func awaitLeaders(ctx context.Context, c *kgo.Client) error {
	req := kmsg.NewPtrMetadataRequest()
	for _, p := range plans() {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(p.name)
		req.Topics = append(req.Topics, t)
	}
	for {
		resp, err := req.RequestWith(ctx, c)
		if err != nil {
			return err
		}
		ready := true
		for _, t := range resp.Topics {
			ready = ready && t.ErrorCode == 0 && len(t.Partitions) > 0
			for _, p := range t.Partitions {
				ready = ready && p.ErrorCode == 0 && p.Leader >= 0
			}
		}
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the topics: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func publish(ctx context.Context, p topicPlan, opts []kgo.Opt) error {
	if p.records == 0 {
		return nil
	}
	c, err := kgo.NewClient(append(opts, kgo.ProducerBatchCompression(p.codec), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(256<<10))...)
	if err != nil {
		return err
	}
	defer c.Close()
	failed := make(chan error, 1)
	// Near today, so that no retention takes them, but not all in order.
	base := time.Now().Add(-time.Hour)
	for i := range p.records {
		r := &kgo.Record{Topic: p.name, Partition: int32(i) % p.partitions, Timestamp: base.Add(time.Duration(i*37%5000) * time.Millisecond),
			Key: []byte(fmt.Sprintf("key-%d", i%500)), Value: event(i)}
		if p.configs["cleanup.policy"] == nil {
			odd(i, r)
		} else if i%50 == 0 {
			r.Value = nil // a tombstone
		}
		c.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	if err := c.Flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func event(i int) []byte {
	return []byte(fmt.Sprintf(`{"n":%d,"event":"%s","actor":{"id":%d,"mail":"user%d@example.com"},"object":%d,"note":"%s"}`,
		i, []string{"create", "update", "view", "delete"}[i%4], i%400, i%400, i*7919%1000003, strings.Repeat(treeWords[i%len(treeWords)]+" ", 3+i%20)))
}

// odd makes some records unlike the others: what copies that decode and encode again get wrong.
func odd(i int, r *kgo.Record) {
	switch i % 41 {
	case 1:
		r.Key = nil
	case 2:
		r.Key = []byte{}
	case 3:
		r.Value = nil
	case 4:
		r.Value = []byte{}
	case 5:
		r.Headers = []kgo.RecordHeader{{Key: "h", Value: nil}, {Key: "h", Value: []byte{}}, {Key: "", Value: []byte{0, 255}}}
	case 6:
		r.Value = []byte{0, 1, 2, 0xff, 0xfe}
	}
}

// transactions writes three: committed, aborted, committed.
func transactions(ctx context.Context, topic string, opts []kgo.Opt) error {
	c, err := kgo.NewClient(append(opts, kgo.TransactionalID("sample-tx"), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		return err
	}
	defer c.Close()
	for n, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit} {
		if err := c.BeginTransaction(); err != nil {
			return err
		}
		var records []*kgo.Record
		for i := range 200 {
			records = append(records, &kgo.Record{Partition: int32(i % 2), Value: []byte(fmt.Sprintf("transaction %d, payment %d", n, i))})
		}
		if err := c.ProduceSync(ctx, records...).FirstErr(); err != nil {
			return err
		}
		if err := c.EndTransaction(ctx, end); err != nil {
			return err
		}
	}
	return nil
}

// commit gives five groups positions: in the middle, at the end, before the log's start,
// between transactions, and with metadata.
func commit(ctx context.Context, admin *kadm.Client) error {
	groups := map[string][]kadm.Offset{
		"indexer":          {{Topic: "lineage.events", Partition: 0, At: 1500}, {Topic: "lineage.events", Partition: 1, At: 0}, {Topic: "lineage.events", Partition: 2, At: 6000}, {Topic: "query.log", Partition: 1, At: 77, Metadata: "host-7 é"}},
		"billing":          {{Topic: "payments.tx", Partition: 0, At: 150}, {Topic: "payments.tx", Partition: 1, At: 202}},
		"behind":           {{Topic: "trimmed", Partition: 0, At: 1500}},
		"too late":         {{Topic: "trimmed", Partition: 0, At: 10}},
		"activity-watcher": {{Topic: LiveTopic, Partition: 0, At: 3}, {Topic: "object.state", Partition: 1, At: 999}},
	}
	for group, positions := range groups {
		offsets := kadm.Offsets{}
		for _, o := range positions {
			o.LeaderEpoch = -1
			offsets.Add(o)
		}
		if err := admin.CommitAllOffsets(ctx, group, offsets); err != nil {
			return fmt.Errorf("commit positions of group %s: %w", group, err)
		}
	}
	return nil
}

func rules(ctx context.Context, admin *kadm.Client) error {
	for _, b := range []*kadm.ACLBuilder{
		kadm.NewACLs().Topics("lineage.").ResourcePatternType(kadm.ACLPatternPrefixed).Operations(kadm.OpRead, kadm.OpDescribe).Allow("User:indexer").AllowHosts("*"),
		kadm.NewACLs().Topics("payments.tx").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpWrite).Deny("User:guest").DenyHosts("10.0.0.7"),
		kadm.NewACLs().Groups("billing").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead).Allow("User:billing"),
	} {
		r, err := admin.CreateACLs(ctx, b)
		if err != nil {
			return fmt.Errorf("make access rules: %w", err)
		}
		for _, one := range r {
			if one.Err != nil && !errors.Is(one.Err, kerr.SecurityDisabled) {
				return fmt.Errorf("make access rules: %w", one.Err)
			}
		}
	}
	return nil
}

// Publisher gives a function that publishes event n to the live topic and returns when
// the broker has it.
func Publisher(opts ...kgo.Opt) (publish func(context.Context, int64) error, end func(), err error) {
	c, err := kgo.NewClient(append(opts, kgo.DefaultProduceTopic(LiveTopic), kgo.ProducerBatchCompression(kgo.SnappyCompression()), kgo.ProducerLinger(0))...)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, n int64) error {
		ctx, cancel := context.WithTimeout(ctx, fillLimit)
		defer cancel()
		return c.ProduceSync(ctx, &kgo.Record{Value: []byte(fmt.Sprint(n))}).FirstErr()
	}, c.Close, nil
}
