package eventbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"catalog-backup/worker/stage"
)

// survey is what a principal can see of the bus, and whether that is all.
type survey struct {
	cluster string
	brokers int
	topics  []kadm.TopicDetail         // those to be dumped, by name
	sizes   map[string]map[int32]int64 // bytes on disk by topic and partition, where told
	configs map[string]topicConfigs    // by topic
	seen    kadm.TopicDetails          // all, wanted or not
	visible int                        // topics that the principal sees, wanted or not
	checked bool                       // the topics were compared with those on the brokers' disks
}

var errDisksUntold = errors.New("the brokers do not tell what is on their disks")

// topicConfigs are a topic's settings.
type topicConfigs struct {
	own       map[string]*string // set on the topic itself
	effective map[string]string  // with the brokers' defaults
	defaults  map[string]string  // what the brokers give, whatever is set on the topic
}

// Rights that a dump needs, for remedies.
const needRights = "grant the user READ and DESCRIBE_CONFIGS on Topic *, DESCRIBE on Group *, DESCRIBE on Cluster"

// look finds the topics to dump, and what hides from this principal: topics
// without DESCRIBE are left out of Kafka's answers without a word.
func (c *client) look(ctx context.Context) (*survey, stage.Findings, error) {
	var f stage.Findings
	s, hidden, why, err := c.list(ctx)
	if err != nil {
		return nil, f, err
	}
	if err := c.orWarn(&f, hidden, "the bus has %d topics that the user cannot see (%s): they would be missing"); err != nil {
		return nil, f, err
	}
	if !s.checked {
		remedy := "grant the user DESCRIBE on Cluster"
		if !isDenied(why) && !errors.Is(why, errDisksUntold) {
			remedy = "see to the brokers"
		}
		f.Warn("eventbus: whether all topics and groups are visible could not be checked (%v); %s", why, remedy)
	}
	if err := c.dropUnreadable(s, &f); err != nil {
		return nil, f, err
	}
	if err := c.readConfigs(ctx, s, &f); err != nil {
		return nil, f, err
	}
	for _, t := range s.topics {
		if err := checkTopicName(t.Topic); err != nil {
			return nil, f, stage.Permanentf("eventbus: %w; exclude the topic", err)
		}
	}
	return s, f, nil
}

// orWarn is the rule for topics that make a dump incomplete: a permanent error, or
// a warning about those where gaps are allowed. format takes their number and names.
func (c *client) orWarn(f *stage.Findings, topics []string, format string) error {
	var allowed, others []string
	for _, t := range topics {
		if c.o.allows(t) {
			allowed = append(allowed, t)
		} else {
			others = append(others, t)
		}
	}
	if len(allowed) > 0 {
		f.Warn("eventbus: "+format, len(allowed), names(allowed))
	}
	if len(others) > 0 {
		return stage.Permanentf("eventbus: "+format+"; "+needRights+", or name them in eventbus.allow_gaps_in", len(others), names(others))
	}
	return nil
}

// list compares the topics that the principal sees with those on the brokers'
// disks. The disks come first, so that a topic made meanwhile is not hidden; one
// deleted meanwhile is asked for by name and looked for again.
func (c *client) list(ctx context.Context) (s *survey, hidden []string, unchecked error, err error) {
	for try := 1; ; try++ {
		s = &survey{sizes: map[string]map[int32]int64{}}
		dirs, derr := c.adm.DescribeAllLogDirs(ctx, nil)
		md, err := c.metadata(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		s.cluster, s.brokers, s.seen = md.Cluster, len(md.Brokers), md.Topics
		seen := 0
		dirs.Each(func(d kadm.DescribedLogDir) {
			seen++
			d.Topics.Each(func(p kadm.DescribedLogDirPartition) {
				if p.IsFuture {
					return
				}
				if s.sizes[p.Topic] == nil {
					s.sizes[p.Topic] = map[int32]int64{}
				}
				s.sizes[p.Topic][p.Partition] = max(s.sizes[p.Topic][p.Partition], p.Size)
			})
		})
		// Before Kafka 3.2 a refusal is an empty answer without an error, and a broker
		// whose disks are empty may answer the same (kfake does): the rights decide.
		s.checked = derr == nil && (seen > 0 || c.mayDescribe(ctx, md))
		if !s.checked {
			if unchecked = derr; unchecked == nil {
				unchecked = errDisksUntold
			}
		}
		for _, t := range md.Topics.Sorted() {
			if !t.IsInternal && !internalTopics[t.Topic] {
				s.visible++
			}
			if !t.IsInternal && c.o.wants(t.Topic) && !errors.Is(t.Err, kerr.UnknownTopicOrPartition) {
				s.topics = append(s.topics, t)
			}
		}
		hidden = hidden[:0]
		for t := range s.sizes {
			if _, ok := md.Topics[t]; !ok && c.o.wants(t) {
				hidden = append(hidden, t)
			}
		}
		if hidden, err = c.existing(ctx, hidden); err != nil {
			return nil, nil, nil, err
		}
		if len(hidden) == 0 || try == 4 {
			sort.Strings(hidden)
			return s, hidden, unchecked, nil
		}
		if err := pause(ctx, 5); err != nil {
			return nil, nil, nil, err
		}
	}
}

// mayDescribe tells whether the principal has DESCRIBE on the cluster. Until
// metadata version 10 (Kafka 2.7) its answer says so, since then DescribeCluster
// does (KIP-700). Without access control every right is listed.
func (c *client) mayDescribe(ctx context.Context, md kadm.Metadata) bool {
	ops := md.AuthorizedOperations
	if len(ops) == 0 {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.IncludeClusterAuthorizedOperations = true
		resp, err := req.RequestWith(ctx, c.Client)
		if err != nil || resp.ErrorCode != 0 || resp.ClusterAuthorizedOperations < 0 { // not told
			return false
		}
		ops = kadm.DecodeACLOperations(resp.ClusterAuthorizedOperations)
	}
	return slices.Contains(ops, kadm.OpDescribe) || slices.Contains(ops, kadm.OpAll)
}

// existing leaves those of the topics out that are on disk but known to be
// deleted. It asks without kadm, which makes one topic's refusal an error of all.
func (c *client) existing(ctx context.Context, topics []string) ([]string, error) {
	if len(topics) == 0 {
		return nil, nil
	}
	req := kmsg.NewPtrMetadataRequest()
	for _, t := range topics {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = kmsg.StringPtr(t)
		req.Topics = append(req.Topics, rt)
	}
	resp, err := req.RequestWith(ctx, c.Client)
	if err != nil {
		return nil, fmt.Errorf("asking for topics by name: %w", c.explain(err))
	}
	deleted := map[string]bool{}
	for _, t := range resp.Topics {
		if t.Topic != nil && t.ErrorCode == kerr.UnknownTopicOrPartition.Code {
			deleted[*t.Topic] = true
		}
	}
	return slices.DeleteFunc(topics, func(t string) bool { return deleted[t] }), nil
}

// dropUnreadable takes topics that cannot be read out of the survey.
func (c *client) dropUnreadable(s *survey, f *stage.Findings) error {
	var denied []string
	var broken error
	s.topics = slices.DeleteFunc(s.topics, func(t kadm.TopicDetail) bool {
		// No list of rights at all means that the broker did not tell.
		ops := t.AuthorizedOperations
		if isDenied(t.Err) || len(ops) > 0 && !slices.Contains(ops, kadm.OpRead) && !slices.Contains(ops, kadm.OpAll) {
			denied = append(denied, t.Topic)
			return true
		}
		if t.Err != nil && broken == nil {
			broken = fmt.Errorf("eventbus: topic %s cannot be looked up: %w", t.Topic, t.Err)
		}
		return false
	})
	if broken != nil {
		return broken
	}
	return c.orWarn(f, denied, "no right to READ %d topics (%s): they would be missing")
}

// readConfigs reads the settings of the survey's topics.
func (c *client) readConfigs(ctx context.Context, s *survey, f *stage.Findings) error {
	var list []string
	for _, t := range s.topics {
		list = append(list, t.Topic)
	}
	configs, denied, err := c.topicConfigs(ctx, list)
	if err != nil {
		return err
	}
	s.configs = configs
	return c.orWarn(f, denied, "no right to DESCRIBE_CONFIGS of %d topics (%s): their settings would be missing")
}

// topicConfigs reads the settings of topics. Left out are those that are gone, and
// those that the principal may not ask for, which it names.
func (c *client) topicConfigs(ctx context.Context, list []string) (configs map[string]topicConfigs, denied []string, err error) {
	configs = map[string]topicConfigs{}
	if len(list) == 0 {
		return configs, nil, nil
	}
	// Asked for without kadm, which makes one topic's refusal an error of all.
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.IncludeSynonyms = true
	for _, t := range list {
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, t
		req.Resources = append(req.Resources, r)
	}
	resp, err := req.RequestWith(ctx, c.Client)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the topics' settings: %w", c.explain(err))
	}
	for _, r := range resp.Resources {
		rerr := kerr.ErrorForCode(r.ErrorCode)
		switch {
		case errors.Is(rerr, kerr.UnknownTopicOrPartition):
			continue // deleted just now; found out again when it is read
		case isDenied(rerr):
			denied = append(denied, r.ResourceName)
			continue
		case rerr != nil:
			return nil, nil, fmt.Errorf("reading the settings of topic %s: %w", r.ResourceName, c.explain(rerr))
		}
		configs[r.ResourceName] = readTopicConfigs(r.Configs)
	}
	sort.Strings(denied)
	return configs, denied, nil
}

func readTopicConfigs(list []kmsg.DescribeConfigsResponseResourceConfig) topicConfigs {
	tc := topicConfigs{own: map[string]*string{}, effective: map[string]string{}, defaults: map[string]string{}}
	for _, kv := range list {
		own := kv.Source == kmsg.ConfigSourceDynamicTopicConfig
		if own {
			tc.own[kv.Name] = kv.Value
		}
		if kv.Value != nil {
			tc.effective[kv.Name] = *kv.Value
			if !own {
				tc.defaults[kv.Name] = *kv.Value
			}
		}
		if !own {
			continue
		}
		for _, s := range kv.ConfigSynonyms { // the strongest first
			if s.Source != kmsg.ConfigSourceDynamicTopicConfig && s.Value != nil {
				tc.defaults[kv.Name] = inMillis(s.Name, *s.Value)
				break
			}
		}
	}
	return tc
}

// inMillis is a broker's setting in the unit that its topics have it in.
func inMillis(name, value string) string {
	unit := map[string]int64{"log.retention.minutes": 60_000, "log.retention.hours": 3_600_000}[name]
	if n, err := strconv.ParseInt(value, 10, 64); err == nil && unit > 0 && n > 0 {
		return strconv.FormatInt(n*unit, 10)
	}
	return value
}

// bytes is how much the survey's topics hold on disk, 0 if that is unknown.
func (s *survey) bytes() (n int64) {
	for _, t := range s.topics {
		for _, size := range s.sizes[t.Topic] {
			n += size
		}
	}
	return n
}

// checkNotBlind refuses a bus that looks empty to a principal who may just see nothing.
func (c *client) checkNotBlind(s *survey, groups int) error {
	if s.visible > 0 || groups > 0 || s.checked {
		return nil
	}
	return stage.Permanentf("eventbus: the user sees no topic and no group and may not ask what there is: this would be a complete backup of nothing; %s", needRights)
}
