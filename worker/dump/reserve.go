package dump

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"

	"golang.org/x/sys/unix"
)

// lockName is the file whose flock orders the reservations. It is empty and stays:
// where it is missing, the directory is not the one in which a set was reserved.
const lockName = ".catalog-backup.lock"

const (
	reserveWait = time.Minute // how long Reserve waits for the lock
	reservePoll = 50 * time.Millisecond
	// readLimit bounds all reading of what is others' under the lock, for which all runs
	// of all instances wait: the disk that a manifest was linked to may hang.
	readLimit    = 20 * time.Second
	oneReadLimit = 5 * time.Second
)

// Reserve chooses the set id of a run and writes its intent, both under the dump
// lock: the first free minute from now on that is later than the instance's
// newest set. A run that has reserved before gets the same id again. The texts are
// warnings: what it could not read of others.
func (d *Directory) Reserve(ctx context.Context, runID, catalogVersion string, now time.Time) (Intent, []string, error) {
	for {
		lock, err := flockFile(ctx, filepath.Join(d.Dump, lockName), reserveWait)
		if err != nil {
			return Intent{}, nil, permanentIfFull(fmt.Errorf("lock the dump directory %s: %w", d.Dump, err))
		}
		in, err := d.ReadIntent(runID)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			lock.Close()
			return in, nil, err
		}
		in, unread, err := d.reserve(ctx, runID, catalogVersion, now)
		if err == nil && flockAgain(lock) != nil { // somebody removed the file: another may have reserved the same
			if err = d.removeIntent(runID); err == nil {
				err = errReplaced
			}
		}
		lock.Close()
		if !errors.Is(err, errReplaced) {
			return in, unread, err
		}
	}
}

// reserve writes the intent of a run that has none. The caller holds the dump lock.
func (d *Directory) reserve(ctx context.Context, runID, catalogVersion string, now time.Time) (Intent, []string, error) {
	reading, stop := context.WithTimeout(ctx, readLimit)
	defer stop()
	others, err := d.taken(reading, now)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return Intent{}, nil, err
	}
	at := now.UTC().Truncate(time.Minute)
	if !at.After(others.newest) {
		at = others.newest.Add(time.Minute)
	}
	id := set.NewID(at, catalogVersion)
	for others.ids[id] {
		at = at.Add(time.Minute)
		id = set.NewID(at, catalogVersion)
	}
	if _, err := set.ParseID(string(id)); err != nil {
		return Intent{}, nil, stage.Permanentf("reserve a set id in %s: %w: the newest set there is of %s, and a new one must be later; if the clock was wrong then, move that set to another directory", d.Dump, err, others.newest.Format(time.RFC3339))
	}
	in := Intent{Run: runID, Instance: d.Instance, Node: d.Node, Set: id, Created: now.UTC(), Names: id.Names(), Temp: d.Temp}
	return in, others.unread, d.writeIntent(in)
}

// reserved is what a new id may not be.
type reserved struct {
	ids    map[set.ID]bool // in use by a file, a part or an intent
	newest time.Time       // minute of the instance's newest set
	unread []string
}

// taken looks at all names in the dump directory. What cannot be read is told, and
// fails no other run: the names say enough, and the commit never replaces a file.
func (d *Directory) taken(ctx context.Context, now time.Time) (reserved, error) {
	out := reserved{ids: map[set.ID]bool{}}
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return out, fmt.Errorf("reserve a set id: %w", err)
	}
	for _, e := range slices.Backward(entries) { // the newest set first: it is the only one of ours that is read
		if id, ok := idOfPart(e.Name()); ok {
			out.ids[id] = true
		}
		if id, ok := set.IDOfName(e.Name()); ok {
			out.ids[id] = true
			if e.Name() == id.ManifestName() && id.Minute().After(out.newest) && d.mayBeOurs(ctx, e.Name(), id, now, &out) {
				out.newest = id.Minute()
			}
		}
		if r, ok := intentRun(e.Name()); ok {
			in, err := readWithin(ctx, d.oneRead, e.Name(), func() (Intent, error) { return d.ReadIntent(r) })
			switch {
			case err == nil:
				out.ids[in.Set] = true
			case !errors.Is(err, fs.ErrNotExist):
				out.unread = append(out.unread, err.Error())
			}
		}
	}
	return out, nil
}

// mayBeOurs tells whether a set is one of the instance's. One that cannot be read is,
// unless it is of a time to come.
func (d *Directory) mayBeOurs(ctx context.Context, name string, id set.ID, now time.Time, out *reserved) bool {
	m, err := readWithin(ctx, d.oneRead, name, func() (*set.Manifest, error) { return set.ReadHead(filepath.Join(d.Dump, name)) })
	switch {
	case m != nil:
		return m.Instance == d.Instance
	case errors.Is(err, fs.ErrNotExist):
		return false
	}
	out.unread = append(out.unread, err.Error())
	return !id.Minute().After(now)
}

// idOfPart tells the set of a part, .<final name>.<run>.<hold>.part.
func idOfPart(name string) (set.ID, bool) {
	f, ok := strings.CutSuffix(strings.TrimPrefix(name, "."), ".part")
	if !ok || !strings.HasPrefix(name, ".") {
		return "", false
	}
	for range 2 { // hold and run
		f = f[:max(0, strings.LastIndexByte(f, '.'))]
	}
	return set.IDOfName(f)
}

// readWithin does not wait for a disk that hangs.
func readWithin[T any](ctx context.Context, most time.Duration, name string, read func() (T, error)) (T, error) {
	type answer struct {
		what T
		err  error
	}
	ctx, stop := context.WithTimeout(ctx, cmp.Or(most, oneReadLimit))
	defer stop()
	got := make(chan answer, 1)
	go func() {
		what, err := read()
		got <- answer{what, err}
	}()
	select {
	case a := <-got:
		return a.what, a.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("read %s: its disk does not answer: %w", name, context.Cause(ctx))
	}
}

// flockFile takes an exclusive lock on the file at path, waiting for it at most that
// long. Closing gives it back.
func flockFile(ctx context.Context, path string, most time.Duration) (*os.File, error) {
	limit := time.NewTimer(most)
	defer limit.Stop()
	for {
		f, err := takeFlock(path, os.O_RDWR|os.O_CREATE)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, unix.ELOOP) {
			return nil, fmt.Errorf("%s is a symbolic link; remove the link, the file is made anew", path)
		}
		if !errors.Is(err, ErrHeld) && !errors.Is(err, errReplaced) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-limit.C:
			return nil, fmt.Errorf("another process has held %s for %s: a worker that is frozen, or whose host is gone (over NFS); `lslocks` or `fuser %s` on the hosts of the node name it; end it", path, most, path)
		case <-time.After(reservePoll):
		}
	}
}
