package sample

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// LiveTable is the table that Writer writes while the backup runs.
const LiveTable = "public.activity"

// Database is where most of the sample's tables are.
const Database = "catalog"

// Connect opens a connection to a database of the server that dsn reaches.
func Connect(ctx context.Context, dsn, database string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.Database = database
	cfg.ConnectTimeout = 10 * time.Second
	return pgx.ConnectConfig(ctx, cfg)
}

// Fill makes databases, roles, a tablespace (in a directory that belongs to the
// server's user) and rows: some 150 MB in a few seconds.
func Fill(ctx context.Context, dsn, tablespace string) error {
	first := []string{
		`create role catalog_reader`,
		`create role catalog_app login connection limit 20`,
		`create tablespace history location ` + literal(tablespace),
		`create database catalog`,
		`create database analytics tablespace history`,
		`create database legende encoding 'LATIN1' locale 'C' template template0`,
		`alter database catalog set work_mem = '8MB'`,
	}
	steps := []struct {
		database   string
		statements []string
	}{
		{"postgres", first},
		{Database, catalogStatements},
		{"analytics", []string{
			`create table facts as select i, i % 97 as k, md5(i::text) as h from generate_series(1, 120000) i`,
			`create unique index on facts (i)`,
			`create materialized view per_key as select k, count(*) from facts group by k`,
		}},
		{"legende", []string{
			`create table mots as select i, chr(224 + i % 30) || 'té ' || i as mot from generate_series(1, 2000) i`,
		}},
	}
	for _, s := range steps {
		if err := execute(ctx, dsn, s.database, s.statements); err != nil {
			return err
		}
	}
	return nil
}

func execute(ctx context.Context, dsn, database string, statements []string) error {
	c, err := Connect(ctx, dsn, database)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	for _, s := range statements {
		if _, err := c.Exec(ctx, s); err != nil {
			return fmt.Errorf("fill database %s: %.60s…: %w", database, s, err)
		}
	}
	return nil
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// catalogStatements: text, numbers, JSON, arrays, every kind of index, a partitioned and
// an unlogged table, large objects, and rows that went through updates and deletes.
var catalogStatements = []string{
	`create type kind as enum ('table', 'column', 'query')`,
	`create table article (id bigint primary key, kind kind not null, title text not null, body text, tags text[], changed timestamptz)`,
	`insert into article select i, (array['table', 'column', 'query'])[1 + i % 3]::kind, 'article ' || md5(i::text),
	   (select string_agg(md5((i * 31 + j)::text) || ' the catalog says so ', '') from generate_series(1, 6 + i % 20) j),
	   array['t' || i % 50, 'u' || i % 7], timestamptz '2024-01-01 00:00Z' + i * interval '37 seconds'
	 from generate_series(1, 40000) i`,
	`create index article_title on article (title)`,
	`create index article_tags on article using gin (tags)`,
	`create index article_changed on article using brin (changed)`,
	`create index article_body on article using gin (to_tsvector('simple', left(body, 200)))`,
	`create table audit (id bigint, at timestamp, body jsonb) partition by range (id)`,
	`create table audit_low partition of audit for values from (0) to (60000)`,
	`create table audit_high partition of audit for values from (60000) to (maxvalue) tablespace history`,
	`insert into audit select i, timestamp '2024-01-01' + i * interval '7 seconds',
	   jsonb_build_object('event', (array['create', 'update', 'view'])[1 + i % 3], 'actor', jsonb_build_object('id', i % 400, 'mail', md5((i % 400)::text) || '@example.com'),
	     'oid', i * 7919 % 1000003, 'path', array['a', 'b', i::text])
	 from generate_series(1, 120000) i`,
	`create index audit_body on audit using gin (body jsonb_path_ops)`,
	`create table attribute (id int primary key, article bigint references article, name text, score numeric(18, 4), wide bytea, nothing text)`,
	`insert into attribute select i, 1 + i % 40000, 'name ' || i, i / 7.0, case when i % 500 = 0 then decode(repeat(md5(i::text), 400), 'hex') end from generate_series(1, 150000) i`,
	`update attribute set score = score + 1 where id % 11 = 0`,
	`delete from attribute where id % 13 = 0`,
	`create sequence ticket start 1000 increment 5`,
	`select nextval('ticket') from generate_series(1, 10)`,
	`create unlogged table cache as select i, 'gone after a crash' as note from generate_series(1, 5000) i`,
	`create view recent as select id, title from article where changed > timestamptz '2024-01-10 00:00Z'`,
	`grant select on article, recent to catalog_reader`,
	`create table empty (a int, b text)`,
	`select lo_from_bytea(0, decode(repeat(md5(i::text), 1000 + i), 'hex')) from generate_series(1, 40) i`,
	`comment on table article is 'it''s "quoted" — and not ASCII'`,
	`create table ` + LiveTable + ` (id bigint primary key, at timestamptz default clock_timestamp(), what text)`,
	`checkpoint`,
}

// Rows describes every table of every database: its rows and the hash of them in their
// order, the large objects of a database too. Unlogged tables and the live one are left
// out; count is the number of rows.
func Rows(ctx context.Context, dsn string) (tables map[string]string, count int64, err error) {
	databases, err := column(ctx, dsn, "postgres", `select datname from pg_database where datallowconn and datname <> 'template1' order by 1`)
	if err != nil {
		return nil, 0, err
	}
	tables = map[string]string{}
	for _, db := range databases {
		n, err := rowsOf(ctx, dsn, db, tables)
		if err != nil {
			return nil, 0, fmt.Errorf("read the rows of database %s: %w", db, err)
		}
		count += n
	}
	return tables, count, nil
}

func rowsOf(ctx context.Context, dsn, database string, tables map[string]string) (int64, error) {
	names, err := column(ctx, dsn, database, `select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
	  where c.relkind in ('r', 'm') and c.relpersistence = 'p' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' order by 1`)
	if err != nil {
		return 0, err
	}
	c, err := Connect(ctx, dsn, database)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	var total int64
	for _, name := range names {
		if name == LiveTable {
			continue
		}
		n, hash, err := hashOf(ctx, c, name, "true")
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		tables[database+"."+name] = fmt.Sprintf("%d rows, hash %s", n, hash)
		total += n
	}
	var objects int64
	var hash string
	err = c.QueryRow(ctx, `select count(*), coalesce(md5(string_agg(oid || ':' || md5(lo_get(oid)), ',' order by oid)), 'none') from pg_largeobject_metadata`).Scan(&objects, &hash)
	if err != nil {
		return 0, fmt.Errorf("large objects: %w", err)
	}
	tables[database+" large objects"] = fmt.Sprintf("%d, hash %s", objects, hash)
	return total, nil
}

// hashOf reads all rows of a table in their order on disk, which a physical backup keeps.
func hashOf(ctx context.Context, c *pgx.Conn, table, where string) (n int64, hash string, err error) {
	// Text output of timestamps depends on the session.
	if _, err := c.Exec(ctx, `set timezone = 'UTC'; set bytea_output = 'hex'; set extra_float_digits = 3`); err != nil {
		return 0, "", err
	}
	err = c.QueryRow(ctx, `select count(*), coalesce(md5(string_agg(h, '' order by place)), 'none') from (select ctid as place, md5(t::text) as h from only `+
		table+` t where `+where+`) s`).Scan(&n, &hash)
	return n, hash, err
}

// LiveRows tells how many rows the live table holds, and the hash of its first `upTo`
// (0: of all). A hole in the sequence 1, 2, 3 … is an error.
func LiveRows(ctx context.Context, dsn string, upTo int64) (n int64, hash string, err error) {
	c, err := Connect(ctx, dsn, Database)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	where := "true"
	if upTo > 0 {
		where = fmt.Sprintf("id <= %d", upTo)
	}
	if n, hash, err = hashOf(ctx, c, LiveTable, where); err != nil {
		return 0, "", err
	}
	var low, high int64
	if err := c.QueryRow(ctx, `select coalesce(min(id), 1), coalesce(max(id), 0) from `+LiveTable+` where `+where).Scan(&low, &high); err != nil {
		return 0, "", err
	}
	if low != 1 || high != n {
		return 0, "", fmt.Errorf("%s has a hole: %d rows from %d to %d", LiveTable, n, low, high)
	}
	return n, hash, nil
}

// UnloggedRows counts the rows of the sample's unlogged table.
func UnloggedRows(ctx context.Context, dsn string) (string, error) {
	rows, err := column(ctx, dsn, Database, `select count(*)::text from cache`)
	if err != nil {
		return "", err
	}
	return rows[0], nil
}

func column(ctx context.Context, dsn, database, query string) ([]string, error) {
	c, err := Connect(ctx, dsn, database)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	rows, err := c.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Writer writes on while a backup runs: row n is committed, then event n is published.
type Writer struct {
	committed, published atomic.Int64
	stop                 context.CancelFunc
	done                 chan struct{}
	err                  error
}

// StartWriter writes a row and an event every `every` until Stop.
func StartWriter(ctx context.Context, dsn string, publish func(context.Context, int64) error, every time.Duration) (*Writer, error) {
	c, err := Connect(ctx, dsn, Database)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	w := &Writer{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := int64(1); ctx.Err() == nil; n++ {
			whole := context.WithoutCancel(ctx) // a row and its event belong together
			if _, w.err = c.Exec(whole, `insert into `+LiveTable+` (id, what) values ($1, $2)`, n, fmt.Sprintf("activity %d", n)); w.err != nil {
				return
			}
			w.committed.Store(n)
			if w.err = publish(whole, n); w.err != nil {
				return
			}
			w.published.Store(n)
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
	return w, nil
}

// Committed is the number of rows that are in for certain.
func (w *Writer) Committed() int64 { return w.committed.Load() }

// Published is the number of events that are in for certain.
func (w *Writer) Published() int64 { return w.published.Load() }

// Stop ends the writing and tells what went wrong with it.
func (w *Writer) Stop() error {
	w.stop()
	<-w.done
	return w.err
}
