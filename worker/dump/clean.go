package dump

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
)

// RunDir is the staging of a run below the temp directory.
func (d *Directory) RunDir(runID string) string { return filepath.Join(d.Temp, runID) }

// EndLeftovers ends the processes that dead attempts of the run left. The caller
// holds the lock.
func (d *Directory) EndLeftovers(ctx context.Context, runID string) error {
	if d.EndLeftover == nil {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(d.RunDir(runID), "*", "*.pid"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := d.EndLeftover(ctx, f); err != nil {
			return fmt.Errorf("end the processes that a dead attempt of run %s left: %w", runID, err)
		}
	}
	return nil
}

// Clean removes everything of a run but its set, and tells whether the set
// stands. forward lets it finish a commit that was cut short. The caller holds
// the lock, or has seen that the run has no staging. It may be repeated.
func (d *Directory) Clean(ctx context.Context, runID string, forward bool) (bool, error) {
	if err := d.EndLeftovers(ctx, runID); err != nil {
		return false, err
	}
	committed, err := d.Recover(ctx, runID, forward)
	if err != nil {
		return committed, err
	}
	if err := d.RemovePostgresStaging(runID, everyHold); err != nil {
		return committed, err
	}
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return committed, fmt.Errorf("clean up run %s: %w", runID, err)
	}
	for _, e := range entries {
		if set.IsPart(e.Name(), runID) || isFreshStaging(e.Name(), runID) || isHalfIntent(e.Name(), runID) {
			if err := os.RemoveAll(filepath.Join(d.Dump, e.Name())); err != nil {
				return committed, fmt.Errorf("clean up run %s: %w", runID, err)
			}
		}
	}
	if err := os.Remove(d.intentPath(runID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return committed, fmt.Errorf("clean up run %s: %w", runID, err)
	}
	if err := set.SyncDir(d.Dump); err != nil {
		return committed, fmt.Errorf("clean up run %s: %w", runID, err)
	}
	if err := removeOwned(d.RunDir(runID)); err != nil {
		return committed, fmt.Errorf("remove the staging of run %s: %w", runID, err)
	}
	return committed, nil
}

func isFreshStaging(name, runID string) bool {
	return strings.HasPrefix(name, "."+stagingName+"."+runID+".") && strings.HasSuffix(name, ".new")
}

// isHalfIntent tells an intent that a kill kept from getting its name (set.WriteFile).
func isHalfIntent(name, runID string) bool {
	return strings.HasPrefix(name, ".."+runID+intentSuffix+".") && strings.HasSuffix(name, ".new")
}

// Leftovers lists the runs of the instance that have anything on disk here.
func (d *Directory) Leftovers() ([]string, error) {
	found := map[string]bool{}
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return nil, fmt.Errorf("look for left-overs: %w", err)
	}
	for _, e := range entries {
		if r, ok := intentRun(e.Name()); ok {
			if in, err := d.ReadIntent(r); err == nil && in.Instance == d.Instance && in.Node == d.Node {
				found[r] = true
			}
		}
	}
	if o, err := readOwner(d.staging()); err == nil && o.Instance == d.Instance && o.Node == d.Node {
		found[o.Run] = true
	}
	if entries, err = os.ReadDir(d.Temp); err != nil {
		return nil, fmt.Errorf("look for left-overs: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !run.ValidID(e.Name()) {
			continue
		}
		if o, err := readOwner(d.RunDir(e.Name())); err == nil && o.Instance == d.Instance && o.Node == d.Node && o.Run == e.Name() {
			found[e.Name()] = true
		}
	}
	out := make([]string, 0, len(found))
	for r := range found {
		out = append(out, r)
	}
	return out, nil
}

// WriteResult keeps the outcome of a stage in its attempt's staging: from then on
// the work is done, whatever happens to the worker.
func WriteResult(attemptDir string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := set.WriteFile(filepath.Join(attemptDir, resultName), b); err != nil {
		return permanentIfFull(err)
	}
	return set.SyncDir(filepath.Dir(attemptDir))
}

const resultName = "result.json"

// ReadResult reads what WriteResult wrote.
func ReadResult(attemptDir string, v any) error {
	b, err := os.ReadFile(filepath.Join(attemptDir, resultName))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// everyHold is above those of all attempts.
var everyHold = run.Hold{Fence: math.MaxInt64}

// RemovePostgresStaging removes <dump>/pgbackrest if it is the run's, of the attempt
// with this hold or an earlier one.
func (d *Directory) RemovePostgresStaging(runID string, h run.Hold) error {
	if o, err := readOwner(d.staging()); err != nil || o.Run != runID {
		return nil
	}
	if err := removeOwned(d.staging()); err != nil {
		return fmt.Errorf("remove the Postgres staging of run %s: %w", runID, err)
	}
	return nil
}

// RemoveParts removes what the attempt with this hold, or earlier ones of the run,
// wrote for one final name.
func (d *Directory) RemoveParts(runID string, h run.Hold, final string) error {
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return fmt.Errorf("remove the parts of earlier attempts: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+final+"."+runID+".") && set.IsPart(e.Name(), runID) {
			if err := os.Remove(filepath.Join(d.Dump, e.Name())); err != nil {
				return fmt.Errorf("remove the parts of earlier attempts: %w", err)
			}
		}
	}
	return nil
}
