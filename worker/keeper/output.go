package keeper

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"reflect"
	"sync"
)

// outputLimit bounds what Output keeps, in bytes.
const outputLimit = 64 << 20

// Output runs c and returns what it wrote to stdout, at most 64 MiB.
func Output(ctx context.Context, c Command) ([]byte, error) {
	out := &limited{}
	if c.Stdout != nil {
		return nil, fmt.Errorf("%s: Output takes the Stdout that the command already has", c.Path)
	}
	c.Stdout = out
	err := Run(ctx, c)
	return out.Bytes(), err
}

type limited struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *limited) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len()+len(b) > outputLimit {
		return 0, fmt.Errorf("more than %d bytes of output", outputLimit)
	}
	return l.b.Write(b)
}

func (l *limited) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// same tells whether a and b are one writer.
func same(a, b io.Writer) bool {
	return a != nil && b != nil && reflect.TypeOf(a).Comparable() && a == b
}

// locked lets stdout and stderr share a writer.
type locked struct {
	mu sync.Mutex
	to io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(b)
}
