package eventbus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// CheckTarget tells, before anything is written, whether the bus can take the
// set: it has none of its topics, none of its groups is active or has positions
// there, and the manifest is sound.
func CheckTarget(ctx context.Context, o Options, e *set.EventBus) error {
	c, err := connect(ctx, o, probePatience)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.checkTarget(ctx, e)
	return err
}

// target is what a look at the target found.
type target struct {
	brokers int
	groups  map[string]bool // of the set's, those that the target knows already
}

// checkTarget looks at the target and refuses it, or tells what is there.
func (c *client) checkTarget(ctx context.Context, e *set.EventBus) (target, error) {
	var first *set.Damage
	checkManifest(e, func(d set.Damage) {
		if first == nil {
			first = &d
		}
	})
	if first != nil {
		return target{}, stage.Permanentf("eventbus: the set's manifest is damaged: %s: %s; verify the set and take another one", first.Entry, first.Problem)
	}
	md, err := c.metadata(ctx, topicNames(e.Topics)...)
	if err != nil {
		return target{}, err
	}
	var clash []string
	for _, t := range e.Topics {
		d, ok := md.Topics[t.Name]
		switch {
		case ok && d.Err == nil:
			clash = append(clash, t.Name)
		case isDenied(d.Err):
			return target{}, stage.Permanentf("eventbus: the target does not let the user look up topic %s: %w; grant the user ALL on Topic *, Group * and Cluster for the restore", t.Name, d.Err)
		case ok && !isUnknownTopic(d.Err):
			return target{}, fmt.Errorf("eventbus: topic %s cannot be looked up on the target: %w", t.Name, d.Err)
		}
	}
	if len(clash) > 0 {
		return target{}, stage.Permanentf("eventbus: the target already has %d of the set's topics (%s); restore to a bus without them, or delete them there first", len(clash), names(clash))
	}
	if len(md.Brokers) == 0 {
		return target{}, errors.New("eventbus: the target shows no broker; see to its brokers")
	}
	groups, err := c.checkGroups(ctx, e.Groups)
	return target{len(md.Brokers), groups}, err
}

func topicNames(topics []set.Topic) []string {
	var list []string
	for _, t := range topics {
		list = append(list, t.Name)
	}
	return list
}

// unlimited is the largest int64, Kafka's word for no limit of a timestamp.
const unlimited = "9223372036854775807"

// holding are the settings that a topic has while it is loaded, so that nothing
// is deleted, compacted, stamped anew or refused. timestamps names the limits of
// timestamps that the target's release knows.
func holding(t *set.Topic, timestamps []string) map[string]*string {
	largest := 1 << 20
	for _, p := range t.Partitions {
		largest = max(largest, 2*p.MaxBatch+1<<20) // batches encoded again may grow
	}
	if v := t.Configs["max.message.bytes"]; v != nil {
		if n, err := strconv.Atoi(*v); err == nil {
			largest = max(largest, n)
		}
	}
	h := map[string]*string{}
	put := func(k, v string) { h[k] = &v }
	put("retention.ms", "-1")
	put("retention.bytes", "-1")
	put("cleanup.policy", "delete")
	put("message.timestamp.type", "CreateTime")
	put("compression.type", "producer")
	put("min.insync.replicas", "1")
	put("max.message.bytes", strconv.Itoa(min(largest, 1<<31-1)))
	for _, k := range timestamps {
		put(k, unlimited)
	}
	return h
}

// timestampLimits are the settings that bound timestamps, by release: from Kafka
// 3.6 on, and before.
var timestampLimits = [][]string{
	{"message.timestamp.before.max.ms", "message.timestamp.after.max.ms"},
	{"message.timestamp.difference.max.ms"},
	nil,
}

// createTopics makes the set's topics under their holding settings. l.made is
// told of every topic that may exist from then on.
func (l *loader) createTopics(ctx context.Context, e *set.EventBus, brokers int) error {
	for i := range e.Topics {
		t := &e.Topics[i]
		replicas := min(t.ReplicationFactor, brokers)
		if replicas < t.ReplicationFactor {
			l.out.Note("eventbus: topic %s has %d replicas instead of %d: the target has %d brokers", t.Name, replicas, t.ReplicationFactor, brokers)
		}
		for {
			h := holding(t, timestampLimits[l.limits])
			err := l.createTopic(ctx, t, replicas, h)
			if errors.Is(err, kerr.InvalidConfig) && l.limits < len(timestampLimits)-1 {
				l.limits++
				continue
			}
			if err != nil {
				return fmt.Errorf("eventbus: creating topic %s: %w", t.Name, err)
			}
			l.held[t.Name] = slices.Collect(maps.Keys(h))
			break
		}
	}
	return nil
}

// createTopic asks the controller without the library's retries, so that a topic
// whose answer was lost can be told from one that somebody else made.
func (l *loader) createTopic(ctx context.Context, t *set.Topic, replicas int, configs map[string]*string) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 30000
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = t.Name, int32(len(t.Partitions)), int16(replicas)
	for k, v := range configs {
		rc := kmsg.NewCreateTopicsRequestTopicConfig()
		rc.Name, rc.Value = k, v
		rt.Configs = append(rt.Configs, rc)
	}
	req.Topics = append(req.Topics, rt)
	began := time.Now()
	unclear := false
	for try := 1; ; try++ {
		asked, err := l.askController(ctx, req)
		switch {
		case err == nil, unclear && errors.Is(err, kerr.TopicAlreadyExists):
			l.made.topic(t.Name)
			return nil
		case errors.Is(err, kerr.TopicAlreadyExists):
			return stage.Permanentf("it was created by somebody else just now (%w); restore to a bus without it", err)
		case errors.Is(err, kerr.RequestTimedOut), asked && !isKafkaError(err):
			unclear = true
			l.made.topic(t.Name)
		case errors.Is(err, kerr.InvalidConfig):
			return err
		case isKafkaError(err) && !kerr.IsRetriable(err):
			return stage.Permanentf("%w; see to the target's rights and settings", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(began) > l.o.Budget {
			return err
		}
		if perr := pause(ctx, try); perr != nil {
			return perr
		}
	}
}

// askController sends a request for one topic and returns that topic's error.
// asked is false where the request surely did not go out.
func (l *loader) askController(ctx context.Context, req *kmsg.CreateTopicsRequest) (asked bool, err error) {
	mctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	md, err := l.adm.BrokerMetadata(mctx)
	if err != nil {
		return false, err
	}
	kresp, err := l.Broker(int(md.Controller)).Request(ctx, req)
	if err != nil {
		var op *net.OpError
		return !errors.As(err, &op) || op.Op != "dial", err
	}
	resp := kresp.(*kmsg.CreateTopicsResponse)
	if len(resp.Topics) != 1 {
		return true, errNoAnswer
	}
	err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	if m := resp.Topics[0].ErrorMessage; err != nil && m != nil {
		err = fmt.Errorf("%w (%s)", err, *m)
	}
	return true, err
}

// isKafkaError tells whether a broker answered with an error code.
func isKafkaError(err error) bool {
	var ke *kerr.Error
	return errors.As(err, &ke)
}

// awaitLeaders waits until every partition has a leader: brokers answer the
// creation before their metadata has the topics.
func (l *loader) awaitLeaders(ctx context.Context, e *set.EventBus) (kadm.Metadata, error) {
	began := time.Now()
	for try := 1; ; try++ {
		if len(e.Topics) == 0 {
			return kadm.Metadata{}, nil
		}
		md, err := l.metadata(ctx, topicNames(e.Topics)...)
		if err != nil {
			return md, err
		}
		missing := ""
		for _, t := range e.Topics {
			d := md.Topics[t.Name]
			for _, p := range t.Partitions {
				if now, ok := d.Partitions[p.ID]; d.Err != nil || !ok || now.Err != nil || now.Leader < 0 {
					missing = fmt.Sprintf("topic %s partition %d", t.Name, p.ID)
				}
				if isDenied(d.Err) {
					return md, stage.Permanentf("eventbus: the target does not let the user look up topic %s: %w; grant the user ALL on Topic *, Group * and Cluster for the restore", t.Name, d.Err)
				}
			}
		}
		if missing == "" {
			return md, nil
		}
		if time.Since(began) > l.o.Budget {
			return md, fmt.Errorf("eventbus: %s has no leader %s after its creation; see to the target's brokers", missing, l.o.Budget)
		}
		wait := time.NewTimer(20 * time.Millisecond * time.Duration(min(try, 25)))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return md, context.Cause(ctx)
		}
	}
}
