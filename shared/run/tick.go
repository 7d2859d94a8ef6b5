package run

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// OfTick is the id of the run that a tick opened, "" if it has opened none.
func (s *Store) OfTick(ctx context.Context, instance, tick string) (string, error) {
	id, err := s.rdb.Get(ctx, tickKey(instance, tick)).Result()
	if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "WRONGTYPE") { // start drops the latter
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the run of a tick: %w", err)
	}
	return id, nil
}
