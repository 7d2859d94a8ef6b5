package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

// spareSpace is what a repository takes besides the data: WAL and manifests.
const spareSpace = 64 << 20

// Preflight finds out everything that Backup needs and refuses, with the
// remedy, what cannot work. It changes nothing, but for the slots of runs that are over
// (Options.RunOver), which it ends.
func Preflight(ctx context.Context, o Options, w Work) (*Facts, stage.Findings, error) {
	var found stage.Findings
	if err := o.check(); err != nil {
		return nil, found, err
	}
	cfg, err := o.parseDSN()
	if err != nil {
		return nil, found, err
	}
	f := &Facts{}
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, found, err
	}
	defer closeConn(conn.PgConn())
	if err := f.readServer(ctx, conn, cfg, o, &found); err != nil {
		return nil, found, err
	}
	if err := f.checkDataDirectory(); err != nil {
		return nil, found, err
	}
	if f.Config, err = outsideConfig(ctx, conn, f, &found); err != nil {
		return nil, found, err
	}
	if err := f.checkReplication(ctx, cfg); err != nil {
		return nil, found, err
	}
	if err := f.findSocketRole(ctx, cfg); err != nil {
		return nil, found, err
	}
	if err := f.findPgBackRest(ctx, o); err != nil {
		return nil, found, err
	}
	if err := f.checkWork(w); err != nil {
		return nil, found, err
	}
	if !f.DataChecksums {
		found.Note("data checksums are off: a corrupt page cannot be noticed in the backup")
	}
	return f, found, nil
}

// checkReplication opens the connection that will hold the WAL, and closes it.
func (f *Facts) checkReplication(ctx context.Context, cfg *pgx.ConnConfig) error {
	conn, err := connectReplication(ctx, cfg)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	res, err := conn.Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if err != nil || len(res) == 0 || len(res[0].Rows) == 0 {
		return queryError(ctx, "its identity on the replication connection", errors.Join(err, errors.New("no answer")))
	}
	if id := string(res[0].Rows[0][0]); id != strconv.FormatUint(f.SystemIdentifier, 10) {
		return stage.Permanentf("the replication connection leads to another cluster (system identifier %s): correct postgres.dsn", id)
	}
	return nil
}

// connectReplication opens a physical replication connection.
func connectReplication(ctx context.Context, cfg *pgx.ConnConfig) (*pgconn.PgConn, error) {
	rc := replicationConfig(cfg)
	var conn *pgconn.PgConn
	err := withSocketAccount(rc, func() (err error) {
		conn, err = pgconn.ConnectConfig(ctx, rc)
		return err
	})
	if err == nil {
		return conn, nil
	}
	var pg *pgconn.PgError
	where := fmt.Sprintf("open a replication connection as %s", cfg.User)
	switch {
	case errors.As(err, &pg) && strings.HasPrefix(pg.Code, "28"):
		return nil, stage.Permanentf("%s: refused: %s: let it in with this line in pg_hba.conf and a reload: %s", where, pg.Message, hbaLineFor(rc, "replication"))
	case errors.As(err, &pg) && pg.Code == "42501":
		return nil, stage.Permanentf("%s: %s: ALTER ROLE %s REPLICATION", where, pg.Message, pgx.Identifier{cfg.User}.Sanitize())
	case errors.As(err, &pg) && pg.Code == "53300":
		return nil, fmt.Errorf("%s: no free WAL sender: %s: end a replication connection or raise max_wal_senders", where, pg.Message)
	}
	return nil, connectError(ctx, rc, err)
}

// findSocketRole finds the role with which pgBackRest, running as the owner of
// the data directory, gets in by the local socket: the DSN's own, without and
// with its password, else the one named like the owner (Debian's peer line).
func (f *Facts) findSocketRole(ctx context.Context, cfg *pgx.ConnConfig) error {
	f.Database = cfg.Database
	if f.Database == "" {
		f.Database = cfg.User
	}
	type candidate struct {
		role, password string
	}
	tries := []candidate{{cfg.User, ""}}
	if cfg.Password != "" {
		tries = append(tries, candidate{cfg.User, cfg.Password})
	}
	if f.OwnerName != "" && f.OwnerName != cfg.User {
		tries = append(tries, candidate{f.OwnerName, ""})
	}
	var first error
	for _, t := range tries {
		err := f.trySocket(ctx, cfg, t.role, t.password)
		if err == nil {
			f.Role, f.Password = t.role, t.password != ""
			return nil
		}
		if first == nil {
			first = err
		}
	}
	if stop := ended(ctx, "connect by the local socket"); stop != nil {
		return stop
	}
	var pg *pgconn.PgError
	if errors.As(first, &pg) && strings.HasPrefix(pg.Code, "28") {
		return stage.Permanentf("connect by the socket in %s as role %s from the account %s, as pgBackRest will: refused: %s: let it in with this line in pg_hba.conf and a reload: %s",
			f.SocketDir, cfg.User, f.ownerName(), pg.Message, hbaLine("all", cfg.User))
	}
	return fmt.Errorf("connect by the socket in %s as role %s, as pgBackRest will: %s", f.SocketDir, cfg.User, plainCause(first))
}

func (f *Facts) trySocket(ctx context.Context, cfg *pgx.ConnConfig, role, password string) error {
	c := cfg.Copy()
	c.Host, c.Port, c.User, c.Password = f.SocketDir, uint16(f.Port), role, password
	c.TLSConfig, c.Fallbacks = nil, nil
	dial := func() error {
		conn, err := pgx.ConnectConfig(ctx, c)
		if err != nil {
			return err
		}
		defer closeConn(conn.PgConn())
		var super bool
		if err := conn.QueryRow(ctx, "select rolsuper from pg_roles where rolname = current_user").Scan(&super); err != nil {
			return err
		}
		if role != cfg.User && !super {
			return fmt.Errorf("role %s is no superuser", role)
		}
		return nil
	}
	if asRoot() && f.OwnerUID != 0 {
		c.DialFunc = dialAs(f.OwnerUID, f.OwnerGID, nil)
	}
	return dial()
}

func (f *Facts) findPgBackRest(ctx context.Context, o Options) error {
	path, err := findTool(o.PgBackRest)
	if err != nil {
		return err
	}
	t := &tool{path: path, runner: o.Runner, credential: credentialOf(f.OwnerUID, f.OwnerGID), env: childEnv(accountHome(f.OwnerUID))}
	text, have, err := t.version(ctx)
	if err != nil {
		return err
	}
	if err := checkVersion(have, f.Major()); err != nil {
		return err
	}
	f.PgBackRest, f.PgBackRestVersion = path, text
	f.CompressType, err = t.compressType(ctx, o.CompressType)
	return err
}

// checkWork looks at the place the repository will take: can the owner of the
// cluster get there, and is there room.
func (f *Facts) checkWork(w Work) error {
	if !filepath.IsAbs(w.Repo) || !plainPath(w.Repo) || !plainPath(f.DataDirectory) || !plainPath(f.SocketDir) {
		return stage.Permanentf("%s, %s or %s has characters that pgBackRest's configuration cannot hold: use plain absolute paths", w.Repo, f.DataDirectory, f.SocketDir)
	}
	if asRoot() && f.OwnerUID != 0 {
		if blocked := notEnterable(filepath.Dir(w.Repo), f.OwnerUID, f.OwnerGID); blocked != "" {
			return stage.Permanentf("the account %s, which runs PostgreSQL and pgBackRest, cannot enter %s: chmod o+x %s", f.ownerName(), blocked, blocked)
		}
	}
	// Measured ratios are 3 for zst and gz and 2.2 for lz4; data that is compressed
	// already takes more, and then the disk's own refusal is the word.
	switch f.CompressType {
	case "none":
		f.SpaceNeeded = f.Size
	case "lz4":
		f.SpaceNeeded = f.Size / 5 * 2
	default:
		f.SpaceNeeded = f.Size / 3
	}
	f.SpaceNeeded += spareSpace
	dir := w.Repo
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at the free space of %s: %w", dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < f.SpaceNeeded {
		return stage.Permanentf("%s has %d MB free, the repository will need some %d MB: make room there or move alation.backup.data_dump_dir", dir, free>>20, f.SpaceNeeded>>20)
	}
	return nil
}

// plainPath tells whether a path can stand in pgBackRest's configuration, whose
// values are trimmed and end at the line's end.
func plainPath(p string) bool {
	return p == strings.TrimSpace(p) && filepath.Clean(p) == p && !strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// notEnterable gives the topmost directory on the way to dir that an account
// may not enter, "" if it may enter all.
func notEnterable(dir string, uid, gid uint32) string {
	groups := map[uint32]bool{gid: true}
	if c := credentialOf(uid, gid); c != nil {
		for _, g := range c.Groups {
			groups[g] = true
		}
	}
	blocked := ""
	for d := dir; ; d = filepath.Dir(d) {
		var st unix.Stat_t
		if unix.Stat(d, &st) == nil && !mayEnter(d, &st, uid, groups) {
			blocked = d
		}
		if d == "/" || d == "." {
			return blocked
		}
	}
}

func mayEnter(dir string, st *unix.Stat_t, uid uint32, groups map[uint32]bool) bool {
	switch {
	case uid == 0:
		return true
	case st.Uid == uid:
		return st.Mode&0o100 != 0
	case groups[st.Gid] && st.Mode&0o010 != 0, st.Mode&0o001 != 0 && !groups[st.Gid]:
		return true
	}
	// An access control list may say otherwise; then the tool's own word counts.
	n, err := unix.Getxattr(dir, "system.posix_acl_access", nil)
	return err == nil && n > 0
}

func accountName(uid uint32) string {
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		return u.Username
	}
	return ""
}

func accountHome(uid uint32) string {
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		return u.HomeDir
	}
	return ""
}
