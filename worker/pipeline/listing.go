package pipeline

import (
	"context"
	"fmt"
	"time"

	"catalog-backup/shared/set"
)

// listing lists the sets of a directory and does not wait for a disk that hangs, such as
// one that a manifest was linked to.
type listing struct {
	dir   string
	limit time.Duration
	turn  chan struct{} // one reads at a time, so that a disk that hangs holds one thread
}

func newListing(dir string) *listing {
	return &listing{dir: dir, limit: 20 * time.Second, turn: make(chan struct{}, 1)}
}

func (l *listing) read(ctx context.Context) (set.Listing, error) {
	ctx, stop := context.WithTimeout(ctx, l.limit)
	defer stop()
	type answer struct {
		sets set.Listing
		err  error
	}
	got := make(chan answer, 1)
	select {
	case l.turn <- struct{}{}:
		go func() {
			sets, err := set.List(l.dir)
			<-l.turn
			got <- answer{sets, err}
		}()
	case <-ctx.Done():
	}
	select {
	case a := <-got:
		return a.sets, a.err
	case <-ctx.Done():
		return set.Listing{}, fmt.Errorf("list the sets in %s: its disk, or one that a link there leads to, does not answer: %w", l.dir, context.Cause(ctx))
	}
}
