package sample

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"sort"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/set"
)

// silence is how long a broker may give nothing before a comparison fails.
const silence = 30 * time.Second

// Bus is what an ordinary consumer sees of a broker.
type Bus struct {
	Records   int64
	Digests   map[string]string // topic/partition → records in their order
	Next      map[string]string // group, topic/partition → the record it reads next
	Configs   map[string]string // topic → its own settings, but for retention
	Rules     map[string]string // access rules
	LastValue map[string]string // topic/partition → value of the last record
}

// seen is one partition as it was read.
type seen struct {
	digest  hash.Hash
	offsets []int64
	hashes  [][12]byte
	last    string
	next    int64 // the offset after the last one read
	end     int64
}

// ReadBus reads all records of a broker's topics that are not internal, with a manifest up
// to the set's cut, else up to the end.
func ReadBus(ctx context.Context, m *set.EventBus, opts ...kgo.Opt) (*Bus, error) {
	c, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	admin := kadm.NewClient(c)
	parts, starts, err := bounds(ctx, admin, m)
	if err != nil {
		return nil, err
	}
	if err := consume(ctx, parts, starts, opts); err != nil {
		return nil, err
	}
	b := &Bus{Digests: map[string]string{}, Next: map[string]string{}, Configs: map[string]string{}, Rules: map[string]string{}, LastValue: map[string]string{}}
	for name, p := range parts {
		b.Records += int64(len(p.offsets))
		b.Digests[name] = fmt.Sprintf("%d records, digest %x", len(p.offsets), p.digest.Sum(nil)[:12])
		b.LastValue[name] = p.last
	}
	groups, err := positions(ctx, admin)
	if err != nil {
		return nil, err
	}
	for name, at := range groups {
		b.Next[name] = nextRecord(parts[name[strings.LastIndex(name, " ")+1:]], at)
	}
	if err := b.settings(ctx, admin); err != nil {
		return nil, err
	}
	return b, nil
}

// bounds finds out what is to be read of every partition.
func bounds(ctx context.Context, admin *kadm.Client, m *set.EventBus) (map[string]*seen, map[string]map[int32]kgo.Offset, error) {
	first, err := admin.ListStartOffsets(ctx)
	if err != nil {
		return nil, nil, err
	}
	last, err := admin.ListCommittedOffsets(ctx)
	if err != nil {
		return nil, nil, err
	}
	cut := map[string]int64{}
	if m != nil {
		for _, t := range m.Topics {
			for _, p := range t.Partitions {
				cut[place(t.Name, p.ID)] = p.Cut
			}
		}
	}
	parts, starts := map[string]*seen{}, map[string]map[int32]kgo.Offset{}
	var bad error
	last.Each(func(o kadm.ListedOffset) {
		if strings.HasPrefix(o.Topic, "__") || bad != nil {
			return
		}
		start, ok := first.Lookup(o.Topic, o.Partition)
		if !ok || o.Err != nil || start.Err != nil {
			bad = fmt.Errorf("offsets of %s: %v %v", place(o.Topic, o.Partition), o.Err, start.Err)
			return
		}
		p := &seen{digest: sha256.New(), next: start.Offset, end: o.Offset}
		if m != nil {
			if p.end, ok = cut[place(o.Topic, o.Partition)]; !ok {
				bad = fmt.Errorf("%s is not in the set", place(o.Topic, o.Partition))
				return
			}
		}
		parts[place(o.Topic, o.Partition)] = p
		if p.next < p.end {
			if starts[o.Topic] == nil {
				starts[o.Topic] = map[int32]kgo.Offset{}
			}
			starts[o.Topic][o.Partition] = kgo.NewOffset().At(p.next)
		}
	})
	return parts, starts, bad
}

func place(topic string, partition int32) string { return fmt.Sprintf("%s/%d", topic, partition) }

// consume reads the partitions up to their ends. Control records are kept, to see that
// the end of a partition was reached whose last records were aborted.
func consume(ctx context.Context, parts map[string]*seen, starts map[string]map[int32]kgo.Offset, opts []kgo.Opt) error {
	open := 0
	for _, p := range starts {
		open += len(p)
	}
	if open == 0 {
		return nil
	}
	c, err := kgo.NewClient(append(opts, kgo.ConsumePartitions(starts), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
	if err != nil {
		return err
	}
	defer c.Close()
	heard := time.Now()
	for open > 0 {
		wait, cancel := context.WithTimeout(ctx, time.Second)
		fetches := c.PollFetches(wait)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fetches.EachRecord(func(r *kgo.Record) {
			heard = time.Now()
			p := parts[place(r.Topic, r.Partition)]
			if p.next >= p.end || r.Offset >= p.end {
				if p.next < p.end { // holes up to the end
					p.next = p.end
					open--
				}
				return
			}
			if !r.Attrs.IsControl() {
				p.take(r)
			}
			p.next = r.Offset + 1
			if p.next >= p.end {
				open--
			}
		})
		if time.Since(heard) > silence {
			return fmt.Errorf("read the records: %d partitions have not come to their end for %s", open, silence)
		}
	}
	return nil
}

// take adds a record to the digest: time, key, value and headers, null told from empty.
func (p *seen) take(r *kgo.Record) {
	h := sha256.New()
	field := func(b []byte) {
		n := int64(len(b))
		if b == nil {
			n = -1
		}
		_ = binary.Write(h, binary.BigEndian, n) // a hash takes everything
		h.Write(b)
	}
	_ = binary.Write(h, binary.BigEndian, r.Timestamp.UnixMilli())
	field(r.Key)
	field(r.Value)
	for _, x := range r.Headers {
		field([]byte(x.Key))
		field(x.Value)
	}
	var short [12]byte
	copy(short[:], h.Sum(nil))
	p.digest.Write(short[:])
	p.offsets, p.hashes, p.last = append(p.offsets, r.Offset), append(p.hashes, short), string(r.Value)
}

// positions gives group and place → committed offset.
func positions(ctx context.Context, admin *kadm.Client) (map[string]int64, error) {
	at := map[string]int64{}
	groups, err := admin.ListGroups(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range groups.Groups() {
		offsets, err := admin.FetchOffsets(ctx, g)
		if err != nil {
			return nil, err
		}
		offsets.Each(func(o kadm.OffsetResponse) {
			at[fmt.Sprintf("%s %s", g, place(o.Topic, o.Partition))] = o.At
		})
	}
	return at, nil
}

func nextRecord(p *seen, at int64) string {
	if p == nil {
		return "no such partition"
	}
	i := sort.Search(len(p.offsets), func(i int) bool { return p.offsets[i] >= at })
	if i == len(p.offsets) {
		return "waits for the next one to come"
	}
	// Its number too: one content may come twice.
	return fmt.Sprintf("record number %d, digest %x", i, p.hashes[i])
}

// settings reads topic configurations and access rules.
func (b *Bus) settings(ctx context.Context, admin *kadm.Client) error {
	var names []string
	for name := range b.Digests {
		names = append(names, name[:strings.LastIndex(name, "/")])
	}
	configs, err := admin.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return err
	}
	for _, t := range configs {
		if t.Err != nil {
			return fmt.Errorf("settings of topic %s: %w", t.Name, t.Err)
		}
		var own []string
		for _, c := range t.Configs {
			// A restore holds retention back, so that no record goes at once.
			if c.Source.String() == "DYNAMIC_TOPIC_CONFIG" && !strings.HasPrefix(c.Key, "retention.") {
				own = append(own, c.Key+"="+c.MaybeValue())
			}
		}
		sort.Strings(own)
		b.Configs[t.Name] = strings.Join(own, " ")
	}
	rules, err := admin.DescribeACLs(ctx, kadm.NewACLs().AnyResource().ResourcePatternType(kadm.ACLPatternAny).Operations(kadm.OpAny).Allow().AllowHosts().Deny().DenyHosts())
	if err != nil {
		return nil // a broker without access control
	}
	for _, r := range rules {
		for _, d := range r.Described {
			b.Rules[fmt.Sprintf("%s %s %s on %s %q (%s) from %s", d.Permission, d.Principal, d.Operation, d.Type, d.Name, d.Pattern, d.Host)] = "there"
		}
	}
	return nil
}
