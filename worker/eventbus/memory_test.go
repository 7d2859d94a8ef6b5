package eventbus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// store is a sink and a source in memory, with a hook before each segment.
type store struct {
	mu      sync.Mutex
	order   []string
	content map[string][]byte
	hook    func(entry string)
}

func newStore() *store { return &store{content: map[string][]byte{}} }

func (s *store) Segment(_ context.Context, entry string, content []byte, _ bool) error {
	if s.hook != nil {
		s.hook(entry)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.content[entry]; ok {
		return fmt.Errorf("%s came twice", entry)
	}
	s.order = append(s.order, entry)
	s.content[entry] = bytes.Clone(content)
	return nil
}

func (s *store) Open(entry string) (io.ReadCloser, error) {
	b, ok := s.content[entry]
	if !ok {
		return nil, fmt.Errorf("%s is not there", entry)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// verify gives the damage that the Verifier finds.
func (s *store) verify(t testing.TB, e *set.EventBus) []set.Damage {
	t.Helper()
	var found []set.Damage
	v := NewVerifier(e, func(d set.Damage) { found = append(found, d) })
	for _, entry := range s.order {
		if b, ok := s.content[entry]; ok {
			require.NoError(t, v.Entry(entry, int64(len(b)), bytes.NewReader(b)))
		}
	}
	require.NoError(t, v.Finish())
	return found
}

// dumpAll reads positions and dumps into a new store; the manifest goes through JSON.
func dumpAll(t testing.TB, o Options) (*set.EventBus, *store, stage.Findings) {
	t.Helper()
	s := newStore()
	e, f, err := dumpInto(o, s)
	require.NoError(t, err)
	return e, s, f
}

func dumpInto(o Options, s *store) (*set.EventBus, stage.Findings, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	pos, _, err := ReadPositions(ctx, o)
	if err != nil {
		return nil, stage.Findings{}, err
	}
	b, err := json.Marshal(pos)
	if err != nil {
		return nil, stage.Findings{}, err
	}
	pos = new(Positions)
	if err := json.Unmarshal(b, pos); err != nil {
		return nil, stage.Findings{}, err
	}
	e, f, err := Dump(ctx, o, pos, s, stage.NoProgress{})
	if err != nil {
		return nil, f, err
	}
	e, err = clone(e)
	return e, f, err
}

// clone is what a manifest on disk makes of e.
func clone(e *set.EventBus) (*set.EventBus, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	out := new(set.EventBus)
	return out, json.Unmarshal(b, out)
}

// killing is a store that does something at the n-th segment opened.
type killing struct {
	*store
	at, n int
	kill  func()
}

func (k *killing) Open(entry string) (io.ReadCloser, error) {
	if k.n++; k.n == k.at {
		k.kill()
	}
	return k.store.Open(entry)
}

// How long and how often tests look for what a broker takes time to do.
const (
	eventually = 20 * time.Second
	tick       = 50 * time.Millisecond
)
