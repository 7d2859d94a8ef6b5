package archive

import (
	"encoding/base64"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"unicode/utf8"

	"catalog-backup/shared/set"
)

// file makes the record of a node.
func (a *adder) file(n *node, kind, what string) set.File {
	f := set.File{Kind: kind, ModTime: modTime(&n.st).UTC(), Mode: fmt.Sprintf("%04o", n.st.Mode&07777),
		UID: int(n.st.Uid), GID: int(n.st.Gid), Changed: what}
	f.Path, f.PathBytes = text(n.path)
	return f
}

// text gives a name as UTF-8 and, where that loses something, its bytes in base64.
func text(s string) (string, string) {
	if utf8.ValidString(s) {
		return s, ""
	}
	return strings.ToValidUTF8(s, "\uFFFD"), base64.StdEncoding.EncodeToString([]byte(s))
}

// owners are the names of users and groups, looked up once each.
type owners struct{ users, groups map[uint32]string }

func (o owners) user(id uint32) string {
	name, ok := o.users[id]
	if !ok {
		if u, err := user.LookupId(strconv.Itoa(int(id))); err == nil {
			name = u.Username
		}
		o.users[id] = name
	}
	return name
}

func (o owners) group(id uint32) string {
	name, ok := o.groups[id]
	if !ok {
		if g, err := user.LookupGroupId(strconv.Itoa(int(id))); err == nil {
			name = g.Name
		}
		o.groups[id] = name
	}
	return name
}
