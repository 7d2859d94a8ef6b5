package run

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
)

// Open lists the ids of the instance's open runs (normally one at most). The run that
// has the lock is one of them, whatever became of the set of them.
func (s *Store) Open(ctx context.Context, instance string) ([]string, error) {
	open, err := s.rdb.SMembers(ctx, openKey(instance)).Result()
	if err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE") {
		return nil, fmt.Errorf("list the open runs: %w", err)
	}
	holder, err := s.Holder(ctx, instance)
	if err == nil && ValidID(holder) && !slices.Contains(open, holder) {
		open = append(open, holder)
	}
	return open, err
}

// Holder is the id of the run that has the instance's lock, "" if none has.
func (s *Store) Holder(ctx context.Context, instance string) (string, error) {
	id, err := s.rdb.Get(ctx, lockKey(instance)).Result()
	if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "WRONGTYPE") {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the instance's lock: %w", err)
	}
	return id, nil
}

// ReleaseLock frees the instance's lock if the run that holds it is over or has no record.
// Lock and open runs are put right where they do not fit each other.
func (s *Store) ReleaseLock(ctx context.Context, instance string) error {
	holder, err := s.rdb.Get(ctx, lockKey(instance)).Result()
	if err == nil || errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "WRONGTYPE") {
		_, err = s.call(ctx, releaseScript, []string{runKey(holder), lockKey(instance), openKey(instance), runsKey(instance)}, holder)
	}
	if err != nil {
		return fmt.Errorf("look whether the instance's lock is to be freed: %w", err)
	}
	return nil
}

// Reopen makes an open run known again where its instance's set of them does not name it.
// beside is the run that took the lock meanwhile, "" if none did.
func (s *Store) Reopen(ctx context.Context, r Record) (beside string, err error) {
	out, err := s.call(ctx, reopenScript, s.keys(r)[:3])
	if err != nil {
		return "", fmt.Errorf("make run %s known again: %w", r.ID, err)
	}
	if out[0] == "beside" {
		beside = out[1]
	}
	return beside, nil
}
