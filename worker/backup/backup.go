// Package backup wires the rooms (postgres, eventbus, archive) to the pipeline:
// the four stages of a run, in their order.
package backup

import (
	"context"
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

func (o Options) postgresOptions(pidFile string) postgres.Options {
	p := o.Config.Postgres
	return postgres.Options{DSN: p.DSN, Password: p.Password, PgBackRest: p.PgBackRest, Processes: p.Processes, CompressType: p.CompressType,
		CompressLevel: p.CompressLevel, AllowCorruptPages: p.AllowCorruptPages, Runner: Runner{Config: o.Config, PIDFile: pidFile}, Logf: o.Logf}
}

func (o Options) eventBusOptions() eventbus.Options {
	c := o.Config.EventBus
	e := eventbus.Options{Brokers: c.Brokers, ClientID: "catalog-backup", AllowGaps: c.AllowGaps, Include: c.Include, Exclude: c.Exclude,
		Parallel: c.Parallel, Budget: c.Budget, Now: o.Now, Logf: o.Logf}
	if c.TLS.Enabled {
		e.TLS = &eventbus.TLS{CAFile: c.TLS.CAFile, CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile, ServerName: c.TLS.ServerName, InsecureSkipVerify: c.TLS.Insecure}
	}
	if c.SASL.Mechanism != "" {
		e.SASL = &eventbus.SASL{Mechanism: c.SASL.Mechanism, Username: c.SASL.Username, Password: c.SASL.Password}
	}
	return e
}

// filesOptions keep our own directories out of the set: a backup never holds itself.
func (o Options) filesOptions() archive.FilesOptions {
	c := o.Config
	return archive.FilesOptions{Paths: c.Files.Paths, Exclude: c.Files.Exclude, AllowUnreadable: c.Files.AllowUnreadable,
		Never: []string{c.Backup.DumpDir, c.Backup.TempDir, c.StateDir}}
}

func (o Options) archiveOptions() archive.Options {
	return archive.Options{Level: o.Config.Archive.Level, Parallel: o.Config.Archive.Parallel}
}

// Runner runs the tools of the postgres room under a keeper.
type Runner struct {
	Config  *config.Config // for nice and I/O class; nil: as they are
	PIDFile string         // where the group is noted for a successor; "": nowhere
}

// Run implements postgres.Runner.
func (r Runner) Run(ctx context.Context, c postgres.Command) error {
	k := keeper.Command{Path: c.Path, Args: c.Args, Env: c.Env, Dir: c.Dir, Stdout: c.Stdout, Stderr: c.Stderr, PIDFile: c.PIDFile}
	if k.Env == nil {
		k.Env = []string{}
	}
	if k.PIDFile == "" {
		k.PIDFile = r.PIDFile
	}
	if c.Credential != nil {
		k.Credential = &keeper.Credential{UID: c.Credential.UID, GID: c.Credential.GID, Groups: c.Credential.Groups}
	}
	if r.Config != nil {
		k.Nice = r.Config.Archive.Nice
		switch r.Config.Archive.IOClass {
		case "idle":
			k.IOClass = keeper.IOIdle
		case "best-effort":
			k.IOClass = keeper.IOBestEffort
		}
	}
	return keeper.Run(ctx, k)
}
