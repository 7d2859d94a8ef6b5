package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/dump"
)

// end is what an attempt leaves in its staging when it cannot reach Redis.
type end struct {
	Kind  run.Outcome `json:"kind"`
	Error string      `json:"error"`
}

const endName = "end.json"

// left is what an attempt left of its end: its work is done, or it says how it ended,
// or neither, since its worker died.
type left struct {
	done bool
	end  *end
}

// readLeft is the one reading of an attempt's staging. Only a file that is not there
// counts as none: what cannot be read may say that hours of work are done.
func readLeft(dir string) (left, error) {
	var result any // any JSON, null too
	err := dump.ReadResult(dir, &result)
	if err == nil {
		return left{done: true}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return left{}, fmt.Errorf("read how an earlier attempt ended: %w", err)
	}
	b, err := set.ReadNote(filepath.Join(dir, endName), set.MaxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return left{}, nil
	}
	var v end
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		return left{}, fmt.Errorf("read how an earlier attempt ended: %w", err)
	}
	return left{end: &v}, nil
}

func (e *Engine) leaveEnd(r run.Record, err error) {
	kind := run.Erred
	if errors.Is(err, errStopping) || errors.Is(err, errRedisAway) {
		kind = run.Interrupted
	}
	dir := e.attemptDir(r.ID, r.Stage, r.Hold())
	b, err := json.Marshal(end{Kind: kind, Error: e.text(err)})
	if err != nil {
		return
	}
	_, _ = soon(context.Background(), e.diskLimit(), func() (struct{}, error) {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return struct{}{}, err
		}
		return struct{}{}, set.WriteFile(filepath.Join(dir, endName), b)
	})
}

// endLeftovers ends the tools of earlier attempts, until ctx ends: those that it finds
// later may be of an attempt that is at work.
func (e *Engine) endLeftovers(ctx context.Context, id string) error {
	d := *e.p.Dir
	if end := d.EndLeftover; end != nil {
		d.EndLeftover = func(ctx context.Context, note string) error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return end(ctx, note)
		}
	}
	return d.EndLeftovers(ctx, id)
}

// finished finds the result of an earlier attempt at the stage, "" if there is none,
// and removes what the others left. The caller holds the run's lock until ctx ends.
func (e *Engine) finished(ctx context.Context, r run.Record) (string, error) {
	entries, err := os.ReadDir(e.p.Dir.RunDir(r.ID))
	if err != nil {
		return "", fmt.Errorf("look for what earlier attempts left: %w", err)
	}
	sort.Slice(entries, func(i, j int) bool { return fenceOf(entries[i].Name()) > fenceOf(entries[j].Name()) })
	for _, d := range entries {
		name, _, ok := strings.Cut(d.Name(), ".")
		if !ok || name != r.Stage || fenceOf(d.Name()) >= r.Fence {
			continue
		}
		path := filepath.Join(e.p.Dir.RunDir(r.ID), d.Name())
		was, err := readLeft(path)
		if err != nil {
			return "", err
		}
		if was.done {
			return d.Name(), nil
		}
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		e.removeQuietly(path)
	}
	return "", nil
}

func fenceOf(name string) int64 {
	_, f, _ := strings.Cut(name, ".")
	h, ok := run.ParseHold(f)
	if !ok {
		return -1
	}
	return h.Fence
}

// crashed ends an attempt whose worker is gone, by what it left. The caller holds the
// run's lock.
func (e *Engine) crashed(ctx context.Context, r run.Record) error {
	dir := e.attemptDir(r.ID, r.Stage, r.Hold())
	was, err := soon(ctx, e.diskLimit(), func() (left, error) { return readLeft(dir) })
	switch {
	case err != nil:
		return e.again(ctx, r, e.erred(r, hung(err, e.p.Dir.Temp)))
	case was.done && r.Stage != run.Cleanup:
		e.p.Log.WithField("run", r.ID).WithField("stage", r.Stage).Info("the attempt had finished its work; going on from it")
		return e.tell(ctx, r, filepath.Base(dir), nil)
	case was.end == nil:
		return e.again(ctx, r, run.Retry{Kind: run.Crashed, Error: "the worker died in this attempt", Budget: e.p.Limits.Crashes})
	case was.end.Kind == run.Interrupted:
		return e.again(ctx, r, run.Retry{Kind: run.Interrupted, Error: was.end.Error, Budget: e.p.Limits.Interruptions})
	}
	return e.again(ctx, r, e.erred(r, errors.New(was.end.Error)))
}

// removeQuietly clears an attempt's own staging; what stays is left to the cleanup.
func (e *Engine) removeQuietly(dir string) {
	_, err := soon(context.Background(), e.diskLimit(), func() (struct{}, error) { return struct{}{}, os.RemoveAll(dir) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.p.Log.WithError(hung(err, dir)).Warn("could not remove the staging of an attempt; the cleanup will")
	}
}
