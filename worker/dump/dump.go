// Package dump keeps the dump and temp directories of one node: it reserves set
// ids, writes the intent before anything else is made there, commits a set by
// renames with the manifest last, and removes what a run left. It touches only
// what an intent or an owner marker proves to be ours; all else is foreign.
package dump

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"

	"golang.org/x/sys/unix"
)

// Directory is the pair of directories of one node, for one instance.
type Directory struct {
	Dump     string // sets, and the Postgres staging
	Temp     string // other staging
	Instance string
	Node     string
	// EndLeftover ends the processes that a pid file in a dead attempt's staging
	// names; nil where no child processes are ever started.
	EndLeftover func(ctx context.Context, pidFile string) error
}

const (
	lockName     = ".catalog-backup.lock"
	ownerName    = ".catalog-backup-owner"
	intentSuffix = ".intent"
	stagingName  = "pgbackrest"
)

// Owner marks a directory as ours.
type Owner struct {
	Run      string `json:"run"`
	Fence    int64  `json:"fence"`
	Instance string `json:"instance"`
	Node     string `json:"node"`
}

// Intent names everything a run will use in the dump directory. It is written
// and synced before any of it exists.
type Intent struct {
	Run      string    `json:"run"`
	Instance string    `json:"instance"`
	Node     string    `json:"node"`
	Set      set.ID    `json:"set"`
	Created  time.Time `json:"created"`
	Names    []string  `json:"names"` // final names; parts are .<name>.<run>.<fence>.part
	Temp     string    `json:"temp"`
	Commit   *Commit   `json:"commit"` // set right before the first rename
}

// Commit is what the renames will do. The manifest comes last.
type Commit struct {
	Files []CommitFile `json:"files"`
}

// CommitFile is one rename. The inode proves that a file under the final name is ours.
type CommitFile struct {
	Part   string `json:"part"`
	Final  string `json:"final"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	Inode  uint64 `json:"inode"`
}

// Check makes sure that both directories are there and can be written, and that
// no foreign Postgres staging stands in the way of the run.
func (d *Directory) Check(runID string) error {
	for key, dir := range map[string]string{"alation.backup.data_dump_dir": d.Dump, "alation.backup.data_temp_dir": d.Temp} {
		fi, err := os.Stat(dir)
		if err != nil {
			return stage.Permanentf("check the directory %s (%s): %w; create it, owned by the worker's user", dir, key, reason(err))
		}
		if !fi.IsDir() {
			return stage.Permanentf("check the directory %s (%s): it is no directory; name another", dir, key)
		}
		f, err := os.CreateTemp(dir, ".catalog-backup-check.*")
		if err != nil {
			return stage.Permanentf("check the directory %s (%s): it cannot be written: %w; give it to the worker's user", dir, key, reason(err))
		}
		f.Close()
		if err := os.Remove(f.Name()); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(d.staging()); err == nil {
		return d.mayUse(runID)
	}
	return nil
}

// mayUse refuses a Postgres staging that is foreign or of another run.
func (d *Directory) mayUse(runID string) error {
	o, err := readOwner(d.staging())
	switch {
	case err != nil:
		return d.foreignStaging()
	case o.Run != runID:
		return fmt.Errorf("use %s for the Postgres staging: run %s of instance %s on node %s has it; a worker of that node removes it once that run is over (if there is no such node any more, remove it by hand)", d.staging(), o.Run, o.Instance, o.Node)
	}
	return nil
}

func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (d *Directory) staging() string { return filepath.Join(d.Dump, stagingName) }

func (d *Directory) foreignStaging() error {
	return stage.Permanentf("use %s for the Postgres staging: it is there already and not ours (a left-over of another backup, or a repository in use); "+
		"make sure that no other backup runs, then move it away or remove it", d.staging())
}

// Reserve chooses the set id of a run and writes its intent, both under the dump
// lock: the first free minute from now on that is later than the instance's
// newest set. A run that has reserved before gets the same id again.
func (d *Directory) Reserve(runID, catalogVersion string, now time.Time) (Intent, error) {
	if in, err := d.ReadIntent(runID); err == nil {
		return in, nil
	}
	lock, err := flockFile(filepath.Join(d.Dump, lockName))
	if err != nil {
		return Intent{}, fmt.Errorf("lock the dump directory %s: %w", d.Dump, err)
	}
	defer lock.Close()
	taken, newest, err := d.taken()
	if err != nil {
		return Intent{}, err
	}
	at := now.UTC().Truncate(time.Minute)
	if !at.After(newest) {
		at = newest.Add(time.Minute)
	}
	id := set.NewID(at, catalogVersion)
	for taken[id] || anyExists(d.Dump, id.Names()) {
		at = at.Add(time.Minute)
		id = set.NewID(at, catalogVersion)
	}
	in := Intent{Run: runID, Instance: d.Instance, Node: d.Node, Set: id, Created: now.UTC(), Names: id.Names(), Temp: d.Temp}
	return in, d.writeIntent(in)
}

// taken are the ids that other intents reserve, and the newest minute of the instance's sets.
func (d *Directory) taken() (map[set.ID]bool, time.Time, error) {
	ids := map[set.ID]bool{}
	var newest time.Time
	entries, err := os.ReadDir(d.Dump)
	if err != nil {
		return nil, newest, fmt.Errorf("reserve a set id: %w", err)
	}
	for _, e := range entries {
		if id, ok := set.IDOfName(e.Name()); ok && e.Name() == id.ManifestName() {
			m, err := set.ReadHead(filepath.Join(d.Dump, e.Name()))
			if err == nil && m.Instance == d.Instance && id.Minute().After(newest) {
				newest = id.Minute()
			}
		}
		if r, ok := intentRun(e.Name()); ok {
			if in, err := d.ReadIntent(r); err == nil {
				ids[in.Set] = true
			}
		}
	}
	return ids, newest, nil
}

func anyExists(dir string, names []string) bool {
	for _, n := range names {
		if _, err := os.Lstat(filepath.Join(dir, n)); err == nil {
			return true
		}
	}
	return false
}

func intentRun(name string) (string, bool) {
	r, ok := strings.CutSuffix(strings.TrimPrefix(name, "."), intentSuffix)
	return r, ok && strings.HasPrefix(name, ".") && run.ValidID(r)
}

func (d *Directory) intentPath(runID string) string {
	return filepath.Join(d.Dump, "."+runID+intentSuffix)
}

func (d *Directory) writeIntent(in Intent) error {
	b, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return err
	}
	if err := set.WriteFile(d.intentPath(in.Run), append(b, '\n')); err != nil {
		return permanentIfFull(fmt.Errorf("write the intent of run %s: %w", in.Run, err))
	}
	return nil
}

// ReadIntent reads a run's intent; fs.ErrNotExist if it has none.
func (d *Directory) ReadIntent(runID string) (Intent, error) {
	var in Intent
	if !run.ValidID(runID) {
		return in, fmt.Errorf("%q is no run id", runID)
	}
	b, err := os.ReadFile(d.intentPath(runID))
	if errors.Is(err, fs.ErrNotExist) {
		return in, stage.Permanentf("read the intent of run %s: %w: did something else clear the dump directory? run the backup again", runID, err)
	}
	if err != nil {
		return in, err
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return in, fmt.Errorf("read the intent %s: it is damaged: %w", d.intentPath(runID), err)
	}
	if in.Run != runID {
		return in, fmt.Errorf("read the intent %s: it is of run %q", d.intentPath(runID), in.Run)
	}
	return in, nil
}

// PostgresStaging makes <dump>/pgbackrest fresh for an attempt: what an older
// attempt of the same run left is removed, a foreign one refuses.
func (d *Directory) PostgresStaging(runID string, h run.Hold) (string, error) {
	path := d.staging()
	if _, err := os.Lstat(path); err == nil {
		if err := d.mayUse(runID); err != nil {
			return "", err
		}
		if err := removeOwned(path); err != nil {
			return "", fmt.Errorf("remove the Postgres staging of an earlier attempt: %w", err)
		}
	}
	fresh := filepath.Join(d.Dump, fmt.Sprintf(".%s.%s.%s.new", stagingName, runID, h))
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	if err := d.ownedDir(fresh, runID, h.Fence); err != nil {
		return "", permanentIfFull(fmt.Errorf("make the Postgres staging: %w", err))
	}
	if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return "", d.foreignStaging()
		}
		return "", fmt.Errorf("make the Postgres staging %s: %w", path, err)
	}
	return path, set.SyncDir(d.Dump)
}

// ownedDir makes a directory, 0700, that our marker says is ours.
func (d *Directory) ownedDir(path, runID string, fence int64) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(Owner{Run: runID, Fence: fence, Instance: d.Instance, Node: d.Node})
	if err != nil {
		return err
	}
	return set.WriteFile(filepath.Join(path, ownerName), b)
}

func readOwner(dir string) (Owner, error) {
	var o Owner
	fi, err := os.Lstat(dir)
	if err != nil {
		return o, err
	}
	if !fi.IsDir() {
		return o, errors.New("it is no directory")
	}
	b, err := os.ReadFile(filepath.Join(dir, ownerName))
	if err != nil {
		return o, err
	}
	if err := json.Unmarshal(b, &o); err != nil || !run.ValidID(o.Run) {
		return o, errors.New("its owner marker is damaged")
	}
	return o, nil
}

// removeOwned removes an owned directory, its marker last, so that a removal
// that is cut short can be taken up again.
func removeOwned(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.Name() == ownerName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// flockFile takes an exclusive lock, waiting for it. Closing gives it back.
func flockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func permanentIfFull(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return stage.Permanentf("%w; free space there, then start the backup again", err)
	}
	return err
}
