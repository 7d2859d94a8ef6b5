package backup

import (
	"context"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/pipeline"
	"catalog-backup/worker/postgres"
	"catalog-backup/worker/stage"
)

// prepare checks everything that can be checked before the work begins, reserves
// the set id and reads the consumer positions.
type prepare struct{ Options }

type prepared struct {
	handed
	CatalogVersion string              `json:"catalog_version"`
	Type           set.Type            `json:"type"`
	Positions      *eventbus.Positions `json:"positions"`
	FilesBytes     int64               `json:"files_bytes"`
	// Places is where the configured paths lead; later stages, and later attempts at
	// them, store what is there and nothing else. Absent in results of earlier versions.
	Places []set.Place `json:"places,omitempty"`
}

func (s prepare) Name() string { return prepareStage }

func (s prepare) Run(ctx context.Context, a *pipeline.Attempt) (any, error) {
	out := prepared{Type: set.Full}
	// What an old run left is no reason to make no set: where it is in the way, that fails.
	if err := pipeline.Sweep(ctx, s.Store, s.Dir, s.Config.Instance); ctx.Err() != nil {
		return nil, context.Cause(ctx)
	} else if err != nil {
		out.Findings.Warn("%s", exit.OneLine(err.Error(), 2000))
	}
	if err := s.Dir.Check(a.Run.ID); err != nil {
		return nil, err
	}
	var err error
	if out.CatalogVersion, err = s.Config.CatalogVersion(); err != nil {
		return nil, stage.Permanent(err)
	}
	if a.Run.Requested == string(set.Incremental) {
		out.Findings.Note("promoted to a full backup: there is no chain yet that an incremental could build on")
	}
	if err := s.survey(ctx, a, &out); err != nil {
		return nil, err
	}
	if err := a.Holds(ctx, false); err != nil {
		return nil, err
	}
	in, unread, err := s.Dir.Reserve(ctx, a.Run.ID, out.CatalogVersion, s.Now())
	if err != nil {
		return nil, err
	}
	for _, w := range unread {
		out.Findings.Warn("%s", w)
	}
	if len(s.Config.EventBus.Brokers) > 0 { // before Postgres stops: a restored consumer replays, it never skips
		pos, f, err := eventbus.ReadPositions(ctx, s.eventBusOptions())
		if err != nil {
			return nil, err
		}
		out.Findings.Join(f)
		out.Positions = pos
	}
	return out, a.Note(ctx, run.Facts{Set: string(in.Set), Type: string(out.Type), Notes: out.Findings.Notes, Warnings: out.Findings.Warnings})
}

// survey asks every part whether it can be backed up, and how large it is.
func (s prepare) survey(ctx context.Context, a *pipeline.Attempt, out *prepared) error {
	if err := archive.CheckPatterns(s.Config.Files.Exclude); err != nil {
		return stage.Permanentf("files.exclude: %w", err)
	}
	var err error
	if out.Places, err = archive.ResolvePlaces(s.Config.Files.Paths); err != nil {
		return err
	}
	for _, p := range out.Places {
		if len(p.Way) > 0 {
			out.Findings.Note("files.paths: %q leads through a symbolic link; it is stored where it leads, as %q, with the link", p.Configured, p.Resolved)
		}
	}
	files, _, err := archive.EstimateFiles(ctx, s.filesOptions(out.Places))
	if err != nil {
		return err
	}
	out.FilesBytes = files
	facts, f, err := postgres.Preflight(ctx, s.postgresOptions(a), postgres.Work{Repo: s.Dir.PostgresParent(), Dir: a.Dir})
	if err != nil {
		return err
	}
	out.Findings.Join(f)
	var busBytes int64
	if len(s.Config.EventBus.Brokers) > 0 {
		info, f, err := eventbus.Probe(ctx, s.eventBusOptions())
		if err != nil {
			return err
		}
		out.Findings.Join(f)
		busBytes = info.Bytes
	} else {
		out.Findings.Note("no Event Bus is configured: the set has no Event Bus archive")
	}
	return s.space(facts.SpaceNeeded, files, busBytes, &out.Findings)
}

// space refuses what cannot fit. The repository is needed twice: staged, and
// packed. Files and record batches may shrink to a fifth, or not at all.
func (s prepare) space(repo, files, busBytes int64, f *stage.Findings) error {
	free, err := archive.FreeSpace(s.Config.Backup.DumpDir)
	if err != nil {
		return err
	}
	least, most := 2*repo+(files+busBytes)/5, 2*repo+files+busBytes
	switch {
	case free < least:
		return stage.Permanentf("check the space in %s: %s are free, at least %s are needed (Postgres staged and packed %s, files %s, Event Bus %s, before compression); free some, or set alation.backup.data_dump_dir to a larger disk",
			s.Config.Backup.DumpDir, exit.Size(free), exit.Size(least), exit.Size(2*repo), exit.Size(files), exit.Size(busBytes))
	case free < most:
		f.Note("%s has %s free; if the files and events hardly compress, up to %s are needed", s.Config.Backup.DumpDir, exit.Size(free), exit.Size(most))
	}
	return nil
}
