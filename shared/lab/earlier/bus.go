package earlier

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
)

// Bus is what consumers see of a bus, whatever the offsets are.
type Bus struct {
	// Topics are partitions with the number of their committed records and a sum of them
	// in their order: key, value, headers, timestamp.
	Topics map[string][]string `json:"topics"`
	// Groups are, by "group topic/partition", the record that the group reads next with
	// its metadata; "end" where it has read all.
	Groups map[string]string `json:"groups"`
	ACLs   []string          `json:"acls"`
}

// ReadBus reads all of a bus as consumers of committed records do.
func ReadBus(ctx context.Context, b *lab.Broker) (*Bus, error) {
	c, err := b.Client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	adm := kadm.NewClient(c)
	out := &Bus{Topics: map[string][]string{}, Groups: map[string]string{}}
	starts, err := adm.ListStartOffsets(ctx)
	if err != nil {
		return nil, err
	}
	ends, err := adm.ListCommittedOffsets(ctx)
	if err != nil {
		return nil, err
	}
	records := map[string][]*kgo.Record{}
	for topic, partitions := range starts {
		if topic == "__consumer_offsets" || topic == "__transaction_state" {
			continue
		}
		for p := range int32(len(partitions)) {
			list, err := read(ctx, b, topic, p, partitions[p].Offset, ends[topic][p].Offset)
			if err != nil {
				return nil, fmt.Errorf("read %s/%d: %w", topic, p, err)
			}
			records[place(topic, p)] = list
			out.Topics[topic] = append(out.Topics[topic], digest(list))
		}
	}
	if err := out.groups(ctx, adm, records); err != nil {
		return nil, err
	}
	return out, out.acls(ctx, adm)
}

func place(topic string, partition int32) string { return fmt.Sprintf("%s/%d", topic, partition) }

// read reads the committed records in [from, to). Markers are read too, so that the end
// is seen where a partition ends with them or with aborted records.
func read(ctx context.Context, b *lab.Broker, topic string, p int32, from, to int64) ([]*kgo.Record, error) {
	if from >= to {
		return nil, nil
	}
	c, err := b.Client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(200*time.Millisecond),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().At(from)}}))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var list []*kgo.Record
	for quiet := 0; quiet < 3; {
		poll, cancel := context.WithTimeout(ctx, time.Second)
		got := c.PollFetches(poll)
		cancel()
		if err := got.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		quiet++ // compaction may have taken the last offsets away
		done := false
		got.EachRecord(func(r *kgo.Record) {
			quiet = 0
			done = done || r.Offset >= to-1
			if r.Offset < to && !r.Attrs.IsControl() {
				list = append(list, r)
			}
		})
		if done {
			break
		}
	}
	return list, ctx.Err()
}

func digest(list []*kgo.Record) string {
	h := sha256.New()
	for _, r := range list {
		_ = binary.Write(h, binary.BigEndian, r.Timestamp.UnixMilli())
		put(h, r.Key)
		put(h, r.Value)
		for _, x := range r.Headers {
			put(h, []byte(x.Key))
			put(h, x.Value)
		}
	}
	return fmt.Sprintf("%d %x", len(list), h.Sum(nil)[:12])
}

// put tells null from empty.
func put(h hash.Hash, b []byte) {
	n := int64(len(b))
	if b == nil {
		n = -1
	}
	_ = binary.Write(h, binary.BigEndian, n)
	h.Write(b)
}

func (o *Bus) groups(ctx context.Context, adm *kadm.Client, records map[string][]*kgo.Record) error {
	groups, err := adm.ListGroups(ctx)
	if err != nil {
		return err
	}
	for _, g := range groups.Groups() {
		at, err := adm.FetchOffsets(ctx, g)
		if err != nil {
			return err
		}
		for _, x := range at.Sorted() {
			next := "end"
			for _, r := range records[place(x.Topic, x.Partition)] {
				if r.Offset >= x.At {
					next = fmt.Sprintf("%.40q %.40q", r.Key, r.Value)
					break
				}
			}
			o.Groups[g+" "+place(x.Topic, x.Partition)] = next + " " + x.Metadata
		}
	}
	return nil
}

func (o *Bus) acls(ctx context.Context, adm *kadm.Client) error {
	found, err := adm.DescribeACLs(ctx, kadm.NewACLs().AnyResource().ResourcePatternType(kadm.ACLPatternAny).Operations().Allow().AllowHosts().Deny().DenyHosts())
	if err != nil {
		return err
	}
	for _, f := range found {
		for _, a := range f.Described {
			o.ACLs = append(o.ACLs, fmt.Sprintf("%s %s %s %s %s %s %s", a.Principal, a.Host, a.Type, a.Name, a.Pattern, a.Operation, a.Permission))
		}
	}
	return nil
}
