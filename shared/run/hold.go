package run

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
)

// Hold is an attempt's right to act on its run. The fence grows with every attempt;
// the token is random, since a Redis that went back (a failover that lost writes)
// gives the same fence a second time.
type Hold struct {
	Fence int64
	Token string // empty: claimed by a worker of an earlier version, which knew none
}

// NewToken makes a token: eight characters of a-z and 2-7.
func NewToken() string {
	b := make([]byte, 5)
	_, _ = rand.Read(b)
	return base32(b)
}

// String is the hold as paths have it: "7-k3q9zr4a", or "7" without a token.
func (h Hold) String() string {
	if h.Token == "" {
		return strconv.FormatInt(h.Fence, 10)
	}
	return fmt.Sprintf("%d-%s", h.Fence, h.Token)
}

// ParseHold reads what String wrote. What is after the fence is of any version.
func ParseHold(s string) (Hold, bool) {
	fence, token, _ := strings.Cut(s, "-")
	n, err := strconv.ParseInt(fence, 10, 64)
	return Hold{Fence: n, Token: token}, err == nil && n >= 0
}
