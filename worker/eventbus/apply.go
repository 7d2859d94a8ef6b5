package eventbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// commitPositions sets each group to the record that it would have read next.
// known are the groups that the target had before.
func (l *loader) commitPositions(ctx context.Context, e *set.EventBus, known map[string]bool) error {
	for _, g := range e.Groups {
		offsets := kadm.Offsets{}
		for _, o := range g.Offsets {
			at, ok := l.at[place{o.Topic, o.Partition, o.Offset}]
			if !ok {
				l.out.Note("eventbus: group %q: its position in %s/%d is left out, the set does not hold that partition", g.Name, o.Topic, o.Partition)
				continue
			}
			offsets.Add(kadm.Offset{Topic: o.Topic, Partition: o.Partition, At: at, LeaderEpoch: -1, Metadata: o.Metadata})
		}
		if len(offsets) == 0 {
			continue
		}
		if !known[g.Name] {
			l.made.groups = append(l.made.groups, g.Name)
		}
		if err := l.commit(ctx, g.Name, offsets); err != nil {
			return fmt.Errorf("eventbus: setting the positions of group %q: %w", g.Name, err)
		}
		l.out.Groups++
	}
	if l.out.Groups > 0 {
		l.out.Note("eventbus: the positions of %d groups are kept by the bus for offsets.retention.minutes (7 days by default) from now on if no consumer comes", l.out.Groups)
	}
	return nil
}

// commit sets one group's positions, again while its coordinator is not ready.
func (l *loader) commit(ctx context.Context, group string, offsets kadm.Offsets) error {
	began := time.Now()
	for try := 1; ; try++ {
		err := l.adm.CommitAllOffsets(ctx, group, offsets)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.RebalanceInProgress), errors.Is(err, kerr.NonEmptyGroup):
			return stage.Permanentf("it is active on the target (%w); stop its consumers first", err)
		case isDenied(err):
			return stage.Permanentf("%w; grant the user READ on Group * for the restore", err)
		case isKafkaError(err) && !kerr.IsRetriable(err):
			return stage.Permanent(err)
		}
		if time.Since(began) > l.o.Budget {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// createACLs makes the access rules that are not there. Rules that the target
// does not take are a warning: the records are there and must not go for it. The
// only error is that of ctx.
func (l *loader) createACLs(ctx context.Context, acls []set.ACL) error {
	if len(acls) == 0 {
		return nil
	}
	var unread stage.Findings
	there := map[set.ACL]bool{}
	for _, a := range l.acls(ctx, &unread) {
		there[a] = true
	}
	req := kmsg.NewPtrCreateACLsRequest()
	for _, a := range acls {
		if there[a] {
			continue
		}
		c, err := creation(a)
		if err != nil {
			l.out.Warn("eventbus: access rule for %s on %s %q is not restored: %v", a.Principal, a.Type, a.Name, err)
			continue
		}
		req.Creations = append(req.Creations, c)
	}
	if len(req.Creations) == 0 {
		return nil
	}
	if len(unread.Warnings) == 0 { // else a failure would not know which were there before
		l.made.rules = req.Creations
	}
	resp, err := req.RequestWith(ctx, l.Client)
	if ctx.Err() != nil {
		return fmt.Errorf("eventbus: creating the access rules: %w", context.Cause(ctx))
	}
	if err != nil {
		l.out.Warn("eventbus: the access rules are not restored: %v; create them by hand as the manifest lists them", err)
		return nil
	}
	for i, r := range resp.Results {
		err := kerr.ErrorForCode(r.ErrorCode)
		switch {
		case err == nil:
			l.out.ACLs++
		case errors.Is(err, kerr.SecurityDisabled), errors.Is(err, kerr.ClusterAuthorizationFailed):
			l.out.Warn("eventbus: the access rules are not restored: %v; create them by hand as the manifest lists them", err)
			return nil
		case i < len(req.Creations):
			c := req.Creations[i]
			l.out.Warn("eventbus: access rule for %s on %s %q is not restored: %v", c.Principal, c.ResourceType, c.ResourceName, err)
		}
	}
	return nil
}

func creation(a set.ACL) (c kmsg.CreateACLsRequestCreation, err error) {
	c = kmsg.NewCreateACLsRequestCreation()
	c.Principal, c.Host, c.ResourceName = a.Principal, a.Host, a.Name
	if c.ResourceType, err = kmsg.ParseACLResourceType(a.Type); err != nil {
		return c, err
	}
	if c.ResourcePatternType, err = kmsg.ParseACLResourcePatternType(a.Pattern); err != nil {
		return c, err
	}
	if c.Operation, err = kmsg.ParseACLOperation(a.Operation); err != nil {
		return c, err
	}
	c.PermissionType, err = kmsg.ParseACLPermissionType(a.Permission)
	return c, err
}

// retentionConfigs stay unlimited unless the real ones are asked for.
var retentionConfigs = []string{"retention.ms", "retention.bytes"}

// applyConfigs replaces the holding settings by the topics' own, last of all.
func (l *loader) applyConfigs(ctx context.Context, e *set.EventBus, brokers int) error {
	var held []string
	for i := range e.Topics {
		t := &e.Topics[i]
		var alter []kadm.AlterConfig
		for _, k := range l.held[t.Name] {
			if _, own := t.Configs[k]; !own && (l.lo.FinalRetention || !slices.Contains(retentionConfigs, k)) {
				alter = append(alter, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: k})
			}
		}
		for k, v := range t.Configs {
			if v != nil && (l.lo.FinalRetention || !slices.Contains(retentionConfigs, k)) {
				alter = append(alter, kadm.AlterConfig{Op: kadm.SetConfig, Name: k, Value: v})
			}
		}
		if err := l.alter(ctx, t.Name, alter); err != nil {
			return err
		}
		held = append(held, t.Name)
		if v := t.Configs["min.insync.replicas"]; v != nil {
			if n, err := strconv.Atoi(*v); err == nil && n > min(t.ReplicationFactor, brokers) {
				l.out.Warn("eventbus: topic %s has min.insync.replicas=%d as in the set, but only %d replicas here: nobody can publish to it with acks=all; add replicas or lower it", t.Name, n, min(t.ReplicationFactor, brokers))
			}
		}
	}
	if !l.lo.FinalRetention && len(held) > 0 {
		l.out.Note("eventbus: retention is held unlimited on %d topics (%s), so that the bus deletes no old record; set retention.ms and retention.bytes as the manifest has them once the records are taken, or restore with --final-retention", len(held), names(held))
	}
	l.compareRetention(ctx, e)
	return nil
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
		policy := t.Configs["cleanup.policy"]
		if t.NewestTimestamp == nil || policy != nil && !strings.Contains(*policy, "delete") {
			continue
		}
		ms := defaults
		if v := t.Configs["retention.ms"]; v != nil {
			var err error
			if ms, err = strconv.ParseInt(*v, 10, 64); err != nil {
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
