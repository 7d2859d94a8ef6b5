// Package backup wires the rooms (postgres, eventbus, archive) to the pipeline:
// the four stages of a run, in their order.
package backup

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/dump"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/keeper"
	"catalog-backup/worker/pipeline"
	"catalog-backup/worker/postgres"
	"catalog-backup/worker/stage"
)

// segmentBytes is half of what a segment may have: each partition that is read at
// a time holds one in memory.
const segmentBytes = 8 << 20

// Options are what the stages work with.
type Options struct {
	Config  *config.Config
	Dir     *dump.Directory
	Store   *run.Store
	Program set.Tool // name and version of this program, for the manifest
	Now     func() time.Time
	Logf    func(format string, args ...any)
}

// Names of the stages.
const (
	prepareStage  = pipeline.FirstStage
	postgresStage = "postgres"
	eventBusStage = "eventbus"
	archiveStage  = "archive"
)

// Stages are the stages of a backup, in order.
func Stages(o Options) []pipeline.Stage {
	return []pipeline.Stage{prepare{o}, database{o}, bus{o}, pack{o}}
}

// handed is what every stage hands on besides its own result.
type handed struct {
	Findings stage.Findings `json:"findings"`
}

func (o Options) postgresOptions(a *pipeline.Attempt) postgres.Options {
	p := o.Config.Postgres
	return postgres.Options{DSN: dsn(p.DSN, p.Password), PgBackRest: p.PgBackRest, Processes: p.Processes, CompressType: p.CompressType,
		CompressLevel: p.CompressLevel, AllowCorruptPages: p.AllowCorruptPages, Runner: NewRunner(a.Dir),
		Run: a.Run.ID, RunOver: o.runOver}
}

// runOver tells whether a run is over, by its record.
func (o Options) runOver(ctx context.Context, id string) (bool, error) {
	r, err := o.Store.Get(ctx, id)
	return err == nil && r.State.Over(), err
}

// dsn puts a password that is configured apart into the connection string.
func dsn(dsn, password string) string {
	if password == "" {
		return dsn
	}
	if u, err := url.Parse(dsn); err == nil && (u.Scheme == "postgres" || u.Scheme == "postgresql") {
		name := ""
		if u.User != nil {
			name = u.User.Username()
		}
		u.User = url.UserPassword(name, password)
		return u.String()
	}
	return dsn + " password='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password) + "'"
}

func (o Options) eventBusOptions() eventbus.Options {
	c := o.Config.EventBus
	e := eventbus.Options{Brokers: c.Brokers, ClientID: "catalog-backup", AllowGaps: c.AllowGaps, AllowGapsIn: c.AllowGapsIn, Include: c.Include, Exclude: c.Exclude,
		Parallel: c.Parallel, SegmentBytes: segmentBytes, Budget: c.Budget, TransactionWait: c.TransactionWait, Now: o.Now, Logf: o.Logf}
	if c.TLS.Enabled {
		e.TLS = &eventbus.TLS{CAFile: c.TLS.CAFile, CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile, ServerName: c.TLS.ServerName, InsecureSkipVerify: c.TLS.Insecure}
	}
	if c.SASL.Mechanism != "" {
		e.SASL = &eventbus.SASL{Mechanism: c.SASL.Mechanism, Username: c.SASL.Username, Password: c.SASL.Password}
	}
	return e
}

// filesOptions keep our own directories out of the set: a backup never holds itself.
func (o Options) filesOptions(places []set.Place) archive.FilesOptions {
	c := o.Config
	return archive.FilesOptions{Paths: c.Files.Paths, Places: places, Now: o.Now, Exclude: c.Files.Exclude, AllowUnreadable: c.Files.AllowUnreadable,
		Never: []string{c.Backup.DumpDir, c.Backup.TempDir, c.StateDir}}
}

func (o Options) archiveOptions() archive.Options {
	return archive.Options{Level: o.Config.Archive.Level, Parallel: o.Config.Archive.Parallel}
}

// Runner runs the tools of the postgres room under a keeper.
type Runner struct {
	// PIDDir is where each tool's group is noted for a successor, in a file of its
	// own, since several run at once; "": nowhere.
	PIDDir string
	number *atomic.Int64
}

// NewRunner makes a Runner.
func NewRunner(pidDir string) Runner {
	return Runner{PIDDir: pidDir, number: &atomic.Int64{}}
}

// Run implements postgres.Runner.
func (r Runner) Run(ctx context.Context, c postgres.Command) error {
	k := keeper.Command{Path: c.Path, Args: c.Args, Env: c.Env, Dir: c.Dir, Stdout: c.Stdout, Stderr: c.Stderr}
	if k.Env == nil {
		k.Env = []string{}
	}
	if r.PIDDir != "" {
		k.PIDFile = filepath.Join(r.PIDDir, fmt.Sprintf("%d.pid", r.number.Add(1)))
	}
	if c.Credential != nil {
		k.Credential = &keeper.Credential{UID: c.Credential.UID, GID: c.Credential.GID, Groups: c.Credential.Groups}
	}
	return keeper.Run(ctx, k)
}
