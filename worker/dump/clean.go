package dump

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
)

// RunDir is the staging of a run below the temp directory.
func (d *Directory) RunDir(runID string) string { return filepath.Join(d.Temp, runID) }

// EndLeftovers ends the processes that attempts of the run left on this host. The
// caller holds the lock, or knows that the run is over: then none of them has anything
// to do any more, also one whose worker is frozen and holds the lock.
func (d *Directory) EndLeftovers(ctx context.Context, runID string) error {
	if d.EndLeftover == nil {
		return nil
	}
	notes, err := pidFiles(d.RunDir(runID))
	for _, f := range notes {
		if err == nil {
			err = d.EndLeftover(ctx, f)
		}
	}
	if err != nil {
		return fmt.Errorf("end the processes that an attempt of run %s left: %w", runID, err)
	}
	return nil
}

// pidFiles are the notes of processes in all attempts' directories. One that cannot be
// read is an error: the processes that it hides would write into what is removed.
func pidFiles(runDir string) ([]string, error) {
	var out []string
	attempts, err := os.ReadDir(runDir)
	if err != nil {
		return nil, ignoring(err, fs.ErrNotExist)
	}
	for _, a := range attempts {
		if !a.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(runDir, a.Name()))
		if ignoring(err, fs.ErrNotExist) != nil {
			return nil, err
		}
		for _, f := range files {
			if filepath.Ext(f.Name()) == ".pid" {
				out = append(out, filepath.Join(runDir, a.Name(), f.Name()))
			}
		}
	}
	return out, nil
}

// Clean removes everything of a run but its set, and tells whether the set
// stands. forward lets it finish a commit that was cut short. The caller holds
// the lock, or has seen that the run has no staging. It may be repeated.
//
// Until it is known what the run has committed, nothing is removed. Then nothing is
// written: a full disk gets its room back. What cannot be removed does not keep the
// rest, but the intent, which goes last but for what seals its commit.
func (d *Directory) Clean(ctx context.Context, runID string, forward bool) (bool, error) {
	stands, err := d.clean(ctx, runID, forward)
	if err != nil {
		return stands, fmt.Errorf("clean up run %s: %w", runID, err)
	}
	return stands, nil
}

func (d *Directory) clean(ctx context.Context, runID string, forward bool) (bool, error) {
	before, away := d.before(ctx, runID)
	if errors.Is(away, ErrHeld) { // an attempt lives there
		return false, away
	}
	defer before.release()
	if err := errors.Join(d.EndLeftovers(ctx, runID), before.endLeftovers(ctx, runID)); err != nil {
		return false, err
	}
	in, stands, err := d.finish(runID, forward)
	if err != nil && !errors.Is(err, ErrTaken) {
		return stands, err
	}
	if stands {
		in.Commit = nil // it is over
	}
	taken, none := in.taken(), false
	if in.Commit != nil {
		if none, err = d.seal(in); err != nil {
			return false, err
		}
	}
	isPart := func(name string) bool { return set.IsPart(name, runID) && name != taken }
	isManifests := func(name string) bool { return strings.HasPrefix(name, "."+in.Set.ManifestName()+".") }
	errs := []error{away, d.removeStagings(runID), d.removeHere(runID, func(name string) bool {
		return isPart(name) && (stands || !isManifests(name)) || isFreshStaging(name, runID) || isHalfIntent(name, runID)
	})}
	if none { // after the parts, which one who commits still could give these names
		errs = append(errs, d.removeFinals(in, d.sameContent(ctx)))
	}
	errs = append(errs, d.removeRunDir(runID, in.Temp == d.Temp), before.removeRunDir(runID))
	if !stands { // a manifest's part that a commit misses counts as made the manifest: it is removed only where no commit began
		err := d.unchanged(runID, in)
		if err == nil {
			err = d.removeHere(runID, isPart)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return stands, err
	}
	if err := d.removeIntent(runID); err != nil || taken == "" {
		return stands, err
	}
	if !none {
		return stands, d.mayHaveStood(in) // which is told once: nothing more is to be done
	}
	return stands, d.removeHere(runID, func(name string) bool { return name == taken })
}

func (d *Directory) removeStagings(runID string) error {
	var errs []error
	for _, s := range d.stagings() {
		errs = append(errs, s.remove(runID, everyHold))
	}
	return errors.Join(errs...)
}

// removeHere removes those of the dump directory that are of the run.
func (d *Directory) removeHere(runID string, isOf func(name string) bool) error {
	return removeWithin(d.Dump, func(name string) bool { return !isOf(name) })
}

// removeRunDir removes the run's staging below the temp directory. It is proved to be
// the run's by its marker, or by the intent.
func (d *Directory) removeRunDir(runID string, proved bool) error {
	if proved {
		if _, err := readOwner(d.RunDir(runID)); errors.Is(err, fs.ErrNotExist) {
			return removeOwned(d.RunDir(runID))
		}
	}
	return removeMarked(d.RunDir(runID), runID)
}

// unchanged tells an error where a commit began after the intent was read. One that
// begins later still finds no parts.
func (d *Directory) unchanged(runID string, in Intent) error {
	again, err := d.ReadIntent(runID)
	if err == nil && !reflect.DeepEqual(again.Commit, in.found) {
		err = errors.New("a commit of it began meanwhile: look again")
	}
	return ignoring(err, fs.ErrNotExist)
}

// removeIntent removes the run's intent once all else is gone for good.
func (d *Directory) removeIntent(runID string) error {
	if _, err := os.Lstat(d.intentPath(runID)); errors.Is(err, fs.ErrNotExist) {
		return nil // a read-only file system refuses also to remove what is not there
	}
	if err := set.SyncDir(d.Dump); err != nil {
		return err
	}
	if err := os.Remove(d.intentPath(runID)); ignoring(err, fs.ErrNotExist) != nil {
		return err
	}
	return set.SyncDir(d.Dump)
}

// isFreshStaging tells what an earlier version left that was killed while it made the staging.
func isFreshStaging(name, runID string) bool {
	return strings.HasPrefix(name, "."+postgresName+"."+runID+".") && strings.HasSuffix(name, ".new")
}

// isHalfIntent tells an intent that a kill kept from getting its name (set.WriteFile).
func isHalfIntent(name, runID string) bool {
	return strings.HasPrefix(name, ".."+runID+intentSuffix+".") && strings.HasSuffix(name, ".new")
}

// RemoveParts removes what the attempt with this hold, or earlier ones of the run,
// wrote for one final name.
func (d *Directory) RemoveParts(runID string, h run.Hold, final string) error {
	err := d.removeHere(runID, func(name string) bool {
		rest, ok := strings.CutPrefix(name, "."+final+"."+runID+".")
		hold, isPart := strings.CutSuffix(rest, ".part")
		left, valid := run.ParseHold(hold)
		return ok && isPart && valid && mayRemove(h, left)
	})
	if err != nil {
		return fmt.Errorf("remove the parts of earlier attempts: %w", err)
	}
	return nil
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
	b, err := set.ReadNote(filepath.Join(attemptDir, resultName), set.MaxHead)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
