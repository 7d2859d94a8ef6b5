package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// blockList writes pgBackRest's list of bad pages, [1,[3,5]], as "1, 3-5".
func blockList(raw json.RawMessage) string {
	var items []json.RawMessage
	if len(raw) == 0 || json.Unmarshal(raw, &items) != nil {
		return "unknown"
	}
	var out []string
	for _, item := range items {
		var one uint64
		var span []uint64
		switch {
		case json.Unmarshal(item, &one) == nil:
			out = append(out, strconv.FormatUint(one, 10))
		case json.Unmarshal(item, &span) == nil && len(span) == 2:
			out = append(out, fmt.Sprintf("%d-%d", span[0], span[1]))
		}
		if len(out) == 100 {
			out = append(out, "…")
			break
		}
	}
	return strings.Join(out, ", ")
}

// namePages finds out which relations the damaged files belong to. It is done as
// well as can be: a file of a database that takes no connection stays unnamed.
func (b *backup) namePages(ctx context.Context, part *set.Postgres) {
	for i := range part.PageErrors {
		if i == 50 {
			return
		}
		e := &part.PageErrors[i]
		db, space, node, ok := relationFile(e.File)
		if !ok {
			continue
		}
		name, err := b.relation(ctx, db, space, node)
		if err == nil {
			e.Relation = name
		}
	}
}

// relationFile takes the path of a relation's file apart: base/DB/NODE,
// global/NODE, pg_tblspc/SPACE/PG_…/DB/NODE, with .N or _fork after NODE.
func relationFile(name string) (db, space, node uint32, ok bool) {
	parts := strings.Split(name, "/")
	number := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 10, 32)
		ok = ok && err == nil
		return uint32(n)
	}
	ok = true
	last := parts[len(parts)-1]
	if i := strings.IndexAny(last, "._"); i > 0 {
		last = last[:i]
	}
	switch {
	case len(parts) == 4 && parts[1] == "base":
		space, db = defaultSpace, number(parts[2])
	case len(parts) == 3 && parts[1] == "global":
		space = globalSpace
	case len(parts) == 5 && parts[0] == "pg_tblspc":
		space, db = number(parts[1]), number(parts[3])
	default:
		return 0, 0, 0, false
	}
	node = number(last)
	return db, space, node, ok
}

// The tablespaces pg_default and pg_global (PostgreSQL, pg_tablespace.dat).
const (
	defaultSpace = 1663
	globalSpace  = 1664
)

func (b *backup) relation(ctx context.Context, db, space, node uint32) (string, error) {
	cfg, err := b.o.parseDSN()
	if err != nil {
		return "", err
	}
	if db != 0 {
		cfg.Database = ""
		for _, d := range b.f.Databases {
			if d.OID == db {
				cfg.Database = d.Name
			}
		}
		if cfg.Database == "" {
			return "", fmt.Errorf("no database %d", db)
		}
	}
	conn, err := connect(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer closeConn(conn.PgConn())
	var schema, relation string
	err = conn.QueryRow(ctx, `select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.oid = pg_filenode_relation($1::oid, $2::oid)`, space, node).Scan(&schema, &relation)
	if err != nil {
		return "", err
	}
	return pgx.Identifier{cfg.Database, schema, relation}.Sanitize(), nil
}

// judgePages makes wrong page checksums a failure, or warnings where allowed.
func (b *backup) judgePages(part *set.Postgres) error {
	var said []string
	for _, e := range part.PageErrors {
		where := e.File
		if e.Relation != "" {
			where = e.Relation + " (" + e.File + ")"
		}
		said = append(said, fmt.Sprintf("%s, blocks %s", where, e.Blocks))
	}
	if len(said) == 0 {
		return nil
	}
	if b.o.AllowCorruptPages {
		for _, s := range said {
			b.found.Warn("wrong page checksum in %s", s)
		}
		return nil
	}
	if len(said) > 10 {
		said = append(said[:10], fmt.Sprintf("and %d more files", len(part.PageErrors)-10))
	}
	return stage.Permanentf("wrong page checksum in %s: the database itself is damaged: repair the relation (REINDEX for an index, else from an older backup), or set postgres.allow_corrupt_pages to keep this backup all the same", strings.Join(said, "; "))
}
