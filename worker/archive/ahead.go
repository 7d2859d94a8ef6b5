package archive

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"
)

// item is a node on its way from the walk to the archive.
type item struct {
	node
	small *smallFile    // for a file that is read ahead; valid when ready is closed
	buf   []byte        // its content's room
	ready chan struct{} // nil: not read ahead
}

func (it *item) release() {
	it.at.release()
	it.self.release()
}

const (
	// aheadItems bounds how far the walk runs ahead, aheadFiles how many small files
	// (of at most smallEntry bytes) lie in memory: 8 MiB.
	aheadItems = 256
	aheadFiles = 128
)

// readAhead walks and reads small files in other goroutines and hands all nodes to
// use in the walk's order. Opening and reading 100,000 small files one by one is what
// takes the time; in parallel it hides behind the compression.
func readAhead(ctx context.Context, readers int, walk func(ctx context.Context, emit func(*node) error) error, use func(*item) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	items := make(chan *item, aheadItems)
	jobs := make(chan *item, readers)
	bufs := make(chan []byte, aheadFiles)
	for range aheadFiles {
		bufs <- nil
	}
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for it := range jobs {
				if it.buf == nil {
					it.buf = make([]byte, smallEntry)
				}
				it.small = readSmall(&it.node, it.buf)
				close(it.ready)
			}
		})
	}
	var walked error
	wg.Go(func() {
		defer close(items)
		defer close(jobs)
		a := &aheadWalk{ctx: ctx, items: items, jobs: jobs, bufs: bufs, linked: map[inode]bool{}}
		walked = walk(ctx, a.emit)
	})
	var failed error
	for it := range items {
		if it.ready != nil {
			<-it.ready
		}
		if failed == nil {
			if failed = use(it); failed != nil {
				stop()
			}
		}
		it.release()
		if it.ready != nil {
			bufs <- it.buf
		}
	}
	wg.Wait()
	if failed == nil {
		failed = walked
	}
	return failed
}

type aheadWalk struct {
	ctx    context.Context
	items  chan<- *item
	jobs   chan<- *item
	bufs   <-chan []byte
	linked map[inode]bool // hard links seen: their second names need no reading
}

func (a *aheadWalk) emit(n *node) error {
	it := &item{node: *n}
	if n.err == nil && n.is(unix.S_IFREG) && n.st.Size <= smallEntry && !a.second(n) {
		select {
		case it.buf = <-a.bufs:
		case <-a.ctx.Done():
			return context.Cause(a.ctx)
		}
		it.ready = make(chan struct{})
	}
	if it.at != nil {
		it.at.hold()
	}
	if it.self != nil {
		it.self.hold()
	}
	if it.ready != nil {
		a.jobs <- it // the readers never stop before the walk does
	}
	select {
	case a.items <- it:
		return nil
	case <-a.ctx.Done():
		if it.ready != nil {
			<-it.ready
		}
		it.release()
		return context.Cause(a.ctx)
	}
}

func (a *aheadWalk) second(n *node) bool {
	if n.st.Nlink < 2 {
		return false
	}
	id := inodeOf(&n.st)
	seen := a.linked[id]
	a.linked[id] = true
	return seen
}
