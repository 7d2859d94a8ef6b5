package eventbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// made is what a load may have brought into the target, and what is deleted
// again where it fails.
type made struct {
	topics []string
	groups []string // those that the target did not know before
	rules  []kmsg.CreateACLsRequestCreation
}

// topic notes a topic once.
func (m *made) topic(name string) {
	if !slices.Contains(m.topics, name) {
		m.topics = append(m.topics, name)
	}
}

// undoLimit is how long a failed load may take to delete what it made, if the
// budget is not less.
const undoLimit = 30 * time.Second

// undo deletes what this load made, also when ctx has ended, and adds to the
// cause what became of it.
func (l *loader) undo(ctx context.Context, cause error) error {
	if len(l.made.topics) == 0 {
		return cause
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(undoLimit, l.o.Budget))
	defer cancel()
	var left []string
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"the access rules that the manifest lists", l.deleteRules},
		{"the groups " + names(l.made.groups), l.deleteGroups},
		{"the topics " + names(l.made.topics), l.deleteTopics},
	} {
		if err := step.do(ctx); err != nil {
			left = append(left, fmt.Sprintf("%s (%v)", step.what, err))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%w; what the load had made could not be deleted again: delete by hand %s", cause, strings.Join(left, ", "))
	}
	return fmt.Errorf("%w; what the load had made on the target is deleted again", cause)
}

// deleteTopics deletes until the brokers' metadata has none of the topics: they
// answer earlier, and a rerun would be refused.
func (l *loader) deleteTopics(ctx context.Context) error {
	for try := 1; ; try++ {
		rs, err := l.adm.DeleteTopics(ctx, l.made.topics...)
		final := false
		for _, r := range rs {
			if r.Err != nil && !isUnknownTopic(r.Err) {
				err = r.Err
				final = final || !kerr.IsRetriable(r.Err)
			}
		}
		if final {
			return err
		}
		if err == nil {
			md, merr := l.metadata(ctx, l.made.topics...)
			err = merr
			for _, t := range md.Topics {
				if err == nil && !isUnknownTopic(t.Err) {
					err = fmt.Errorf("topic %s is still there", t.Topic)
				}
			}
		}
		if err == nil {
			return nil
		}
		if pause(ctx, try) != nil {
			return err
		}
	}
}

func (l *loader) deleteGroups(ctx context.Context) error {
	if len(l.made.groups) == 0 {
		return nil
	}
	rs, err := l.adm.DeleteGroups(ctx, l.made.groups...)
	for _, r := range rs {
		if r.Err != nil && !errors.Is(r.Err, kerr.GroupIDNotFound) {
			err = fmt.Errorf("group %q: %w", r.Group, r.Err)
		}
	}
	return err
}

func (l *loader) deleteRules(ctx context.Context) error {
	if len(l.made.rules) == 0 {
		return nil
	}
	req := kmsg.NewPtrDeleteACLsRequest()
	for _, c := range l.made.rules {
		f := kmsg.NewDeleteACLsRequestFilter()
		f.ResourceType, f.ResourceName, f.ResourcePatternType = c.ResourceType, kmsg.StringPtr(c.ResourceName), c.ResourcePatternType
		f.Principal, f.Host, f.Operation, f.PermissionType = kmsg.StringPtr(c.Principal), kmsg.StringPtr(c.Host), c.Operation, c.PermissionType
		req.Filters = append(req.Filters, f)
	}
	resp, err := req.RequestWith(ctx, l.Client)
	if err != nil {
		return err
	}
	for _, r := range resp.Results {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil && !errors.Is(err, kerr.SecurityDisabled) {
			return err
		}
	}
	return nil
}
