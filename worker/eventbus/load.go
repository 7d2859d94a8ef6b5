package eventbus

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"

	"github.com/twmb/franz-go/pkg/kadm"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// Source opens the set's segments by their entry names.
type Source interface {
	Open(entry string) (io.ReadCloser, error)
}

// LoadOptions say how a set is loaded.
type LoadOptions struct {
	// FinalRetention sets the topics' real retention after the load. Without it
	// retention stays unlimited: Kafka would delete old records within minutes.
	FinalRetention bool
	Parallel       int // partitions at once, default 4
	Progress       stage.Progress
	Logf           func(format string, args ...any)
}

// Loaded is what a load brought into the bus.
type Loaded struct {
	Topics    int   `json:"topics"`
	Records   int64 `json:"records"`
	Bytes     int64 `json:"bytes"`
	Reencoded int64 `json:"reencoded"` // batches that could not be sent as they were
	Groups    int   `json:"groups"`
	ACLs      int   `json:"acls"`
	stage.Findings
}

// loader is one load under way.
type loader struct {
	*client
	lo     LoadOptions
	who    identity
	held   map[string][]string // settings that a topic has only while it is loaded
	limits int                 // index of timestampLimits that the target knows
	made   made

	mu  sync.Mutex
	out Loaded
	at  map[place]int64 // consumer positions by what they were
}

// place is an offset of a partition in the set.
type place struct {
	topic     string
	partition int32
	offset    int64
}

// Load brings a set into a bus that has none of its topics: topics, records,
// consumer positions (moved to where the same record is now), the real settings
// and last the access rules, which might bind the loading user too. If it fails,
// or ctx ends, it deletes what it made.
func Load(ctx context.Context, o Options, e *set.EventBus, src Source, lo LoadOptions) (*Loaded, error) {
	o = o.withDefaults()
	if lo.Parallel < 1 {
		lo.Parallel = o.Parallel
	}
	if lo.Progress == nil {
		lo.Progress = stage.NoProgress{}
	}
	if lo.Logf == nil {
		lo.Logf = o.Logf
	}
	c, err := connect(ctx, o, o.Budget)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	l := &loader{client: c, lo: lo, held: map[string][]string{}, at: map[place]int64{}}
	if err := l.load(ctx, e, src); err != nil {
		return nil, l.undo(ctx, err)
	}
	return &l.out, nil
}

func (l *loader) load(ctx context.Context, e *set.EventBus, src Source) error {
	there, err := l.checkTarget(ctx, e)
	if err != nil {
		return err
	}
	if err := l.createTopics(ctx, e, there.brokers); err != nil {
		return err
	}
	md, err := l.awaitLeaders(ctx, e)
	if err != nil {
		return err
	}
	if len(e.Topics) > 0 {
		l.who = l.identify(ctx)
	}
	if err := l.loadAll(ctx, e, src, md); err != nil {
		return err
	}
	if err := l.commitPositions(ctx, e, there.groups); err != nil {
		return err
	}
	if err := l.applyConfigs(ctx, e, there.brokers); err != nil {
		return err
	}
	return l.createACLs(ctx, e.ACLs)
}

// loadAll loads the partitions, several at once.
func (l *loader) loadAll(ctx context.Context, e *set.EventBus, src Source, md kadm.Metadata) error {
	type job struct {
		t *set.Topic
		p *set.Partition
	}
	var jobs []job
	var total int64
	for i := range e.Topics {
		t := &e.Topics[i]
		for j := range t.Partitions {
			jobs = append(jobs, job{t, &t.Partitions[j]})
			total += t.Partitions[j].Bytes
		}
	}
	l.lo.Progress.Total(total)
	wanted := wantedPlaces(e)
	l.out.Topics = len(e.Topics)
	return eachAtOnce(ctx, l.lo.Parallel, jobs, func(ctx context.Context, next func() (job, bool)) error {
		pl := &partitionLoad{l: l, src: src}
		defer pl.dec.close()
		for j, ok := next(); ok; j, ok = next() {
			d := md.Topics[j.t.Name]
			pl.begin(j.t.Name, j.p, wanted[place{j.t.Name, j.p.ID, 0}])
			pl.to = &producer{l: l, topic: j.t.Name, id: d.ID, part: j.p.ID, leader: d.Partitions[j.p.ID].Leader, who: l.who}
			if err := pl.run(ctx); err != nil {
				return fmt.Errorf("eventbus: topic %s partition %d: %w", j.t.Name, j.p.ID, err)
			}
		}
		return nil
	})
}

// wantedPlaces are the committed offsets by partition (place with offset 0), rising.
func wantedPlaces(e *set.EventBus) map[place][]int64 {
	w := map[place][]int64{}
	for _, g := range e.Groups {
		for _, o := range g.Offsets {
			k := place{o.Topic, o.Partition, 0}
			w[k] = append(w[k], o.Offset)
		}
	}
	for k := range w {
		sort.Slice(w[k], func(i, j int) bool { return w[k][i] < w[k][j] })
		w[k] = slices.Compact(w[k])
	}
	return w
}

// partitionLoad loads one partition after the other.
type partitionLoad struct {
	l   *loader
	src Source
	dec decoder
	in  []byte
	out []byte

	topic     string
	p         *set.Partition
	to        *producer
	wanted    []int64 // consumer positions not yet found their new place
	last      int64
	reencoded int64
}

func (pl *partitionLoad) begin(topic string, p *set.Partition, wanted []int64) {
	pl.topic, pl.p, pl.wanted, pl.last, pl.reencoded = topic, p, wanted, -1, 0
}

func (pl *partitionLoad) run(ctx context.Context) error {
	for i := range pl.p.Segments {
		if err := pl.segment(ctx, &pl.p.Segments[i]); err != nil {
			return err
		}
	}
	pl.l.mu.Lock()
	defer pl.l.mu.Unlock()
	for _, w := range pl.wanted { // after the last record: the end
		pl.l.at[place{pl.topic, pl.p.ID, w}] = pl.to.next
	}
	pl.l.out.Records += pl.to.next
	pl.l.out.Bytes += pl.p.Bytes
	pl.l.out.Reencoded += pl.reencoded
	return nil
}

// segment sends one segment's batches.
func (pl *partitionLoad) segment(ctx context.Context, s *set.Segment) error {
	damaged := func(err error) error {
		return stage.Permanentf("segment %s is damaged: %w; verify the set and restore another one", s.Entry, err)
	}
	f, err := pl.src.Open(s.Entry)
	if err != nil {
		return fmt.Errorf("opening segment %s: %w", s.Entry, err)
	}
	defer f.Close()
	in := &tee{r: bufio.NewReaderSize(f, 256<<10), sum: sha256.New()}
	for pos := int64(0); pos < s.Bytes; {
		raw, err := nextBatch(in, s.Bytes-pos, &pl.in)
		if in.err != nil {
			return fmt.Errorf("reading segment %s: %w", s.Entry, in.err)
		}
		if err != nil {
			return damaged(fmt.Errorf("byte %d: %w", pos, err))
		}
		b, err := parseBatch(raw)
		if err != nil {
			return damaged(fmt.Errorf("byte %d: %w", pos, err))
		}
		if b.base <= pl.last || b.last() < pl.p.Start || b.base >= pl.p.Cut || b.control() || b.count == 0 {
			return damaged(fmt.Errorf("byte %d: the batch of offsets %d to %d is out of place", pos, b.base, b.last()))
		}
		pl.last = b.last()
		problem, err := pl.batch(ctx, b)
		if problem != nil {
			return damaged(fmt.Errorf("byte %d: %w", pos, problem))
		}
		if err != nil {
			return err
		}
		pos += int64(len(raw))
		pl.l.lo.Progress.Add(int64(len(raw)))
	}
	if n, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("reading segment %s: %w", s.Entry, err)
	} else if n > 0 {
		return damaged(fmt.Errorf("%d bytes follow its last batch", n))
	}
	if got := hex.EncodeToString(in.sum.Sum(nil)); got != s.SHA256 {
		return damaged(fmt.Errorf("SHA-256 is %s, the manifest says %s", got, s.SHA256))
	}
	return nil
}

// batch sends one batch, as it is where Kafka takes that. problem is damage of
// the batch itself.
func (pl *partitionLoad) batch(ctx context.Context, b batch) (problem, err error) {
	if b.contiguous() && b.base >= pl.p.Start && b.last() < pl.p.Cut && !b.logAppendTime() {
		pl.out = neutralise(pl.out, b)
		at, err := pl.to.send(ctx, pl.out, int64(b.count))
		if err != nil {
			return nil, err
		}
		pl.became(b.base, at, int64(b.count))
		return nil, nil
	}
	pl.reencoded++
	problem = reencode(&pl.dec, b, pl.p.Start, pl.p.Cut, func(raw []byte, sources []int64) error {
		var at int64
		if at, err = pl.to.send(ctx, raw, int64(len(sources))); err != nil {
			return err
		}
		for i, s := range sources {
			pl.became(s, at+int64(i), 1)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return problem, nil
}

// became notes that n records from source offset on are now at at, for the
// consumers that stood there or in the hole before.
func (pl *partitionLoad) became(source, at, n int64) {
	for len(pl.wanted) > 0 && pl.wanted[0] < source+n {
		w := pl.wanted[0]
		pl.wanted = pl.wanted[1:]
		pl.l.mu.Lock()
		pl.l.at[place{pl.topic, pl.p.ID, w}] = at + max(0, w-source)
		pl.l.mu.Unlock()
	}
}
