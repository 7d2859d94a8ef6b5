package set

import (
	"slices"
	"time"
)

// EventBus is what the set holds of the bus: definitions, consumer positions,
// the cut, and raw record batches as Kafka log segments.
type EventBus struct {
	Tool          Tool      `json:"tool"` // franz-go
	ClusterID     string    `json:"cluster_id"`
	BrokerVersion string    `json:"broker_version"` // as guessed from the API versions it offers
	PositionsAt   time.Time `json:"positions_at"`
	CutAt         time.Time `json:"cut_at"`
	DoneAt        time.Time `json:"done_at"`

	Topics []Topic `json:"topics"`
	Groups []Group `json:"groups"`
	ACLs   []ACL   `json:"acls"`

	// Discarded are segments in the archive that belong to no partition of the set:
	// their topic was deleted while it was being read, or their partition was read
	// anew. Only verification looks at them.
	Discarded []Segment `json:"discarded"`
}

// Topic is one topic as it was at the cut.
type Topic struct {
	Name              string             `json:"name"`
	ID                string             `json:"id"`
	ReplicationFactor int                `json:"replication_factor"`
	Configs           map[string]*string `json:"configs"` // those set on the topic itself
	// Defaults are the settings that decide what stays in the topic and is taken into
	// it, as far as its brokers gave them. nil in sets made before they were recorded.
	Defaults        map[string]string `json:"defaults,omitempty"`
	NewestTimestamp *time.Time        `json:"newest_timestamp"`
	Partitions      []Partition       `json:"partitions"`
}

// EndedBy says where the dump of a partition ends. "" in sets made before it was noted.
type EndedBy string

const (
	// ByCut: at the high watermark that was listed at the cut.
	ByCut EndedBy = "cut"
	// ByCatchingUp: of a compacted partition, at a last stable offset, not below that
	// watermark, that the dump had caught up with.
	ByCatchingUp EndedBy = "caught up"
	// ByTransaction: below that watermark, where a transaction stayed open and its gap
	// was allowed.
	ByTransaction EndedBy = "open transaction"
)

// Partition covers the offsets [Start, Cut): every offset is in a stored batch,
// in Dropped, in CompactedAway, or in Gaps. Only between the batches of one
// segment of a compacted partition are holes not listed.
type Partition struct {
	ID               int32     `json:"id"`
	Start            int64     `json:"start_offset"`
	Cut              int64     `json:"cut_offset"`              // the end of what is stored
	Listed           int64     `json:"listed_offset,omitempty"` // high watermark at the cut
	EndedBy          EndedBy   `json:"ended_by,omitempty"`
	HighWatermark    int64     `json:"high_watermark"` // Listed, or Cut if that is higher
	Compacted        bool      `json:"compacted"`      // by its topic's policy, or as its log shows
	Batches          int64     `json:"batches"`
	Records          int64     `json:"records"`
	Bytes            int64     `json:"bytes"`
	ControlBatches   int64     `json:"control_batches_dropped"`
	AbortedRecords   int64     `json:"aborted_records_dropped"`
	BatchesWithHoles int64     `json:"batches_with_holes"`
	Transactional    int64     `json:"transactional_batches,omitempty"` // of Batches; 0 in sets made before it was counted
	MaxBatch         int       `json:"max_batch_bytes"`
	Dropped          Ranges    `json:"dropped"`        // control, aborted and empty batches
	CompactedAway    Ranges    `json:"compacted_away"` // between segments, before the first and after the last
	Gaps             []Gap     `json:"gaps"`
	Segments         []Segment `json:"segments"`
}

// HasTransactions tells whether stored batches may be of transactions, whose commit
// markers are not stored. Sets made before these were counted have the markers' number.
func (t *Topic) HasTransactions() bool {
	return slices.ContainsFunc(t.Partitions, func(p Partition) bool { return p.Transactional > 0 || p.ControlBatches > 0 && p.Records > 0 })
}

// Range is the offsets [From, To).
type Range struct {
	From int64
	To   int64
}

// Gap is offsets [From, To) that should be in the set and are not.
type Gap struct {
	From   int64  `json:"from"`
	To     int64  `json:"to"`
	Reason string `json:"reason"`
}

// Segment is one archive entry: whole record batches in order, in Kafka's own
// log segment layout.
type Segment struct {
	Entry   string `json:"entry"` // EventBusPrefix + <topic>/<partition>[~<try>]/<20 digits>.log
	Base    int64  `json:"base_offset"`
	Last    int64  `json:"last_offset"`
	Batches int64  `json:"batches"`
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"`
}

// Group is a consumer group and its committed positions.
type Group struct {
	Name     string        `json:"name"`
	State    string        `json:"state"`
	Protocol string        `json:"protocol_type"`
	Offsets  []GroupOffset `json:"offsets"`
}

// GroupOffset is one committed position: the next record to read.
type GroupOffset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Metadata  string `json:"metadata"`
	// BeyondCut says that the position lies after the partition's cut: a reader of
	// uncommitted records was already past an open transaction.
	BeyondCut bool `json:"beyond_cut,omitempty"`
}

// ACL is one access rule, in Kafka's own words.
type ACL struct {
	Principal  string `json:"principal"`
	Host       string `json:"host"`
	Type       string `json:"resource_type"`
	Name       string `json:"resource_name"`
	Pattern    string `json:"pattern"`
	Operation  string `json:"operation"`
	Permission string `json:"permission"`
}
