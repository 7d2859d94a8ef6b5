package backup

import (
	"context"

	"catalog-backup/shared/set"
	"catalog-backup/worker/pipeline"
	"catalog-backup/worker/postgres"
)

// database makes the pgBackRest repository of the run.
type database struct{ Options }

type databaseResult struct {
	handed
	Part   *set.Postgres `json:"part"`
	Repo   string        `json:"repo"`   // goes into the archive under set.PostgresRepo
	Config string        `json:"config"` // goes in under set.PostgresConfig
}

func (s database) Name() string { return postgresStage }

func (s database) Run(ctx context.Context, a *pipeline.Attempt) (any, error) {
	if err := a.Holds(ctx, false); err != nil {
		return nil, err
	}
	repo, err := s.Dir.PostgresStaging(a.Run.ID, a.Hold)
	if err != nil {
		return nil, err
	}
	out, err := s.backup(ctx, a, postgres.Work{Repo: repo, Dir: a.Dir})
	if err != nil {
		// A half repository would keep a full disk full until the next attempt.
		if rerr := s.Dir.RemovePostgresStaging(a.Run.ID, a.Hold); rerr != nil {
			s.Logf("%v", rerr)
		}
		return nil, err
	}
	return out, nil
}

func (s database) backup(ctx context.Context, a *pipeline.Attempt, w postgres.Work) (*databaseResult, error) {
	o := s.postgresOptions(a)
	facts, _, err := postgres.Preflight(ctx, o, w)
	if err != nil {
		return nil, err
	}
	part, f, err := postgres.Backup(ctx, o, w, facts, a.Progress)
	if err != nil {
		return nil, err
	}
	return &databaseResult{handed: handed{f}, Part: part, Repo: w.RepoDir(), Config: w.ConfigDir()}, nil
}
