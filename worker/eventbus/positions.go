package eventbus

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// Positions are the consumer groups with what they have committed, read before
// Postgres stops: a restored consumer reads some events again and skips none.
// It can be stored as JSON between the stages.
type Positions struct {
	At     time.Time         `json:"at"`
	Groups []set.Group       `json:"groups"`
	Topics map[string]string `json:"topics"` // ids by name: a topic made anew since is another one
}

// ReadPositions reads all groups' committed offsets and their metadata.
func ReadPositions(ctx context.Context, o Options) (*Positions, stage.Findings, error) {
	c, err := connect(ctx, o, probePatience)
	if err != nil {
		return nil, stage.Findings{}, err
	}
	defer c.Close()
	s, _, _, err := c.list(ctx) // what is hidden or unreadable is for Probe and Dump to say
	if err != nil {
		return nil, stage.Findings{}, err
	}
	p, f, err := c.positions(ctx, s)
	if err != nil {
		return nil, f, err
	}
	return p, f, c.checkNotBlind(s, len(p.Groups))
}

// positions reads the groups; s tells the topics' ids.
func (c *client) positions(ctx context.Context, s *survey) (*Positions, stage.Findings, error) {
	var f stage.Findings
	p := &Positions{At: c.o.Now().UTC(), Groups: []set.Group{}, Topics: map[string]string{}}
	for _, t := range s.topics {
		p.Topics[t.Topic] = t.ID.String()
	}
	groups, err := c.listGroups(ctx)
	if err != nil {
		return nil, f, err
	}
	fetched := c.adm.FetchManyOffsets(ctx, groups.Groups()...)
	var denied []string
	for _, g := range groups.Sorted() {
		r, ok := fetched[g.Group]
		switch {
		case g.ProtocolType == "share":
			f.Note("eventbus: group %q is a share group; what it has acknowledged is not covered", g.Group)
			continue
		case !ok:
			return nil, f, fmt.Errorf("eventbus: reading the positions of group %q: %w", g.Group, errNoAnswer)
		case errors.Is(r.Err, kerr.GroupIDNotFound):
			continue // ended meanwhile
		case isDenied(r.Err):
			denied = append(denied, g.Group)
			continue
		case r.Err != nil:
			return nil, f, fmt.Errorf("reading the positions of group %q: %w", g.Group, c.explain(r.Err))
		}
		group := set.Group{Name: g.Group, State: g.State, Protocol: g.ProtocolType, Offsets: []set.GroupOffset{}}
		for _, byPartition := range r.Fetched {
			for _, at := range byPartition {
				if at.Err != nil {
					return nil, f, fmt.Errorf("reading the position of group %q in %s/%d: %w", g.Group, at.Topic, at.Partition, c.explain(at.Err))
				}
				if at.At >= 0 && at.Topic != "" {
					group.Offsets = append(group.Offsets, set.GroupOffset{Topic: at.Topic, Partition: at.Partition, Offset: at.At, Metadata: at.Metadata})
				}
			}
		}
		sort.Slice(group.Offsets, func(i, j int) bool {
			a, b := group.Offsets[i], group.Offsets[j]
			return a.Topic < b.Topic || a.Topic == b.Topic && a.Partition < b.Partition
		})
		p.Groups = append(p.Groups, group)
	}
	if len(denied) > 0 {
		what := fmt.Sprintf("eventbus: no right to DESCRIBE %d groups (%s): their positions would be missing", len(denied), names(denied))
		if !c.o.AllowGaps {
			return nil, f, stage.Permanentf("%s; %s, or set eventbus.allow_gaps", what, needRights)
		}
		f.Warnings = append(f.Warnings, what)
	}
	if len(groups) == 0 && !s.checked {
		f.Warn("eventbus: no consumer group is visible; if the bus has consumers, grant the user DESCRIBE on Group *")
	}
	return p, f, nil
}

// listGroups lists the groups, again and again for some seconds while a
// coordinator is still loading them.
func (c *client) listGroups(ctx context.Context) (kadm.ListedGroups, error) {
	for try := 1; ; try++ {
		groups, err := c.adm.ListGroups(ctx)
		if err == nil {
			return groups, nil
		}
		loading := errors.Is(err, kerr.CoordinatorLoadInProgress) || errors.Is(err, kerr.CoordinatorNotAvailable)
		if !loading || try == 20 {
			return nil, fmt.Errorf("listing the consumer groups: %w", c.explain(err))
		}
		if err := pause(ctx, try); err != nil {
			return nil, err
		}
	}
}
