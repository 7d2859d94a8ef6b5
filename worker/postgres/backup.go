package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// Backup makes a full backup in w.Repo and returns what the set holds of it.
// It may be called once for a Work. When ctx ends, pgBackRest is killed and the
// slot is gone within the second.
func Backup(ctx context.Context, o Options, w Work, f *Facts, p stage.Progress) (*set.Postgres, stage.Findings, error) {
	var found stage.Findings
	if err := o.check(); err != nil {
		return nil, found, err
	}
	cfg, err := o.parseDSN()
	if err != nil {
		return nil, found, err
	}
	password := ""
	if f.Password {
		password = cfg.Password
	}
	if err := prepareRepo(o, f, w, password); err != nil {
		return nil, found, err
	}
	defer os.Remove(filepath.Join(w.Repo, passfileName))
	held, err := holdWAL(ctx, cfg, o.Run, f)
	if err != nil {
		return nil, found, err
	}
	b := &backup{o: o, w: w, f: f, p: p, found: &found, t: backupTool(o, w, f, password != "")}
	b.wal = held

	working, stop := context.WithCancelCause(ctx)
	b.fail = stop
	var watching sync.WaitGroup
	watching.Go(func() { held.watch(working, o.watchInterval(), stop) })
	part, err := b.run(working)
	stop(nil)
	watching.Wait()
	held.release()
	if err != nil {
		return nil, found, err
	}
	b.namePages(ctx, part)
	if err := b.judgePages(part); err != nil {
		return nil, found, err
	}
	b.look(ctx, part)
	if stop := ended(ctx, "look into the databases"); stop != nil {
		return nil, found, stop
	}
	if part.Config, err = copyConfig(ctx, f.Config, w.ConfigDir(), &found); err != nil {
		return nil, found, err
	}
	return part, found, tidyRepo(w)
}

// backup is one running backup.
type backup struct {
	o     Options
	w     Work
	f     *Facts
	p     stage.Progress
	found *stage.Findings
	t     *tool
	wal   *slot
	fail  func(error) // ends the backup for this reason

	closed []string // databases that allow no connections
}

// backupTool is pgBackRest as the owner of the cluster, with an environment of
// our making.
func backupTool(o Options, w Work, f *Facts, passfile bool) *tool {
	env := childEnv(accountHome(f.OwnerUID))
	if passfile {
		env = append(env, "PGPASSFILE="+filepath.Join(w.Repo, passfileName))
	}
	if f.VersionNum >= 140000 {
		// pgBackRest's session is idle while files are copied.
		env = append(env, "PGOPTIONS=-c idle_session_timeout=0")
	}
	return &tool{
		path: f.PgBackRest, runner: o.Runner, credential: credentialOf(f.OwnerUID, f.OwnerGID),
		env: env,
	}
}

func (b *backup) pgbackrest(ctx context.Context, command string, args ...string) ([]byte, error) {
	full := append([]string{"--config=" + filepath.Join(b.w.Repo, toolConfigName), "--stanza=" + Stanza}, args...)
	out, err := b.t.run(ctx, nil, command, full...)
	err = explain(err, b.f, b.w.Repo)
	var t *toolError
	if errors.As(err, &t) && t.code == exitLock {
		if who := b.o.lockHolder(ctx); who != "" {
			err = fmt.Errorf("%w; %s", err, who)
		}
	}
	return out, err
}

func (b *backup) run(ctx context.Context) (*set.Postgres, error) {
	b.p.Total(b.f.Size)
	if _, err := b.pgbackrest(ctx, "stanza-create", "stanza-create"); err != nil {
		return nil, err
	}
	copying, done := context.WithCancel(ctx)
	var polling sync.WaitGroup
	polling.Go(func() { b.follow(copying) })
	_, err := b.pgbackrest(ctx, "backup", "--type=full", "--no-archive-check", "backup")
	done()
	polling.Wait()
	if err != nil {
		return nil, err
	}
	part, err := b.describe(ctx)
	if err != nil {
		return nil, err
	}
	history, err := b.pushWAL(ctx, part)
	if err != nil {
		return nil, err
	}
	if err := b.judgeHistory(ctx, history); err != nil {
		return nil, err
	}
	b.p.Done(b.f.Size)
	return part, nil
}

// fullDisk is the free space, in bytes, at which a disk counts as full.
const fullDisk = 256 << 10

// follow tells progress from pgBackRest's lock file: JSON with pctCplt, the
// hundredths of a percent that are done. It also ends the backup as soon as the
// disk is full: pgBackRest would keep it full for the better part of a minute
// of retries.
func (b *backup) follow(ctx context.Context) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var disk unix.Statfs_t
		if unix.Statfs(b.w.Repo, &disk) == nil && int64(disk.Bavail)*disk.Bsize < fullDisk {
			b.fail(stage.Permanentf("the disk of %s is full: make room there or move alation.backup.data_dump_dir", b.w.Repo))
			return
		}
		// Later versions number the lock by repository: catalog-backup-1.lock.
		files, _ := filepath.Glob(filepath.Join(b.w.Repo, "lock", Stanza+"-backup*.lock"))
		for _, path := range files {
			content, err := readLimited(path, 64<<10)
			if err != nil {
				continue
			}
			var lock struct {
				Done *int64 `json:"pctCplt"`
			}
			if json.Unmarshal(content, &lock) == nil && lock.Done != nil && *lock.Done >= 0 && *lock.Done <= 10000 {
				b.p.Done(int64(float64(b.f.Size) * float64(*lock.Done) / 10000))
			}
		}
	}
}

// infoJSON is the part of `pgbackrest info --output=json` that we need.
type infoJSON struct {
	Backup []struct {
		Label   string `json:"label"`
		Type    string `json:"type"`
		Archive struct {
			Start string `json:"start"`
			Stop  string `json:"stop"`
		} `json:"archive"`
		LSN struct {
			Start string `json:"start"`
			Stop  string `json:"stop"`
		} `json:"lsn"`
	} `json:"backup"`
}

// describe reads the finished backup's facts from the tool and its manifest.
func (b *backup) describe(ctx context.Context) (*set.Postgres, error) {
	out, err := b.pgbackrest(ctx, "info", "--log-level-console=off", "--output=json", "info")
	if err != nil {
		return nil, err
	}
	var info []infoJSON
	if err := json.Unmarshal(out, &info); err != nil || len(info) != 1 || len(info[0].Backup) != 1 {
		return nil, fmt.Errorf("read what pgbackrest info says: it does not list exactly one backup (%v)", err)
	}
	last := info[0].Backup[0]
	if !validLabel(last.Label) {
		return nil, fmt.Errorf("read what pgbackrest info says: %q is no label", last.Label)
	}
	m, err := b.readManifest(last.Label)
	if err != nil {
		return nil, err
	}
	if m.systemID != b.f.SystemIdentifier {
		return nil, stage.Permanentf("pgBackRest backed up the cluster with system identifier %d, the server's is %d: correct postgres.dsn", m.systemID, b.f.SystemIdentifier)
	}
	if len(last.Archive.Start) != 24 {
		return nil, fmt.Errorf("read what pgbackrest info says: %q is no WAL segment", last.Archive.Start)
	}
	timeline, err := strconv.ParseUint(last.Archive.Start[:8], 16, 32)
	if err != nil {
		return nil, fmt.Errorf("read what pgbackrest info says: %q is no WAL segment", last.Archive.Start)
	}
	f := b.f
	part := &set.Postgres{
		Tool: set.Tool{Name: "pgbackrest", Version: f.PgBackRestVersion}, Stanza: Stanza, Label: last.Label,
		SystemIdentifier: strconv.FormatUint(f.SystemIdentifier, 10), ServerVersion: f.Version, ServerVersionNum: f.VersionNum,
		DataDirectory: f.DataDirectory, DataChecksums: f.DataChecksums,
		StartLSN: last.LSN.Start, StopLSN: last.LSN.Stop, Timeline: uint32(timeline),
		StartWAL: last.Archive.Start, StopWAL: last.Archive.Stop, WALSegmentSize: f.WALSegmentSize,
		CompressType: m.compressType, Size: m.size, RepoSize: m.repoSize,
		Databases: f.Databases, Tablespaces: b.tablespaces(m), Limits: f.Limits,
		Config: []set.ConfigFile{}, PageErrors: []set.PageError{},
		Superuser: f.Superuser, Preload: f.Preload, Subscriptions: f.Subscriptions, Collations: f.Collations,
		ConfigInForce: f.ConfigInForce, TrackCommitTimestamp: f.CommitTimes,
	}
	for _, e := range m.pageErrors {
		part.PageErrors = append(part.PageErrors, set.PageError{File: e.name, Blocks: blockList(e.blocks)})
	}
	return part, nil
}

// tablespaces are those that the backup holds: one may have come or gone since
// Preflight.
func (b *backup) tablespaces(m *manifest) []set.Tablespace {
	names := map[string]string{}
	for _, t := range b.f.Tablespaces {
		names[strconv.Itoa(int(t.OID))] = t.Name
	}
	list := []set.Tablespace{}
	for id, location := range m.tablespaces {
		oid, err := strconv.ParseUint(id, 10, 32)
		if err == nil {
			list = append(list, set.Tablespace{OID: uint32(oid), Name: names[id], Location: location})
		}
	}
	sortTablespaces(list)
	return list
}

func (b *backup) readManifest(label string) (*manifest, error) {
	return openManifest(filepath.Join(b.w.RepoDir(), "backup", Stanza, label, "backup.manifest"))
}

func openManifest(path string) (*manifest, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read pgBackRest's manifest: %w", err)
	}
	defer file.Close()
	m, err := readManifest(file)
	var damaged errInfo
	if errors.As(err, &damaged) {
		return nil, stage.Permanentf("read pgBackRest's manifest %s: %w: it is damaged or of a version that we do not know", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read pgBackRest's manifest %s: %w", path, err)
	}
	if len(m.problems) > 0 {
		return nil, stage.Permanentf("read pgBackRest's manifest %s: %s", path, m.problems[0])
	}
	return m, nil
}
