package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// minServer is the first PostgreSQL with temporary replication slots.
const minServer = 100000

// readServer asks the server for everything that SQL tells, and refuses what
// cannot work.
func (f *Facts) readServer(ctx context.Context, c *pgx.Conn, cfg *pgx.ConnConfig, o Options, found *stage.Findings) error {
	if err := f.readIdentity(ctx, c); err != nil {
		return err
	}
	if err := f.checkRights(ctx, c, cfg.User); err != nil {
		return err
	}
	if err := endLeftSlots(ctx, c, o, found); err != nil { // they may be what there is no room for
		return err
	}
	if err := f.checkRoom(ctx, c); err != nil {
		return err
	}
	if err := f.readSettings(ctx, c); err != nil {
		return err
	}
	if err := f.readContents(ctx, c); err != nil {
		return err
	}
	return f.readOrigin(ctx, c)
}

func (f *Facts) readIdentity(ctx context.Context, c *pgx.Conn) error {
	var standby bool
	var id int64
	err := c.QueryRow(ctx, `select current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(),
		current_setting('wal_level'), current_setting('data_checksums') = 'on', current_setting('block_size')::bigint, current_setting('port')::int`).
		Scan(&f.Version, &f.VersionNum, &standby, &f.WALLevel, &f.DataChecksums, &f.BlockSize, &f.Port)
	if err != nil {
		return queryError(ctx, "the server's identity", err)
	}
	f.Version, _, _ = strings.Cut(f.Version, " ")
	switch {
	case f.VersionNum < minServer:
		return stage.Permanentf("PostgreSQL %s is too old: at least 10 is needed: upgrade it", f.Version)
	case standby:
		return stage.Permanentf("PostgreSQL at port %d is a standby: a backup is taken from the primary: correct postgres.dsn, or promote it", f.Port)
	case f.WALLevel == "minimal":
		return stage.Permanentf("wal_level is minimal, which allows no online backup: ALTER SYSTEM SET wal_level = 'replica' and restart the server")
	}
	if err := c.QueryRow(ctx, `select system_identifier from pg_control_system()`).Scan(&id); err != nil {
		return queryError(ctx, "the system identifier", err)
	}
	f.SystemIdentifier = uint64(id)
	return nil
}

// checkRights wants REPLICATION, and for the backup itself a superuser or the
// rights that stand for it.
func (f *Facts) checkRights(ctx context.Context, c *pgx.Conn, role string) error {
	var super, replication, settings bool
	err := c.QueryRow(ctx, `select rolsuper, rolreplication, rolsuper or pg_has_role(oid, 'pg_read_all_settings', 'usage') from pg_roles where rolname = current_user`).
		Scan(&super, &replication, &settings)
	if err != nil {
		return queryError(ctx, "the role's rights", err)
	}
	name := pgx.Identifier{role}.Sanitize()
	if !super && !replication {
		return stage.Permanentf("role %s may not replicate, which holding the WAL needs: ALTER ROLE %s REPLICATION", role, name)
	}
	if super {
		return nil
	}
	if !settings {
		return stage.Permanentf("role %s may not read the server's settings: GRANT pg_read_all_settings TO %s, or use a superuser", role, name)
	}
	begin := "pg_backup_start(text,boolean)"
	if f.VersionNum < 150000 {
		begin = "pg_start_backup(text,boolean,boolean)"
	}
	var may bool
	if err := c.QueryRow(ctx, `select has_function_privilege($1, 'execute')`, begin).Scan(&may); err != nil {
		return queryError(ctx, "the role's rights", err)
	}
	if !may {
		return stage.Permanentf("role %s may not take a backup: use a superuser in postgres.dsn, or grant it EXECUTE on the backup functions", role)
	}
	return nil
}

// checkRoom wants a free slot and a free sender. None configured is permanent,
// all in use may pass.
func (f *Facts) checkRoom(ctx context.Context, c *pgx.Conn) error {
	var slots, slotsUsed, senders, sendersUsed int
	err := c.QueryRow(ctx, `select current_setting('max_replication_slots')::int, (select count(*) from pg_replication_slots),
		current_setting('max_wal_senders')::int, (select count(*) from pg_stat_get_wal_senders())`).
		Scan(&slots, &slotsUsed, &senders, &sendersUsed)
	if err != nil {
		return queryError(ctx, "free slots and senders", err)
	}
	switch {
	case slots == 0:
		return stage.Permanentf("the server allows no replication slot: ALTER SYSTEM SET max_replication_slots = 10 and restart it")
	case senders == 0:
		return stage.Permanentf("the server allows no WAL sender: ALTER SYSTEM SET max_wal_senders = 10 and restart it")
	case slotsUsed >= slots:
		return fmt.Errorf("no free replication slot: all %d are in use: drop one that is not needed (pg_drop_replication_slot) or raise max_replication_slots", slots)
	case sendersUsed >= senders:
		return fmt.Errorf("no free WAL sender: all %d are in use: end a replication connection or raise max_wal_senders", senders)
	}
	return nil
}

func (f *Facts) readSettings(ctx context.Context, c *pgx.Conn) error {
	var sockets string
	err := c.QueryRow(ctx, `select current_setting('data_directory'), current_setting('unix_socket_directories'),
		(select setting::bigint * case unit when 'B' then 1 when '8kB' then 8192 else 1048576 end from pg_settings where name = 'wal_segment_size')`).
		Scan(&f.DataDirectory, &sockets, &f.WALSegmentSize)
	if err != nil {
		return queryError(ctx, "the server's settings", err)
	}
	if !validSegmentSize(f.WALSegmentSize) {
		return stage.Permanentf("the server says a WAL segment size of %d bytes, which is none: is it a PostgreSQL of its own kind?", f.WALSegmentSize)
	}
	// The same as in pg_control: the server writes them there at its start, and they
	// cannot change while it runs.
	f.Limits = map[string]int{}
	rows, err := c.Query(ctx, `select name, setting::int from pg_settings where name in
		('max_connections', 'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction')`)
	if err != nil {
		return queryError(ctx, "the server's limits", err)
	}
	var name string
	var value int
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { f.Limits[name] = value; return nil }); err != nil {
		return queryError(ctx, "the server's limits", err)
	}
	if err := c.QueryRow(ctx, "select current_setting('track_commit_timestamp') = 'on'").Scan(&f.CommitTimes); err != nil {
		return queryError(ctx, "track_commit_timestamp", err)
	}
	if err := f.readInForce(ctx, c); err != nil {
		return err
	}
	return f.findSocket(sockets)
}

// findSocket picks the socket directory in which the server's socket is seen
// from here.
func (f *Facts) findSocket(list string) error {
	for _, dir := range strings.Split(list, ",") {
		dir = strings.Trim(strings.TrimSpace(dir), `"`)
		if !filepath.IsAbs(dir) {
			continue
		}
		st, err := os.Stat(filepath.Join(dir, fmt.Sprintf(".s.PGSQL.%d", f.Port)))
		if err == nil && st.Mode()&os.ModeSocket != 0 {
			f.SocketDir = dir
			return nil
		}
	}
	return stage.Permanentf("the server has no unix socket for port %d on this host (unix_socket_directories = '%s'): run the worker where the server runs, and set unix_socket_directories", f.Port, list)
}

func (f *Facts) readContents(ctx context.Context, c *pgx.Conn) error {
	provider := "'c'"
	if f.VersionNum >= 150000 {
		provider = "datlocprovider::text"
	}
	rows, err := c.Query(ctx, `select oid, datname, pg_encoding_to_char(encoding), coalesce(pg_database_size(oid), 0), `+provider+`, coalesce(datcollate::text, ''), coalesce(datctype::text, ''), not datallowconn from pg_database order by oid`)
	if err != nil {
		return queryError(ctx, "the databases", err)
	}
	f.Databases = nil
	var d set.Database
	if _, err = pgx.ForEachRow(rows, []any{&d.OID, &d.Name, &d.Encoding, &d.Size, &d.Provider, &d.Collate, &d.Ctype, &d.Closed}, func() error {
		f.Databases = append(f.Databases, d)
		return nil
	}); err != nil {
		return queryError(ctx, "the databases", err)
	}
	rows, err = c.Query(ctx, `select oid, spcname, pg_tablespace_location(oid), coalesce(pg_tablespace_size(oid), 0) from pg_tablespace order by oid`)
	if err != nil {
		return queryError(ctx, "the tablespaces", err)
	}
	f.Tablespaces, f.Size = nil, 0
	var t set.Tablespace
	var size int64
	if _, err = pgx.ForEachRow(rows, []any{&t.OID, &t.Name, &t.Location, &size}, func() error {
		f.Size += size
		if t.Location != "" {
			f.Tablespaces = append(f.Tablespaces, t)
		}
		return nil
	}); err != nil {
		return queryError(ctx, "the tablespaces", err)
	}
	return nil
}

func queryError(ctx context.Context, what string, err error) error {
	if stop := ended(ctx, "ask PostgreSQL for "+what); stop != nil {
		return stop
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return stage.Permanentf("ask PostgreSQL for %s: %s: use a superuser in postgres.dsn, or GRANT pg_monitor to its role", what, pg.Message)
	}
	return fmt.Errorf("ask PostgreSQL for %s: %w", what, err)
}

// checkDataDirectory makes sure that the directory the server names is its own
// and on this host, and finds its owner.
func (f *Facts) checkDataDirectory() error {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(f.DataDirectory, "PG_VERSION"), &st); err != nil {
		if err == unix.EACCES {
			return stage.Permanentf("look at the data directory %s: not permitted: run the worker as root or as the account that runs PostgreSQL", f.DataDirectory)
		}
		return stage.Permanentf("look at the data directory %s: %w: the server's files must be on this host: run the worker where the server runs", f.DataDirectory, err)
	}
	f.OwnerUID, f.OwnerGID = st.Uid, st.Gid
	f.OwnerName = accountName(st.Uid)
	control, err := os.Open(filepath.Join(f.DataDirectory, "global", "pg_control"))
	if err != nil {
		return stage.Permanentf("read the data directory's identity: %w: run the worker as root or as the account that runs PostgreSQL", err)
	}
	defer control.Close()
	// ControlFileData begins with the system identifier, in the machine's byte
	// order (PostgreSQL, src/include/catalog/pg_control.h).
	var head [8]byte
	if _, err := control.ReadAt(head[:], 0); err != nil {
		return fmt.Errorf("read the data directory's identity in %s: %w", control.Name(), err)
	}
	if id := binary.NativeEndian.Uint64(head[:]); id != f.SystemIdentifier {
		return stage.Permanentf("data directory %s belongs to another cluster (system identifier %d, the server's is %d): run the worker on the server's host, or correct postgres.dsn", f.DataDirectory, id, f.SystemIdentifier)
	}
	if !asRoot() && os.Geteuid() != int(f.OwnerUID) {
		return stage.Permanentf("the data directory %s belongs to %s: run the worker as root or as %s", f.DataDirectory, f.ownerName(), f.ownerName())
	}
	return nil
}
