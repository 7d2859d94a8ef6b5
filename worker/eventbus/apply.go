package eventbus

import (
	"context"
	"errors"
	"fmt"
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
