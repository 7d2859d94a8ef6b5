package eventbus

import (
	"context"
	"errors"
	"sort"
	"sync"
	"time"

	"catalog-backup/shared/set"
)

// job is one partition to read.
type job struct {
	t    *topicWork
	i    int           // index of Partitions
	r    *reader       // of this try; nil before it
	try  int           // from 1
	took time.Duration // from the first fetch to the end; 0: all came in one answer, and nothing later

	compacts bool // the policy was seen to compact
	settled  bool // a doubt is left at a warning
}

func (j *job) partition() *set.Partition { return &j.t.Partitions[j.i] }

// readAll reads the partitions: round by round, since some must wait for a
// transaction and some be read anew. The first error ends all.
func (d *dumper) readAll(ctx context.Context, topics []*topicWork, s *survey, sink Sink) error {
	var jobs []*job
	for _, t := range topics {
		for i, p := range t.Partitions {
			if p.Listed > p.Start {
				jobs = append(jobs, &job{t: t, i: i, try: 1})
			}
		}
	}
	size := func(j *job) int64 { return s.sizes[j.t.Name][j.partition().ID] }
	sort.SliceStable(jobs, func(a, b int) bool { return size(jobs[a]) > size(jobs[b]) })
	var held []*job
	for todo := jobs; len(todo) > 0; {
		more, err := d.readRound(ctx, todo, sink)
		if err != nil {
			return err
		}
		if held = append(held, more...); len(held) > 0 {
			todo, held, err = d.awaitTransactions(ctx, held)
		} else {
			todo, err = d.readPoliciesAgain(ctx, topics, jobs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readRound reads partitions, several at once, and gives those back that an open
// transaction holds.
func (d *dumper) readRound(ctx context.Context, jobs []*job, sink Sink) (held []*job, err error) {
	var mu sync.Mutex
	err = eachAtOnce(ctx, d.o.Parallel, jobs, func(ctx context.Context, next func() (*job, bool)) error {
		seg := &segmenter{sink: sink, turn: &d.turn, size: d.o.SegmentBytes}
		defer seg.free()
		for j, ok := next(); ok; j, ok = next() {
			err := d.readPartition(ctx, j, seg)
			if errors.Is(err, errHeld) {
				mu.Lock()
				held = append(held, j)
				mu.Unlock()
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	return held, err
}

// readPartition reads a partition, anew where there is a doubt.
func (d *dumper) readPartition(ctx context.Context, j *job, seg *segmenter) error {
	for {
		if j.r == nil {
			j.r = d.newReader(j)
		}
		if err := j.r.run(ctx, seg, j.try); err != nil && !errors.Is(err, errMoved) || j.t.gone.Load() {
			return err
		}
		j.took = 0
		if j.r.answers > 1 || j.r.end > j.r.first {
			j.took = d.o.Now().Sub(j.r.began)
		}
		b := j.doubt(j.t.policy)
		if b == nil {
			return nil
		}
		if again, err := d.readAnew(j, b); err != nil || !again {
			return err
		}
	}
}

// readPoliciesAgain compares the topics' settings with those that the survey saw,
// and gives the partitions that must be read anew for what has changed. A policy
// that compacts now needs no more than that: a partition that showed no hole is
// whole, and one that did has caught up already.
func (d *dumper) readPoliciesAgain(ctx context.Context, topics []*topicWork, jobs []*job) (again []*job, err error) {
	var list []string
	for _, t := range topics {
		if !t.gone.Load() {
			list = append(list, t.Name)
		}
	}
	configs, _, err := d.topicConfigs(ctx, list)
	if err != nil {
		return nil, err
	}
	for _, t := range topics {
		c, ok := configs[t.Name]
		if !ok || t.gone.Load() {
			continue
		}
		now := policyOf(c)
		if now.cleanup != t.policy.cleanup {
			d.f.Note("eventbus: topic %s: its cleanup.policy was changed from %s to %s while the backup ran; the set has it as it was before", t.Name, t.policy.cleanup, now.cleanup)
		}
		now.keep = min(now.keep, t.policy.keep)
		t.policy = now
	}
	for _, j := range jobs {
		if j.t.gone.Load() || j.settled {
			continue
		}
		b := j.doubt(j.t.policy)
		if b == nil {
			continue
		}
		more, err := d.readAnew(j, b)
		if err != nil {
			return nil, err
		}
		if more {
			again = append(again, j)
		}
	}
	return again, nil
}
