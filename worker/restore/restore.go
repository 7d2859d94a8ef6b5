package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/postgres"
	"catalog-backup/worker/stage"
)

// Parts of a set, as --only names them.
const (
	PostgresPart = "postgres"
	FilesPart    = "files"
	EventBusPart = "eventbus"
)

// AllParts are the parts that there are, in the order of their restoring.
var AllParts = []string{PostgresPart, FilesPart, EventBusPart}

// Options say what to restore and where to.
type Options struct {
	Target         string            // directory; made if it is not there, else it must be empty
	Only           []string          // parts; none = all that the set has
	Bus            *eventbus.Options // the bus that the records are loaded into; nil = none
	FinalRetention bool              // give the loaded topics their own retention at once
	Live           bool              // PostgreSQL acts as the original did: see postgres.RestoreOptions
	Runner         postgres.Runner   // of pgBackRest
	PgBackRest     string            // program; "" = looked up
	// Phase is told when another phase begins, and gives what shows its progress.
	Phase func(name string) stage.Progress
	Logf  func(format string, args ...any)
	Now   func() time.Time
}

// Result is a restored set.
type Result struct {
	Set      string   `json:"set"`
	Target   string   `json:"target"`
	Parts    []string `json:"parts"`
	Postgres *Server  `json:"postgres"`
	EventBus *Loaded  `json:"eventbus"` // null where nothing was loaded into a bus
	Notes    []string `json:"notes"`
	Warnings []string `json:"warnings"`
	Next     []string `json:"next"` // what is left to do for people

	VerifySeconds  float64 `json:"verify_seconds"`
	RestoreSeconds float64 `json:"restore_seconds"`
}

// Server is the restored PostgreSQL.
type Server struct {
	DataDirectory string `json:"data_directory"`
	Start         string `json:"start"` // command for a shell
	// Before is what has to be done before the start command, in order.
	Before []string `json:"before"`
	// Psql is a command for a shell that asks the started server; "" with Live.
	Psql string `json:"psql"`
}

// Loaded is what came into a bus.
type Loaded struct {
	Topics  int   `json:"topics"`
	Records int64 `json:"records"`
	Groups  int   `json:"groups"`
	ACLs    int   `json:"acls"`
}

// stagingName is where a restore keeps what is not for the user, below its target.
// It stays for as long as the restore is unfinished, however that ended.
const stagingName = ".restore"

// job is one restore.
type job struct {
	o      Options
	s      *Set
	parts  []string
	sums   map[string]archive.Sum // as verified
	owner  *archive.Owner         // of DIR/postgres where that is given; nil = postgres.Restore decides
	result *Result
	begun  bool // something was written
	done   []string
}

// Restore verifies the archives it needs, and then restores the set's parts into
// the target: postgres/{data,tablespaces,config}, files/<absolute path>,
// eventbus/topics/…, and set.json, the manifest. It refuses before it writes
// anything: a target that is not empty, a wanted part that is missing or damaged (a
// *DamagedError; damage elsewhere only warns), too little space, names that would lead out of the target, a bus
// that has one of the topics, and what the restored server would lack. The result
// is given with an error too; the error then says what state the target is in.
func Restore(ctx context.Context, s *Set, o Options) (*Result, error) {
	if o.Phase == nil {
		o.Phase = func(string) stage.Progress { return stage.NoProgress{} }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if len(s.manifest) > 0 { // it is noted
		whole := *s
		whole.manifest = nil
		s = &whole
	}
	j := &job{o: o, s: s, result: &Result{Set: s.Manifest.Set, Target: o.Target, Parts: []string{}, Notes: []string{}, Warnings: []string{}, Next: []string{}}}
	err := j.run(ctx)
	if err != nil && j.begun {
		err = j.state(err)
	}
	return j.result, err
}

func (j *job) run(ctx context.Context) error {
	if err := j.check(ctx); err != nil {
		return err
	}
	began := j.o.Now()
	if err := j.verify(ctx); err != nil {
		return err
	}
	j.result.VerifySeconds = j.o.Now().Sub(began).Seconds()
	began = j.o.Now()
	if err := j.write(ctx); err != nil {
		return err
	}
	j.result.RestoreSeconds = j.o.Now().Sub(began).Seconds()
	j.nextSteps()
	return nil
}

// kinds are the archives that the parts lie in.
func (j *job) kinds() []string {
	var kinds []string
	if j.wants(PostgresPart) || j.wants(FilesPart) {
		kinds = append(kinds, set.MainArchive)
	}
	if j.wants(EventBusPart) {
		kinds = append(kinds, set.EventBusArchive)
	}
	return kinds
}

func (j *job) wants(part string) bool { return slices.Contains(j.parts, part) }

// verify refuses what is not whole of the wanted parts, and then a disk that is too small.
func (j *job) verify(ctx context.Context) error {
	r, err := Verify(ctx, j.s, VerifyOptions{Kinds: j.kinds(), Unread: true, Progress: j.o.Phase("verify")})
	if err != nil {
		return fmt.Errorf("restore set %s: %w; nothing was written", j.result.Set, err)
	}
	j.result.Notes = append(j.result.Notes, r.Notes...)
	if r.refusal != nil && j.wants(PostgresPart) {
		return fmt.Errorf("restore set %s: %w; nothing was written", j.result.Set, r.refusal)
	}
	against, beside, whole := judge(r.Damage, j.parts)
	if len(against) > 0 {
		return &DamagedError{Set: r.Set, Doing: fmt.Sprintf("restore set %s", r.Set), Damage: append(against, beside...), Total: r.DamageTotal, Remedy: remedy(whole)}
	}
	j.warnOf(beside, r.DamageTotal)
	j.sums = r.sums
	for _, kind := range j.kinds() {
		if _, read := j.sums[kind]; !read {
			return j.refuse(ErrNotFound, "its archive of kind %s went away while it was verified; nothing was written", kind)
		}
	}
	if err := j.space(r.need); err != nil {
		return err
	}
	return j.emptyTarget() // it may have filled meanwhile
}

// write makes the target. What there is to refuse was refused before.
func (j *job) write(ctx context.Context) error {
	if err := j.makeTarget(); err != nil {
		return fmt.Errorf("restore set %s: make the target %s: %w", j.result.Set, j.o.Target, err)
	}
	j.begun = true // from here on the target is ours, and nobody else's restore
	if err := j.unpack(ctx); err != nil {
		return err
	}
	if j.wants(PostgresPart) {
		if err := j.postgres(ctx); err != nil {
			return err
		}
		j.done = append(j.done, PostgresPart)
	}
	if err := set.WriteFileFrom(filepath.Join(j.o.Target, "set.json"), j.s.text.open()); err != nil {
		return err
	}
	if err := os.RemoveAll(j.staging()); err != nil {
		return fmt.Errorf("remove the staging: %w", err)
	}
	if err := syncAll(j.o.Target); err != nil {
		return fmt.Errorf("bring %s to the disk: %w", j.o.Target, err)
	}
	if j.o.Bus == nil {
		return nil
	}
	return j.load(ctx)
}

// state adds to an error what the target is like.
func (j *job) state(err error) error {
	doing := fmt.Sprintf("restore set %s into %s", j.result.Set, j.o.Target)
	left := slices.DeleteFunc(slices.Clone(j.parts), func(p string) bool { return slices.Contains(j.done, p) })
	if _, gone := os.Lstat(j.staging()); errors.Is(gone, os.ErrNotExist) && len(left) == 0 {
		return fmt.Errorf("%s: %w; what was restored there (%s) is complete, only the loading into the bus is not: mend the cause and load the set's part eventbus again, by --only eventbus into another directory", doing, err, strings.Join(j.parts, ", "))
	}
	finished := "nothing there is complete"
	if len(j.done) > 0 {
		finished = "complete there: " + strings.Join(j.done, ", ") + "; not complete: " + strings.Join(left, ", ")
	}
	return fmt.Errorf("%s: %w; the restore is unfinished (%s): remove %s and restore again", doing, err, finished, j.o.Target)
}

func (j *job) staging() string { return filepath.Join(j.o.Target, stagingName) }

// postgres makes a data directory of the unpacked repository.
func (j *job) postgres(ctx context.Context) error {
	dir := filepath.Join(j.o.Target, "postgres")
	if err := j.mkdir(dir, 0o700); err != nil {
		return err
	}
	if j.owner != nil {
		if err := os.Lchown(dir, j.owner.UID, j.owner.GID); err != nil {
			return err
		}
	}
	done, err := postgres.Restore(ctx, postgres.RestoreOptions{Part: j.s.Manifest.Postgres, Repo: filepath.Join(j.staging(), "repo"), Target: dir,
		ConfigFrom: filepath.Join(j.staging(), "config"), PgBackRest: j.o.PgBackRest, Live: j.o.Live, Runner: j.o.Runner, Progress: j.o.Phase("postgres")})
	if err != nil {
		return err
	}
	j.result.Postgres = &Server{DataDirectory: done.DataDir, Start: done.StartCommand, Before: append([]string{}, done.Before...), Psql: done.Psql}
	j.result.Warnings = append(j.result.Warnings, done.Warnings...)
	j.result.Notes = append(j.result.Notes, done.Notes...)
	return nil
}

// load brings the topics into the bus. It reads what was restored, so that an
// archive that changes meanwhile does no harm.
func (j *job) load(ctx context.Context) error {
	src := segments{filepath.Join(j.o.Target, "eventbus", "topics")}
	done, err := eventbus.Load(ctx, *j.o.Bus, j.s.Manifest.EventBus, src, eventbus.LoadOptions{FinalRetention: j.o.FinalRetention, Logf: j.o.Logf, Progress: j.o.Phase("load")})
	if err != nil {
		return err
	}
	j.result.EventBus = &Loaded{Topics: done.Topics, Records: done.Records, Groups: done.Groups, ACLs: done.ACLs}
	j.result.Notes = append(j.result.Notes, done.Notes...)
	j.result.Warnings = append(j.result.Warnings, done.Warnings...)
	return nil
}

// nextSteps says what a restore cannot do by itself.
func (j *job) nextSteps() {
	next := func(format string, args ...any) { j.result.Next = append(j.result.Next, fmt.Sprintf(format, args...)) }
	if p := j.result.Postgres; p != nil {
		for _, step := range p.Before {
			next("%s", step)
		}
		next("start PostgreSQL: %s", p.Start)
		if p.Psql != "" {
			next("look at it: %s", p.Psql)
		}
		next("the catalog's jobs and notifications may act for the original: keep the restored server away from the network until it is meant to take over")
	}
	if j.wants(FilesPart) {
		next("put the files in their place with the catalog stopped: %s holds them by their absolute paths", filepath.Join(j.o.Target, "files"))
	}
	if j.wants(EventBusPart) && j.o.Bus == nil {
		next("the Event Bus lies in %s as segments; to load it into a bus, restore with --only eventbus --bus HOST:PORT", filepath.Join(j.o.Target, "eventbus"))
	}
	if j.o.Bus != nil && !j.o.FinalRetention {
		next("the loaded topics keep everything for ever: give them their retention back once the consumers have caught up (set.json lists it)")
	}
	if len(j.parts) == len(j.s.Manifest.Parts()) {
		next("rebuild the search index")
		next("if the host name changed: set the catalog's URL, and the addresses of SSO (SAML, OAuth), mail and connectors")
	}
}
