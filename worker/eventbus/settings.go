package eventbus

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"catalog-backup/shared/set"
)

// retentionConfigs stay unlimited unless the real ones are asked for.
var retentionConfigs = []string{"retention.ms", "retention.bytes"}

// setting is what a topic's setting was at the source, its own or the brokers'.
func setting(t *set.Topic, k string) (value string, told bool) {
	if v := t.Configs[k]; v != nil {
		return *v, true
	}
	value, told = t.Defaults[k]
	return value, told
}

// applyConfigs replaces the holding settings by those that the topics had, last of
// all. What they had from their brokers becomes their own where this bus gives
// another: a log must not be compacted that was not, nor expire that did not.
func (l *loader) applyConfigs(ctx context.Context, e *set.EventBus, brokers int) error {
	here, _, err := l.topicConfigs(ctx, topicNames(e.Topics))
	if err != nil && ctx.Err() != nil {
		return err
	}
	var held []string
	taken := map[string][]string{} // topics by what became their own
	for i := range e.Topics {
		t := &e.Topics[i]
		if err := l.alter(ctx, t.Name, l.settings(t, here[t.Name].defaults, taken)); err != nil {
			return err
		}
		held = append(held, t.Name)
		if v := t.Configs["min.insync.replicas"]; v != nil {
			if n, err := strconv.Atoi(*v); err == nil && n > min(t.ReplicationFactor, brokers) {
				l.out.Warn("eventbus: topic %s has min.insync.replicas=%d as in the set, but only %d replicas here: nobody can publish to it with acks=all; add replicas or lower it", t.Name, n, min(t.ReplicationFactor, brokers))
			}
		}
		l.compareOldPolicy(t, here[t.Name].defaults["cleanup.policy"])
	}
	for _, kv := range slices.Sorted(maps.Keys(taken)) {
		l.out.Note("eventbus: %s, set on the topic itself: %d topics (%s); they had it from their brokers, and those here give another", kv, len(taken[kv]), names(taken[kv]))
	}
	if !l.lo.FinalRetention && len(held) > 0 {
		l.out.Note("eventbus: retention is held unlimited on %d topics (%s), so that the bus deletes no old record; set retention.ms and retention.bytes as the manifest has them once the records are taken, or restore with --final-retention", len(held), names(held))
	}
	l.compareRetention(ctx, e)
	return nil
}

// settings are the changes that give a topic what it had, under the defaults here.
func (l *loader) settings(t *set.Topic, here map[string]string, taken map[string][]string) (alter []kadm.AlterConfig) {
	final := func(k string) bool { return l.lo.FinalRetention || !slices.Contains(retentionConfigs, k) }
	own := map[string]bool{}
	put := func(k string, v *string) {
		own[k] = true
		if v != nil && final(k) {
			alter = append(alter, kadm.AlterConfig{Op: kadm.SetConfig, Name: k, Value: v})
		}
	}
	for k, v := range t.Configs {
		put(k, v)
	}
	for k, v := range t.Defaults {
		now, told := here[k]
		if now == v || !told && len(here) > 0 || own[k] { // this release may not have it
			continue
		}
		if k == "max.message.bytes" && atLeast(now, v) {
			continue // takes what was taken
		}
		put(k, &v)
		if final(k) {
			taken[k+"="+v] = append(taken[k+"="+v], t.Name)
		}
	}
	for _, k := range l.held[t.Name] {
		if !own[k] && final(k) {
			alter = append(alter, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: k})
		}
	}
	return alter
}

// atLeast compares two numbers.
func atLeast(a, b string) bool {
	x, err := strconv.ParseInt(a, 10, 64)
	y, berr := strconv.ParseInt(b, 10, 64)
	return err == nil && berr == nil && x >= y
}

// compareOldPolicy speaks of a topic of an older set that was compacted by its
// brokers' default, which such a set does not tell.
func (l *loader) compareOldPolicy(t *set.Topic, here string) {
	compacted := slices.ContainsFunc(t.Partitions, func(p set.Partition) bool { return p.Compacted })
	if _, told := setting(t, "cleanup.policy"); told || !compacted || strings.Contains(here, "compact") {
		return
	}
	l.out.Warn("eventbus: topic %s was compacted, by a default of its brokers that this set does not tell, and is not here: if it still was, set cleanup.policy=compact on it, else retention deletes keys that nobody has written for long", t.Name)
}

// alter sets a topic's settings, all at once or, where the target refuses that,
// one by one. What it refuses is a warning.
func (l *loader) alter(ctx context.Context, topic string, configs []kadm.AlterConfig) error {
	if len(configs) == 0 {
		return nil
	}
	began := time.Now()
	err := l.alterOnce(ctx, topic, configs)
	for try := 1; err != nil && isKafkaError(err) && kerr.IsRetriable(err) && time.Since(began) < l.o.Budget; try++ {
		if perr := pause(ctx, try); perr != nil {
			return fmt.Errorf("eventbus: setting the configuration of topic %s: %w", topic, perr)
		}
		err = l.alterOnce(ctx, topic, configs)
	}
	if err == nil {
		return nil
	}
	if !isKafkaError(err) || kerr.IsRetriable(err) {
		return fmt.Errorf("eventbus: setting the configuration of topic %s: %w", topic, err)
	}
	for _, c := range configs {
		if err := l.alterOnce(ctx, topic, []kadm.AlterConfig{c}); err != nil {
			l.out.Warn("eventbus: topic %s: the target refuses its setting %s: %v; set it by hand", topic, c.Name, err)
		}
	}
	return nil
}

func (l *loader) alterOnce(ctx context.Context, topic string, configs []kadm.AlterConfig) error {
	rs, err := l.adm.AlterTopicConfigs(ctx, configs, topic)
	if err != nil {
		return err
	}
	for _, r := range rs {
		if r.Err != nil {
			return fmt.Errorf("%w (%s)", r.Err, r.ErrMessage)
		}
	}
	return nil
}

// compareRetention says which topics the bus will empty, or would if their real
// retention applied.
func (l *loader) compareRetention(ctx context.Context, e *set.EventBus) {
	if len(e.Topics) == 0 {
		return
	}
	defaults := l.retentionDefault(ctx)
	for _, t := range e.Topics {
		policy, told := setting(&t, "cleanup.policy")
		if t.NewestTimestamp == nil || told && !strings.Contains(policy, "delete") {
			continue
		}
		ms := defaults
		if v, told := setting(&t, "retention.ms"); told {
			var err error
			if ms, err = strconv.ParseInt(v, 10, 64); err != nil {
				continue
			}
		}
		if age := l.o.Now().Sub(*t.NewestTimestamp).Milliseconds(); ms < 0 || age < ms {
			continue
		}
		keep := time.Duration(min(ms, int64(1<<62)/1e6)) * time.Millisecond
		if l.lo.FinalRetention {
			l.out.Warn("eventbus: topic %s: its newest record is of %s, older than its retention of %s: the bus will delete all its records within minutes; restore without --final-retention to keep them",
				t.Name, t.NewestTimestamp.Format(time.RFC3339), keep)
		} else {
			l.out.Note("eventbus: topic %s: its newest record is of %s, older than its retention of %s: the bus would delete all its records as soon as that applied", t.Name, t.NewestTimestamp.Format(time.RFC3339), keep)
		}
	}
}

// retentionDefault is what the target gives topics without a retention of their
// own, in ms: 7 days if it does not tell.
func (l *loader) retentionDefault(ctx context.Context) int64 {
	days := int64(168 * time.Hour / time.Millisecond)
	md, err := l.adm.BrokerMetadata(ctx)
	if err != nil || len(md.Brokers) == 0 {
		return days
	}
	rs, err := l.adm.DescribeBrokerConfigs(ctx, md.Brokers[0].NodeID)
	if err != nil {
		return days // no right to ask
	}
	for _, r := range rs {
		for _, u := range []struct {
			key string
			ms  int64
		}{{"log.retention.ms", 1}, {"log.retention.minutes", 60_000}, {"log.retention.hours", 3_600_000}} {
			for _, kv := range r.Configs {
				if kv.Key == u.key && kv.Value != nil {
					if n, err := strconv.ParseInt(*kv.Value, 10, 64); err == nil {
						return n * u.ms
					}
				}
			}
		}
	}
	return days
}
