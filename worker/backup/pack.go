package backup

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/dump"
	"catalog-backup/worker/instructions"
	"catalog-backup/worker/pipeline"
	"catalog-backup/worker/postgres"
)

// pack is the archive stage: Postgres' part and the files go into the main
// archive, the Event Bus archive is finished, and the set is committed.
type pack struct{ Options }

// notCovered is what no set holds; docs/set-format.md says what to do about it.
var notCovered = []string{
	"the search index (rebuild it after a restore)",
	"the catalog server's software and the operating system",
	"connectors, their manager and Alation Analytics, which live outside the application's files",
	"PostgreSQL: the rows of unlogged tables, which are empty after a restore",
	"PostgreSQL: replication slots (make those that are still needed anew; their consumers begin anew, too)",
}

func (s pack) Name() string { return archiveStage }

func (s pack) Run(ctx context.Context, a *pipeline.Attempt) (any, error) {
	m, err := s.Dir.Standing(a.Run.ID, set.ID(a.Run.Set))
	if err != nil {
		return nil, err
	}
	if m != nil { // an earlier attempt died after its commit
		return nil, s.tell(ctx, a, m)
	}
	in, err := s.Dir.ReadIntent(a.Run.ID)
	if err != nil {
		return nil, err
	}
	if in.Commit != nil { // … or in the middle of it
		if err := a.Holds(ctx, true); err != nil {
			return nil, err
		}
		if _, err := s.Dir.Recover(a.Run.ID); err != nil {
			return nil, err
		}
		if m, err = s.Dir.Standing(a.Run.ID, in.Set); err != nil {
			return nil, err
		}
		if m == nil {
			return nil, fmt.Errorf("look at set %s, whose commit was finished just now: its manifest is not there", in.Set)
		}
		return nil, s.tell(ctx, a, m)
	}
	m = &set.Manifest{}
	parts := []string{in.Set.MainName(), in.Set.TextName(), in.Set.ScriptName(), in.Set.ManifestName()}
	for _, name := range parts {
		if err := s.Dir.RemoveParts(a.Run.ID, a.Hold, name); err != nil {
			return nil, err
		}
	}
	files, err := s.write(ctx, a, in, m)
	if err != nil {
		for _, name := range parts {
			if rerr := s.Dir.RemoveParts(a.Run.ID, a.Hold, name); rerr != nil {
				s.Logf("%v", rerr)
			}
		}
		return nil, err
	}
	if err := s.Dir.Commit(a.Run.ID, files, func() error { return a.Holds(ctx, true) }); err != nil {
		return nil, err
	}
	return nil, s.tell(ctx, a, m)
}

// tell shows the set in the run's record. It is committed by now: nothing can take it back.
func (s pack) tell(ctx context.Context, a *pipeline.Attempt, m *set.Manifest) error {
	return a.Note(context.WithoutCancel(ctx), pipeline.SetFacts(s.Dir, m))
}

// job is one attempt at writing the archives.
type job struct {
	pack
	a      *pipeline.Attempt
	in     dump.Intent
	m      *set.Manifest
	places []set.Place
	db     databaseResult
	bus    busResult
	spool  *spool
}

// write makes the parts of all files of the set, the manifest's last, and fills in m.
func (s pack) write(ctx context.Context, a *pipeline.Attempt, in dump.Intent, m *set.Manifest) ([]dump.CommitFile, error) {
	j := &job{pack: s, a: a, in: in, m: m}
	var before prepared
	for name, into := range map[string]any{prepareStage: &before, postgresStage: &j.db, eventBusStage: &j.bus} {
		if err := a.Result(name, into); err != nil {
			return nil, err
		}
	}
	paths := append([]string{}, s.Config.Files.Paths...)
	if before.Places == nil { // a worker of an earlier version prepared the run
		var err error
		if before.Places, err = archive.ResolvePlaces(paths); err != nil {
			return nil, err
		}
	} else {
		paths = paths[:0] // the configuration may have changed meanwhile
		for _, p := range before.Places {
			paths = append(paths, p.Configured)
		}
	}
	j.places = before.Places
	*m = set.Manifest{Format: set.FormatName, Version: set.FormatVersion, Set: string(in.Set), Run: a.Run.ID, Instance: s.Config.Instance,
		Node: s.Config.Node, Type: before.Type, CatalogVersion: before.CatalogVersion, Program: s.Program, Started: a.Run.Created.UTC(),
		Postgres: j.db.Part, EventBus: j.bus.Part, NotCovered: append([]string{}, notCovered...), Warnings: []string{}, Notes: []string{},
		Files: &set.Files{Paths: paths, Places: before.Places, Exclude: append([]string{}, s.Config.Files.Exclude...), Entries: []set.File{}}}
	if j.bus.Part == nil {
		m.NotCovered = append(m.NotCovered, "an Event Bus: none is configured")
	}
	for _, h := range []handed{before.handed, j.db.handed, j.bus.handed} {
		m.Warnings = append(m.Warnings, h.Findings.Warnings...)
		m.Notes = append(m.Notes, h.Findings.Notes...)
	}
	var total int64 = before.FilesBytes
	if j.db.Part != nil {
		total += j.db.Part.RepoSize
	}
	a.Progress.Total(total)
	spool, err := newSpool(filepath.Join(a.Dir, "files.jsonl"))
	if err != nil {
		return nil, err
	}
	defer spool.Close()
	j.spool = spool
	return j.archives(ctx)
}

func (j *job) archives(ctx context.Context) ([]dump.CommitFile, error) {
	mainPart := set.PartName(j.in.Set.MainName(), j.a.Run.ID, j.a.Hold.String())
	w, err := archive.Create(filepath.Join(j.Dir.Dump, mainPart), j.archiveOptions())
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	if err := j.fill(ctx, w); err != nil {
		return nil, err
	}
	j.m.Archives = []set.Archive{{Kind: set.MainArchive, Name: j.in.Set.MainName()}}
	if j.bus.Archive != nil {
		j.m.Archives = append(j.m.Archives, set.Archive{Kind: set.EventBusArchive, Name: j.in.Set.EventBusName()})
	}
	j.m.Finished = j.Now().UTC()
	told, err := j.instructions(ctx, w)
	if err != nil {
		return nil, err
	}
	copyPath := filepath.Join(j.a.Dir, "set.json")
	if err := j.writeManifest(copyPath); err != nil {
		return nil, err
	}
	sum, err := j.finish(ctx, w, copyPath)
	if err != nil {
		return nil, err
	}
	j.m.Archives[0].Size, j.m.Archives[0].SHA256 = sum.Size, sum.SHA256
	files := []dump.CommitFile{{Part: mainPart, Final: j.in.Set.MainName(), Size: sum.Size, SHA256: sum.SHA256}}
	if b := j.bus.Archive; b != nil {
		bw, err := archive.Resume(*b, j.archiveOptions())
		if err != nil {
			return nil, err
		}
		defer bw.Abort()
		if sum, err = j.finish(ctx, bw, copyPath); err != nil {
			return nil, err
		}
		j.m.Archives[1].Size, j.m.Archives[1].SHA256 = sum.Size, sum.SHA256
		files = append(files, dump.CommitFile{Part: filepath.Base(b.Path), Final: j.in.Set.EventBusName(), Size: sum.Size, SHA256: sum.SHA256})
	}
	last, err := j.Dir.WritePart(j.in.Set.ManifestName(), j.a.Run.ID, j.a.Hold, j.manifestTo)
	return append(append(files, told...), last), err
}

// instructions makes the files that tell how to restore the set, beside the archives
// and in the main one. The manifest is complete by now but for the archives' hashes.
func (j *job) instructions(ctx context.Context, w *archive.Writer) ([]dump.CommitFile, error) {
	var parts []dump.CommitFile
	for _, x := range []struct {
		name, entry string
		make        func(*set.Manifest) []byte
	}{{j.in.Set.TextName(), set.TextEntry, instructions.Text}, {j.in.Set.ScriptName(), set.ScriptEntry, instructions.Script}} {
		content := x.make(j.m)
		part, err := j.Dir.WritePart(x.name, j.a.Run.ID, j.a.Hold, func(to io.Writer) error {
			_, err := to.Write(content)
			return err
		})
		if err != nil {
			return nil, err
		}
		h := &archive.Header{Name: x.entry, Kind: archive.Regular, Size: part.Size, Mode: 0o600, ModTime: j.m.Finished.Truncate(time.Second)}
		if err := w.Entry(ctx, h, bytes.NewReader(content), archive.Text); err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	for i, entry := range []string{set.TextEntry, set.ScriptEntry} {
		j.m.Instructions = append(j.m.Instructions, set.Instruction{Name: parts[i].Final, Entry: entry, Size: parts[i].Size, SHA256: parts[i].SHA256})
	}
	return parts, nil
}

// fill puts the repository, the server's configuration and the files into w.
func (j *job) fill(ctx context.Context, w *archive.Writer) error {
	first, err := postgres.RepoFirst(j.db.Repo, j.db.Part.Label)
	if err != nil {
		return err
	}
	if err := archive.AddTree(ctx, w, j.db.Repo, strings.TrimSuffix(set.PostgresRepo, "/"), first, repoClass, j.a.Progress); err != nil {
		return err
	}
	if _, err := os.Stat(j.db.Config); err == nil {
		text := func(string) archive.Class { return archive.Text }
		if err := archive.AddTree(ctx, w, j.db.Config, strings.TrimSuffix(set.PostgresConfig, "/"), nil, text, j.a.Progress); err != nil {
			return err
		}
	}
	o := j.filesOptions(j.places)
	o.Replace = j.spool.replace
	f, err := archive.AddFiles(ctx, w, o, j.a.Progress, j.spool.add)
	if err == nil {
		err = j.spool.settle()
	}
	if err != nil {
		return err
	}
	j.m.Warnings = append(j.m.Warnings, f.Warnings...)
	j.m.Notes = append(j.m.Notes, f.Notes...)
	j.m.Files.Count, j.m.Files.Bytes, j.m.Files.Holes = j.spool.count, j.spool.bytes, j.spool.holes
	return nil
}

// repoClass: pgBackRest has compressed all but its own small files.
func repoClass(rel string) archive.Class {
	switch filepath.Ext(rel) {
	case ".info", ".copy", ".manifest":
		return archive.Text
	case ".zst", ".lz4", ".gz", ".bz2":
		return archive.Packed
	}
	if strings.Contains(rel, "/bundle/") {
		return archive.Packed
	}
	return archive.Auto
}

// finish adds the manifest's copy and ends the archive.
func (j *job) finish(ctx context.Context, w *archive.Writer, copyPath string) (archive.Sum, error) {
	f, err := os.Open(copyPath)
	if err != nil {
		return archive.Sum{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return archive.Sum{}, err
	}
	h := &archive.Header{Name: set.ManifestCopy, Kind: archive.Regular, Size: fi.Size(), Mode: 0o600, ModTime: j.m.Finished.Truncate(time.Second)}
	if err := w.Entry(ctx, h, f, archive.Text); err != nil {
		return archive.Sum{}, err
	}
	return w.Finish()
}

// writeManifest writes m with the spooled list of files to path, synced.
func (j *job) writeManifest(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := j.manifestTo(f); err != nil {
		return fmt.Errorf("write the manifest %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write the manifest %s: %w", path, err)
	}
	return f.Close()
}

// manifestTo writes m with the spooled list of files.
func (j *job) manifestTo(w io.Writer) error {
	if err := j.spool.rewind(); err != nil {
		return err
	}
	return set.WriteManifest(w, j.m, j.spool.next)
}
