package postgres

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"catalog-backup/worker/stage"
)

// slot is a temporary physical replication slot: the server keeps all WAL from
// its making on, until the connection that made it ends, however it ends.
type slot struct {
	name    string
	holder  *pgconn.PgConn // replication connection: made the slot
	watcher *pgx.Conn      // ordinary connection: sees how it fares
	dir     string         // for messages: the data directory
	segSize int64
	started time.Time // of the server
	restart string    // LSN from which WAL is held
}

// closeConn closes a connection within a second, whatever became of it and of
// the context that it was used under.
func closeConn(c *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx)
}

// holdWAL makes the slot.
func holdWAL(ctx context.Context, cfg *pgx.ConnConfig, run string, f *Facts) (_ *slot, err error) {
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("name the replication slot: %w", err)
	}
	s := &slot{name: slotName(run, hex.EncodeToString(random[:])), dir: f.DataDirectory, segSize: f.WALSegmentSize}
	if s.watcher, err = connect(ctx, cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if s.holder, err = connectReplication(ctx, cfg); err != nil {
		return nil, err
	}
	_, err = s.holder.Exec(ctx, "CREATE_REPLICATION_SLOT "+s.name+" TEMPORARY PHYSICAL RESERVE_WAL").ReadAll()
	if err != nil {
		return nil, slotError(ctx, err)
	}
	err = s.watcher.QueryRow(ctx, "select coalesce(restart_lsn::text, ''), pg_postmaster_start_time() from pg_replication_slots where slot_name = $1", s.name).
		Scan(&s.restart, &s.started)
	if err != nil {
		return nil, queryError(ctx, "the replication slot", err)
	}
	return s, nil
}

func slotError(ctx context.Context, err error) error {
	const what = "make a temporary replication slot"
	if stop := ended(ctx, what); stop != nil {
		return stop
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("%s: %w", what, err)
	}
	switch {
	case pg.Code == "53400":
		return fmt.Errorf("%s: no free slot: %s: drop one that is not needed or raise max_replication_slots", what, pg.Message)
	case pg.Code == "42501":
		return stage.Permanentf("%s: %s: the role needs REPLICATION", what, pg.Message)
	case pg.Code == "55000":
		return stage.Permanentf("%s: %s: set wal_level = 'replica' and restart the server", what, pg.Message)
	}
	return fmt.Errorf("%s: %s (SQLSTATE %s)", what, pg.Message, pg.Code)
}

// release closes both connections; the server drops the slot with the first.
func (s *slot) release() {
	if s.holder != nil {
		closeConn(s.holder)
	}
	if s.watcher != nil {
		closeConn(s.watcher.PgConn())
	}
}

// watch looks after the slot until ctx ends, and calls lost with the reason if
// the WAL is no longer held.
func (s *slot) watch(ctx context.Context, every time.Duration, lost func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.look(ctx); err != nil {
			if ctx.Err() == nil {
				lost(err)
			}
			return
		}
	}
}

// look checks both connections and the slot's own state.
func (s *slot) look(ctx context.Context) error {
	_, held := s.holder.Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if ctx.Err() != nil {
		return nil
	}
	var started time.Time
	if err := s.watcher.QueryRow(ctx, "select pg_postmaster_start_time()").Scan(&started); err != nil {
		if held != nil {
			return fmt.Errorf("hold the WAL: PostgreSQL closed both connections (%s): it was stopped or restarted: a retry begins anew", reason(held))
		}
		return fmt.Errorf("watch the replication slot: PostgreSQL closed the connection: %s", reason(err))
	}
	if held != nil {
		return s.whyGone(ctx, held)
	}
	var state string
	err := s.watcher.QueryRow(ctx, "select coalesce(to_jsonb(s)->>'wal_status', '') from pg_replication_slots s where slot_name = $1", s.name).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) {
		return s.whyGone(ctx, errors.New("the slot is no longer there"))
	}
	if err == nil && state == "lost" {
		return s.limitReached(ctx)
	}
	return nil
}

// whyGone tells a slot that the server gave up for its size from a connection
// that somebody ended.
func (s *slot) whyGone(ctx context.Context, cause error) error {
	var over bool
	err := s.watcher.QueryRow(ctx, `select pg_wal_lsn_diff(pg_current_wal_lsn(), $1::pg_lsn) >= setting::numeric * 1024 * 1024 - $2::bigint
		from pg_settings where name = 'max_slot_wal_keep_size' and setting::bigint >= 0`, s.restart, s.segSize).Scan(&over)
	if err == nil && over {
		return s.limitReached(ctx)
	}
	return fmt.Errorf("hold the WAL: the replication connection was ended by the server (%s): a retry begins anew", reason(cause))
}

func (s *slot) limitReached(ctx context.Context) error {
	limit := "its limit"
	_ = s.watcher.QueryRow(ctx, "select current_setting('max_slot_wal_keep_size')").Scan(&limit)
	return stage.Permanentf("hold the WAL: the server threw away WAL that the backup needs, since max_slot_wal_keep_size (%s) was reached: raise it (ALTER SYSTEM SET max_slot_wal_keep_size = -1 or larger, reload) and run again", limit)
}

// reason is a connection's failure in one line.
func reason(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Message
	}
	return strings.ReplaceAll(plainCause(err), "\n", " ")
}
