package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"catalog-backup/shared/set"
)

// pushWAL puts every segment from start to stop into the repository, checks that each is
// there, and reads what their records tell.
func (b *backup) pushWAL(ctx context.Context, part *set.Postgres) (*walHistory, error) {
	names, err := segmentNames(part.StartWAL, part.StopWAL, part.WALSegmentSize)
	if err != nil {
		return nil, fmt.Errorf("list the WAL of backup %s: %w", part.Label, err)
	}
	if err := b.pushSegments(ctx, names); err != nil {
		return nil, err
	}
	return b.checkWAL(ctx, part, names)
}

func (b *backup) pushSegments(ctx context.Context, names []string) error {
	jobs := make(chan string)
	fail := make(chan error, len(names))
	pushing, stop := context.WithCancel(ctx)
	defer stop()
	var workers sync.WaitGroup
	for range min(b.o.processes(), len(names)) {
		workers.Go(func() {
			for name := range jobs {
				if err := b.pushSegment(pushing, name); err != nil {
					fail <- err
					stop()
				}
			}
		})
	}
	for _, name := range names {
		if pushing.Err() != nil {
			break
		}
		jobs <- name
	}
	close(jobs)
	workers.Wait()
	select {
	case err := <-fail:
		if stop := ended(ctx, "push WAL"); stop != nil {
			return stop
		}
		return err
	default:
	}
	return ended(ctx, "push WAL")
}

func (b *backup) pushSegment(ctx context.Context, name string) error {
	wal := "pg_wal"
	path := filepath.Join(b.f.DataDirectory, wal, name)
	_, err := os.Stat(path)
	if err == nil {
		_, err = b.pgbackrest(ctx, "archive-push", "archive-push", path)
	}
	if err == nil {
		return nil
	}
	if _, gone := os.Stat(path); errors.Is(gone, os.ErrNotExist) {
		// The slot knows why: thrown away for its size, or the slot itself is gone.
		if why := b.wal.gone(ctx, name); why != nil {
			return why
		}
	}
	return fmt.Errorf("push WAL segment %s: %w", name, err)
}

// gone says why a segment that the slot should hold is not there.
func (s *slot) gone(ctx context.Context, name string) error {
	var unlimited bool
	err := s.watcher.QueryRow(ctx, "select setting::bigint < 0 from pg_settings where name = 'max_slot_wal_keep_size'").Scan(&unlimited)
	if err == nil && !unlimited {
		return s.limitReached(ctx)
	}
	return fmt.Errorf("push WAL segment %s: it is no longer in pg_wal although a slot held it: was it removed by hand?", name)
}

// checkWAL makes sure that the repository holds each segment once, and describes them.
func (b *backup) checkWAL(ctx context.Context, part *set.Postgres, names []string) (*walHistory, error) {
	fail := func(err error) (*walHistory, error) {
		return nil, fmt.Errorf("check the WAL of backup %s: %w", part.Label, err)
	}
	found, err := repoSegments(b.w.RepoDir(), part)
	if err != nil {
		return nil, err
	}
	scan, err := newWALScan(part)
	if err != nil {
		return fail(err)
	}
	defer scan.close()
	for _, name := range names {
		if stop := ended(ctx, "check the WAL"); stop != nil {
			return nil, stop
		}
		if found[name] == "" {
			return fail(fmt.Errorf("segment %s is not in the repository although pgBackRest took it", name))
		}
		file, err := describeWAL(b.w.RepoDir(), name, found[name], scan)
		if err != nil {
			return fail(err)
		}
		part.WAL = append(part.WAL, file)
	}
	scan.history.finish()
	part.WALResourceManagers = scan.history.customManagers()
	return scan.history, nil
}

// describeWAL takes size and checksum of a stored segment, and its records into scan.
func describeWAL(repo, name, path string, scan *walScan) (set.WALFile, error) {
	rel, err := filepath.Rel(repo, path)
	if err != nil {
		return set.WALFile{}, err
	}
	file, err := os.Open(path)
	if err != nil {
		return set.WALFile{}, err
	}
	defer file.Close()
	sum := sha256.New()
	stored := &source{r: file}
	if err := scan.segment(name, io.TeeReader(stored, sum)); err != nil {
		return set.WALFile{}, fmt.Errorf("read %s: %w", path, err)
	}
	// What the decompressor left unread counts for the stored bytes.
	if _, err := io.Copy(sum, stored); err != nil {
		return set.WALFile{}, fmt.Errorf("read %s: %w", path, err)
	}
	return set.WALFile{Name: name, Path: filepath.ToSlash(rel), Size: stored.n, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// repoSegments finds the WAL segments in a repository: path by name.
func repoSegments(repo string, part *set.Postgres) (map[string]string, error) {
	ext, err := extension(part.CompressType)
	if err != nil {
		return nil, fmt.Errorf("list the WAL in %s: %w", repo, err)
	}
	root := filepath.Join(repo, "archive", Stanza)
	paths, err := filepath.Glob(filepath.Join(globQuote(root), "*", "????????????????", "*"+ext))
	if err != nil {
		return nil, fmt.Errorf("list the WAL in %s: %w", repo, err)
	}
	found := map[string]string{}
	for _, path := range paths {
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return nil, err
		}
		name, _, ok := splitWALName(filepath.ToSlash(rel), ext)
		if !ok {
			continue
		}
		if other := found[name]; other != "" {
			return nil, fmt.Errorf("list the WAL in %s: segment %s is there twice", repo, name)
		}
		found[name] = path
	}
	return found, nil
}

// globQuote makes a path literal in a pattern.
func globQuote(path string) string {
	var out []rune
	for _, r := range path {
		if r == '*' || r == '?' || r == '[' || r == '\\' {
			out = append(out, '\\')
		}
		out = append(out, r)
	}
	return string(out)
}

func sortTablespaces(list []set.Tablespace) {
	sort.Slice(list, func(i, j int) bool { return list[i].OID < list[j].OID })
}
