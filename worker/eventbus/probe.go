package eventbus

import (
	"context"
	"time"

	"catalog-backup/worker/stage"
)

// Info is what a look at the bus shows before a run.
type Info struct {
	ClusterID string      `json:"cluster_id"`
	Version   string      `json:"version"` // guessed from what the brokers offer
	Brokers   int         `json:"brokers"`
	Topics    []TopicInfo `json:"topics"`
	Groups    int         `json:"groups"`
	Bytes     int64       `json:"bytes"`   // on disk, of the topics to dump; 0 if unknown
	Checked   bool        `json:"checked"` // the topics were compared with those on the brokers' disks
}

// TopicInfo is one topic to dump.
type TopicInfo struct {
	Name       string `json:"name"`
	Partitions int    `json:"partitions"`
	Bytes      int64  `json:"bytes"`
}

// probePatience is how long a bus may be away in Probe and ReadPositions; the
// run's own retries come on top.
const probePatience = 15 * time.Second

// Probe tells whether a dump can work: the bus is reachable, the login good,
// everything visible and readable. Its errors are what a dump would fail of,
// found before the work.
func Probe(ctx context.Context, o Options) (*Info, stage.Findings, error) {
	c, err := connect(ctx, o, probePatience)
	if err != nil {
		return nil, stage.Findings{}, err
	}
	defer c.Close()
	s, f, err := c.look(ctx)
	if err != nil {
		return nil, f, err
	}
	p, more, err := c.positions(ctx, s)
	f.Join(more)
	if err != nil {
		return nil, f, err
	}
	if err := c.checkNotBlind(s, len(p.Groups)); err != nil {
		return nil, f, err
	}
	info := &Info{ClusterID: s.cluster, Version: c.brokerVersion(ctx), Brokers: s.brokers, Groups: len(p.Groups), Bytes: s.bytes(), Checked: s.checked, Topics: []TopicInfo{}}
	for _, t := range s.topics {
		ti := TopicInfo{Name: t.Topic, Partitions: len(t.Partitions)}
		for _, n := range s.sizes[t.Topic] {
			ti.Bytes += n
		}
		info.Topics = append(info.Topics, ti)
	}
	if len(info.Topics) == 0 {
		f.Note("eventbus: the bus has no topics")
	}
	return info, f, nil
}
