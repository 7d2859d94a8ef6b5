package eventbus

import (
	"context"
	"errors"
	"sort"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// acls reads all access rules. A bus without an authorizer has none; rules that
// may not be read are a warning.
func (c *client) acls(ctx context.Context, f *stage.Findings) []set.ACL {
	list := []set.ACL{}
	all := kadm.NewACLs().AnyResource().ResourcePatternType(kadm.ACLPatternAny).Allow().Deny().AllowHosts().DenyHosts().Operations(kadm.OpAny)
	rs, err := c.adm.DescribeACLs(ctx, all)
	for _, r := range rs {
		if r.Err != nil && err == nil {
			err = r.Err
		}
		for _, a := range r.Described {
			list = append(list, set.ACL{Principal: a.Principal, Host: a.Host, Type: a.Type.String(), Name: a.Name,
				Pattern: a.Pattern.String(), Operation: a.Operation.String(), Permission: a.Permission.String()})
		}
	}
	if err != nil && !errors.Is(err, kerr.SecurityDisabled) {
		f.Warn("eventbus: the access rules are not in the set (%v); grant the user DESCRIBE on Cluster", err)
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i], list[j]
		for _, p := range [][2]string{{a.Type, b.Type}, {a.Name, b.Name}, {a.Pattern, b.Pattern}, {a.Principal, b.Principal}, {a.Host, b.Host}, {a.Operation, b.Operation}} {
			if p[0] != p[1] {
				return p[0] < p[1]
			}
		}
		return a.Permission < b.Permission
	})
	return list
}
