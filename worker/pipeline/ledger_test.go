package pipeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// ledger watches dump directories and remembers every set that was committed there.
// From the moment that its manifest has its final name, nothing of it may go.
type ledger struct {
	t      *testing.T
	events *os.File
	ended  chan struct{}

	mu     sync.Mutex
	places map[int32]string // watch → directory, by a path that no fault takes away
	sets   map[string]entry // place/manifest
	broken []string
	again  bool // Redis was rolled back: a run that was over may be open again, and make a second set
}

// content is what the archive of a run holds, so that it can be told from any other's.
func content(runID string, size int) []byte {
	if size == 0 {
		size = 1000
	}
	return bytes.Repeat([]byte(runID+"\n"), size/(len(runID)+1)+1)[:size]
}

type entry struct {
	place string
	id    set.ID
	run   string
	at    time.Time
}

func newLedger(t *testing.T) *ledger {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	require.NoError(t, err)
	l := &ledger{t: t, events: os.NewFile(uintptr(fd), "inotify"), ended: make(chan struct{}), places: map[int32]string{}, sets: map[string]entry{}}
	go l.listen()
	t.Cleanup(func() { l.events.Close(); <-l.ended })
	return l
}

// watch begins to watch a directory.
func (l *ledger) watch(dir string) {
	l.t.Helper()
	c, err := l.events.SyscallConn()
	require.NoError(l.t, err)
	require.NoError(l.t, c.Control(func(fd uintptr) {
		var wd int
		wd, err = unix.InotifyAddWatch(int(fd), dir, unix.IN_MOVED_TO|unix.IN_CREATE|unix.IN_MOVED_FROM|unix.IN_DELETE|unix.IN_CLOSE_WRITE)
		l.mu.Lock()
		l.places[int32(wd)] = dir
		l.mu.Unlock()
	}))
	require.NoError(l.t, err)
}

func (l *ledger) listen() {
	defer close(l.ended)
	b := make([]byte, 64<<10)
	for {
		n, err := l.events.Read(b)
		if err != nil {
			return
		}
		for in := b[:n]; len(in) >= unix.SizeofInotifyEvent; {
			wd, mask, size := int32(le32(in[0:])), le32(in[4:]), le32(in[12:])
			name := string(bytes.TrimRight(in[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], "\x00"))
			in = in[unix.SizeofInotifyEvent+size:]
			l.event(wd, mask, name)
		}
	}
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func (l *ledger) event(wd int32, mask uint32, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id, ok := set.IDOfName(name)
	if !ok || strings.HasPrefix(name, ".") {
		return
	}
	place := l.places[wd]
	key := filepath.Join(place, string(id))
	_, known := l.sets[key]
	switch {
	case known && mask&(unix.IN_MOVED_FROM|unix.IN_DELETE) != 0:
		l.broken = append(l.broken, fmt.Sprintf("%s was taken away from the committed set", filepath.Join(place, name)))
	case known && mask&unix.IN_CLOSE_WRITE != 0 && (name == id.ManifestName() || name == id.MainName()):
		l.broken = append(l.broken, fmt.Sprintf("%s of a committed set was written", filepath.Join(place, name)))
	case !known && name == id.ManifestName() && mask&(unix.IN_MOVED_TO|unix.IN_CREATE) != 0:
		e := entry{place: place, id: id, at: time.Now()}
		if b, err := os.ReadFile(filepath.Join(place, name)); err == nil {
			var m set.Manifest
			if json.Unmarshal(b, &m) == nil {
				e.run = m.Run
			}
		}
		for _, o := range l.sets {
			if !l.again && e.run != "" && o.run == e.run {
				l.broken = append(l.broken, fmt.Sprintf("run %s committed two sets, %s and %s", e.run, o.id, id))
			}
		}
		l.sets[key] = e
	}
}

// of gives the set that a run committed.
func (l *ledger) of(runID string) (entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.sets {
		if e.run == runID {
			return e, true
		}
	}
	return entry{}, false
}

// check gives what is wrong with the sets of a place that can be reached now.
func (l *ledger) check(place string, size int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	bad := l.broken
	for _, e := range l.sets {
		if e.place == place {
			if err := e.stands(size); err != nil {
				bad = append(bad, fmt.Sprintf("the set %s of run %s, committed at %s: %v", e.id, e.run, e.at.Format(time.TimeOnly), err))
			}
		}
	}
	return bad
}

func (e entry) stands(size int) error {
	b, err := os.ReadFile(filepath.Join(e.place, e.id.ManifestName()))
	if err != nil {
		return err
	}
	var m set.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	if m.Run == "" || e.run != "" && m.Run != e.run {
		return fmt.Errorf("the manifest is of run %q", m.Run)
	}
	got, err := os.ReadFile(filepath.Join(e.place, e.id.MainName()))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, content(m.Run, size)) {
		return fmt.Errorf("the archive has another content (%d bytes)", len(got))
	}
	return nil
}

func (l *ledger) rolledBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.again = true
}
