package eventbus

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// checkGroups refuses groups of the set that have members on the target, since
// Kafka takes no positions for those, and groups that have positions there, which
// a load would mix with the set's. Positions in topics that the target no longer
// has count for nothing. It returns which of the groups the target knows.
func (c *client) checkGroups(ctx context.Context, groups []set.Group) (map[string]bool, error) {
	there, err := c.listGroups(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	var active, idle []string
	for _, g := range groups {
		t, ok := there[g.Name]
		if !ok || len(g.Offsets) == 0 {
			continue
		}
		known[g.Name] = true
		switch t.State {
		case "Empty", "Dead", "":
			idle = append(idle, g.Name)
		default:
			active = append(active, g.Name)
		}
	}
	if len(active) > 0 {
		return nil, stage.Permanentf("eventbus: %d consumer groups of the set are active on the target (%s); stop their consumers first", len(active), names(active))
	}
	placed, err := c.placed(ctx, idle)
	if err != nil {
		return nil, err
	}
	if len(placed) > 0 {
		return nil, stage.Permanentf("eventbus: %d consumer groups of the set have positions on the target already (%s); restore to a bus without them, or delete them there first", len(placed), names(placed))
	}
	return known, nil
}

// placed are those of the groups that have a position in a topic of the target.
func (c *client) placed(ctx context.Context, groups []string) ([]string, error) {
	if len(groups) == 0 {
		return nil, nil
	}
	md, err := c.metadata(ctx)
	if err != nil {
		return nil, err
	}
	var placed []string
	fetched := c.adm.FetchManyOffsets(ctx, groups...)
	for _, g := range groups {
		r, ok := fetched[g]
		switch {
		case !ok:
			r.Err = errNoAnswer
		case errors.Is(r.Err, kerr.GroupIDNotFound):
			continue
		}
		if r.Err != nil {
			return nil, fmt.Errorf("looking for positions of group %q on the target: %w", g, c.explain(r.Err))
		}
		for _, o := range r.Fetched.Offsets().Sorted() {
			if _, there := md.Topics[o.Topic]; there && o.At >= 0 {
				placed = append(placed, g)
				break
			}
		}
	}
	return placed, nil
}
