package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"

	"catalog-backup/shared/set"
)

// walScan reads the stored segments of a backup into its history.
type walScan struct {
	part    *set.Postgres
	history *walHistory
	inflate *decompressor
}

func newWALScan(p *set.Postgres) (*walScan, error) {
	h, err := newWALHistory(p)
	if err != nil {
		return nil, err
	}
	return &walScan{part: p, history: h, inflate: &decompressor{kind: p.CompressType}}, nil
}

func (s *walScan) close() { s.inflate.close() }

// segment reads one segment as it is stored.
func (s *walScan) segment(name string, stored io.Reader) error {
	seg, err := parseSegment(name, s.part.WALSegmentSize)
	if err != nil {
		return err
	}
	content, err := s.inflate.open(stored, false)
	if err != nil {
		return fmt.Errorf("not readable as %s: %w", s.part.CompressType, err)
	}
	check := checkerOf(s.part, seg)
	check.records = s.history.reader(seg.number)
	n, err := io.Copy(check, io.LimitReader(content, s.part.WALSegmentSize+1))
	switch {
	case err != nil:
		return err
	case n != s.part.WALSegmentSize:
		return fmt.Errorf("it has not the %d bytes of a segment", s.part.WALSegmentSize)
	case check.problem != "":
		return errors.New(check.problem)
	}
	s.history.take(check.records)
	return nil
}

// checkerOf checks a segment of a backup.
func checkerOf(p *set.Postgres, seg segment) *walChecker {
	c := &walChecker{segment: seg, size: p.WALSegmentSize, major: p.ServerVersionNum / 10000}
	_, _ = fmt.Sscan(p.SystemIdentifier, &c.systemID)
	return c
}

// segmentOf is where in the archive the segment with an address is, as far as is known.
func (h *walHistory) segmentOf(p *set.Postgres, lsn uint64) string {
	index := lsn/uint64(h.size) - h.first
	if index < uint64(len(p.WAL)) {
		return set.PostgresRepo + p.WAL[index].Path
	}
	return set.PostgresRepo + "archive"
}

// say tells an event in words; name is its name where that is known.
func (e walEvent) say(name string) string {
	who := fmt.Sprint(e.oid)
	if name != "" {
		who = fmt.Sprintf("%q (%d)", name, e.oid)
	}
	switch e.kind {
	case databaseCopied:
		return fmt.Sprintf("database %s was made by copying the files of database %d (WAL %s)", who, e.source, lsnText(e.at))
	case tablespaceDropped:
		return fmt.Sprintf("tablespace %s was dropped (WAL %s)", who, lsnText(e.at))
	}
	if e.location == "" {
		return fmt.Sprintf("tablespace %s was made within the data directory (WAL %s)", who, lsnText(e.at))
	}
	return fmt.Sprintf("tablespace %s was made at %q (WAL %s)", who, e.location, lsnText(e.at))
}

// meaning is what an event means for a restored server.
func (e walEvent) meaning() string {
	switch {
	case e.kind == databaseCopied:
		return ": pages of the restored copy may be torn, or newer than they were"
	case e.kind == tablespaceDropped:
		return ": recovery removes it, although the set lists it"
	case e.location == "":
		return ": recovery refuses it without allow_in_place_tablespaces"
	}
	return ": recovery makes it there again, outside of the target; on the original's host it would write into the original's files"
}

// judgeHistory fails an attempt whose WAL would not bring back what was there. It may
// pass: the next attempt starts behind those records.
func (b *backup) judgeHistory(ctx context.Context, h *walHistory) error {
	if h.problem != "" {
		return fmt.Errorf("check the WAL of the backup: %s: a restored server would never get there: a retry begins anew", h.problem)
	}
	if len(h.events) == 0 {
		return nil
	}
	const most = 5
	var said []string
	for _, e := range h.events[:min(most, len(h.events))] {
		said = append(said, e.say(b.eventName(ctx, e)))
	}
	if more := len(h.events) + h.more - len(said); more > 0 {
		said = append(said, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("check the WAL of the backup: while pgBackRest copied, %s; a restored server would not be what was there (PostgreSQL's caveats of base backups): a retry begins anew; let no installer make or drop tablespaces or copy databases while a backup runs", strings.Join(said, "; "))
}

// eventName asks the server for the name, which it may not know any more.
func (b *backup) eventName(ctx context.Context, e walEvent) string {
	query := "select spcname from pg_tablespace where oid = $1"
	if e.kind == databaseCopied {
		query = "select datname from pg_database where oid = $1"
	}
	cfg, err := b.o.parseDSN()
	if err != nil {
		return ""
	}
	var conn *pgx.Conn
	if conn, err = connect(ctx, cfg); err != nil {
		return ""
	}
	defer closeConn(conn.PgConn())
	var name string
	_ = conn.QueryRow(ctx, query, e.oid).Scan(&name)
	return name
}
