package dump

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

const intentSuffix = ".intent"

// Intent names everything a run will use in the dump directory. It is written
// and synced before any of it exists.
type Intent struct {
	Run      string    `json:"run"`
	Instance string    `json:"instance"`
	Node     string    `json:"node"`
	Set      set.ID    `json:"set"`
	Created  time.Time `json:"created"`
	Names    []string  `json:"names"` // final names; parts are .<name>.<run>.<hold>.part
	Temp     string    `json:"temp"`
	// Commit is set right before the first rename, and stays until the intent goes.
	Commit *Commit `json:"commit"`
	found  *Commit // as it was read
}

// Commit is what the renames will do. The manifest comes last.
type Commit struct {
	Files []CommitFile `json:"files"`
}

// CommitFile is one rename. Size, inode and time of change prove that a file is the
// one that was written: it was complete and synced before the intent named it.
type CommitFile struct {
	Part   string `json:"part"`
	Final  string `json:"final"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	Inode  uint64 `json:"inode"`
	// ModTime is in nanoseconds since 1970; 0 in intents of earlier versions.
	ModTime int64 `json:"mtime_ns,omitempty"`
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

// ReadIntent reads a run's intent; fs.ErrNotExist if it certainly has none.
func (d *Directory) ReadIntent(runID string) (Intent, error) {
	var in Intent
	if !run.ValidID(runID) {
		return in, fmt.Errorf("%q is no run id", runID)
	}
	path := d.intentPath(runID)
	b, err := set.ReadNote(path, set.MaxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return in, stage.Permanentf("read the intent of run %s: %w: did something else clear the dump directory? run the backup again", runID, err)
	}
	if err != nil {
		return in, fmt.Errorf("read the intent of run %s: %w: what it left stays until the intent can be read", runID, err)
	}
	if err = json.Unmarshal(b, &in); err == nil {
		err = in.check(runID)
	}
	if err != nil {
		return Intent{}, damagedIntent(path, err)
	}
	return in, nil
}

func damagedIntent(path string, err error) error {
	return fmt.Errorf("read the intent %s: it is damaged: %w: what its run left stays; if no worker works on that run, remove the intent and then the run's files beside it by hand, but nothing of a set that has its manifest", path, err)
}

// check refuses names that would become wrong paths.
func (in Intent) check(runID string) error {
	if in.Run != runID {
		return fmt.Errorf("it is of run %q", in.Run)
	}
	if _, err := set.ParseID(string(in.Set)); err != nil {
		return err
	}
	if in.Commit == nil {
		return nil
	}
	if len(in.Commit.Files) == 0 {
		return errors.New("its commit has no files")
	}
	for _, f := range in.Commit.Files {
		if id, ok := set.IDOfName(f.Final); !ok || id != in.Set || !set.IsPart(f.Part, runID) || filepath.Base(f.Part) != f.Part {
			return fmt.Errorf("%q or %q is no file of the run", f.Part, f.Final)
		}
	}
	return nil
}
