package set

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Ranges are offset ranges, rising and apart from each other. A transactional
// partition has one for every commit marker, so JSON holds them short: one
// string of "skip+length" pairs, skip counted from the end of the range before.
// "100+1 49+2" is [100,101) and [150,152).
type Ranges []Range

// Add appends [from, to), joining it to the last range where they touch.
func (r *Ranges) Add(from, to int64) {
	if n := len(*r); n > 0 && (*r)[n-1].To == from {
		(*r)[n-1].To = to
		return
	}
	*r = append(*r, Range{from, to})
}

// MarshalJSON writes the short form.
func (r Ranges) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 2+8*len(r))
	b = append(b, '"')
	var at int64
	for i, x := range r {
		if x.From < at || x.To <= x.From {
			return nil, fmt.Errorf("offset range %d..%d is out of order", x.From, x.To)
		}
		if i > 0 {
			b = append(b, ' ')
		}
		b = strconv.AppendInt(b, x.From-at, 10)
		b = append(b, '+')
		b = strconv.AppendInt(b, x.To-x.From, 10)
		at = x.To
	}
	return append(b, '"'), nil
}

// UnmarshalJSON reads the short form and refuses what MarshalJSON would not write.
func (r *Ranges) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*r = nil
	var at int64
	for _, f := range strings.Fields(s) {
		skip, length, ok := strings.Cut(f, "+")
		n, err := strconv.ParseInt(skip, 10, 64)
		m, err2 := strconv.ParseInt(length, 10, 64)
		if !ok || err != nil || err2 != nil || n < 0 || m < 1 || n > math.MaxInt64-at || m > math.MaxInt64-at-n {
			return fmt.Errorf("offset range %q is not skip+length", f)
		}
		*r = append(*r, Range{at + n, at + n + m})
		at += n + m
	}
	return nil
}
