package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"catalog-backup/shared/set"
)

// Looking again is bounded, and so is looking into every database, in all and for
// each: there may be thousands (60 s are enough for some 3000), and locks on their
// catalogs.
const (
	againTime   = 5 * time.Minute // sizes are measured file by file
	lookTime    = 60 * time.Second
	lookTimeOne = 5 * time.Second
)

// namedDatabases is how many databases are told of each thing that they need.
const namedDatabases = 10

// firstMade is the first oid that initdb does not give: FirstNormalObjectId
// (PostgreSQL, src/include/access/transam.h).
const firstMade = 16384

// needsQuery asks one database, as kind, name and what more there is to say. initdb
// copies the locales of its host into pg_collation; pg_depend tells which are used.
var needsQuery = fmt.Sprintf(`
select distinct 'locale', l::text, '' from pg_catalog.pg_collation c, unnest(array[c.collcollate::text, c.collctype::text]) l
 where c.collprovider = 'c' and l is not null and (c.oid >= %[1]d
   or exists (select from pg_catalog.pg_depend d where d.refclassid = 'pg_catalog.pg_collation'::regclass and d.refobjid = c.oid))
union all select 'extension', extname::text, extversion from pg_catalog.pg_extension where oid >= %[1]d
union all select distinct 'library', p.probin::text, coalesce(e.extname::text, '') from pg_catalog.pg_proc p
 join pg_catalog.pg_language l on l.oid = p.prolang and l.lanname = 'c'
 left join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
 left join pg_catalog.pg_extension e on e.oid = d.refobjid
 where p.oid >= %[1]d and p.probin is not null
union all select 'dictionary', t.dictname::text, '' from pg_catalog.pg_ts_dict t
 where t.oid >= %[1]d and t.dictinitoption ~* '(file|stopwords|synonyms|rules)\s*='
   and not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_ts_dict'::regclass and d.objid = t.oid and d.deptype = 'e')
union all select 'unlogged', count(*)::text, '' from pg_catalog.pg_class where relpersistence = 'u' and relkind = 'r' having count(*) > 0`, firstMade)

// look asks the server, now that the copy is made, for what may have changed since
// Preflight, and every database for what it needs of its host. The backup stands
// whatever comes of it: a failure is a note.
func (b *backup) look(ctx context.Context, part *set.Postgres) {
	cfg, err := b.o.parseDSN()
	if err == nil {
		err = b.lookAgain(ctx, cfg, part)
	}
	if err != nil {
		b.found.Note("what the databases need of their host is not recorded, and databases and subscriptions are recorded as before the copy: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	s := &survey{needs: &set.Needs{}, by: map[[4]string]*set.Need{}}
	list := slices.Clone(part.Databases)
	// If time runs out, the small ones are left.
	slices.SortStableFunc(list, func(x, y set.Database) int { return cmp.Compare(y.Size, x.Size) })
	for _, d := range list {
		s.look(ctx, cfg, d.Name, b.closed)
	}
	s.close()
	part.Needs = s.needs
	if n := len(s.unseen); n > 0 {
		part.Needs.Unseen = n
		b.found.Note("%d of %d databases were not looked into, so that the extensions, libraries and locales that they need are not recorded: %s", n, len(list), first(s.unseen, 3))
	}
	if s.unlogged > 0 {
		b.found.Note("the rows of %d unlogged tables are not in a backup; after a restore these tables are empty (in %s)", s.unlogged, first(s.with, namedDatabases))
	}
	b.keepCollations(part)
}

// lookAgain reads again what Preflight read, and the slots.
func (b *backup) lookAgain(ctx context.Context, cfg *pgx.ConnConfig, part *set.Postgres) error {
	ctx, cancel := context.WithTimeout(ctx, againTime)
	defer cancel()
	conn, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer closeConn(conn.PgConn())
	now := *b.f
	if err := now.readContents(ctx, conn); err != nil {
		return err
	}
	if err := now.readOrigin(ctx, conn); err != nil {
		return err
	}
	part.Databases, part.Superuser, part.Preload, part.Subscriptions, part.Collations = now.Databases, now.Superuser, now.Preload, now.Subscriptions, now.Collations
	for i, t := range part.Tablespaces {
		for _, n := range now.Tablespaces {
			if n.OID == t.OID {
				part.Tablespaces[i].Name = n.Name
			}
		}
	}
	for _, d := range part.Databases {
		if !utf8.ValidString(d.Name) {
			b.found.Note("the name of database %d, %q, is not in UTF-8: the manifest has its odd bytes as %q", d.OID, d.Name, string(utf8.RuneError))
		}
	}
	rows, err := conn.Query(ctx, "select datname::text from pg_catalog.pg_database where not datallowconn or datconnlimit = -2")
	if err != nil {
		return queryError(ctx, "databases that allow no connections", err)
	}
	closed, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return queryError(ctx, "databases that allow no connections", err)
	}
	b.closed = closed
	rows, err = conn.Query(ctx, "select pg_catalog.quote_ident(slot_name) from pg_catalog.pg_replication_slots where not temporary order by 1")
	if err != nil {
		return queryError(ctx, "the replication slots", err)
	}
	slots, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return queryError(ctx, "the replication slots", err)
	}
	if len(slots) > 0 {
		b.found.Note("replication slots are not in a backup (%s): make those that are still needed on the restored server, and let their consumers begin anew", first(slots, namedDatabases))
	}
	return nil
}

// keepCollations keeps the version of glibc only where text is sorted by it, or may
// be. The locales C, POSIX and C.UTF-8 sort by code points, the same everywhere.
func (b *backup) keepCollations(part *set.Postgres) {
	needed := part.Needs.Unseen > 0
	for _, d := range part.Databases {
		needed = needed || !sameEverywhere(d.Collate) || !sameEverywhere(d.Ctype)
	}
	for _, l := range part.Needs.Locales {
		needed = needed || !sameEverywhere(l.Name)
	}
	if !needed {
		part.Collations = slices.DeleteFunc(part.Collations, func(c set.Collation) bool { return c.Provider == "libc" })
	}
}

func sameEverywhere(locale string) bool {
	l := strings.ToLower(locale)
	return l == "" || l == "c" || l == "posix" || strings.HasPrefix(l, "c.")
}

// survey gathers what databases need.
type survey struct {
	needs    *set.Needs
	by       map[[4]string]*set.Need
	unseen   []string // databases, each with the reason
	unlogged int
	with     []string // databases that have unlogged tables
}

func (s *survey) look(ctx context.Context, cfg *pgx.ConnConfig, database string, closed []string) {
	if slices.Contains(closed, database) {
		if database != "template0" { // as initdb made it
			s.unseen = append(s.unseen, fmt.Sprintf("%q (it allows no connections)", database))
		}
		return
	}
	rows, err := needsOf(ctx, cfg, database)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "3D000" && utf8.ValidString(database): // dropped meanwhile
		return
	case errors.As(err, &pg):
		s.unseen = append(s.unseen, fmt.Sprintf("%q (%s)", database, pg.Message))
		return
	case err != nil:
		s.unseen = append(s.unseen, fmt.Sprintf("%q (%s)", database, plainCause(err)))
		return
	}
	for _, r := range rows {
		s.take(database, r)
	}
}

type needRow struct{ Kind, Name, More string }

func needsOf(ctx context.Context, cfg *pgx.ConnConfig, database string) ([]needRow, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeOne)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := cfg.Copy()
	c.Database = database
	var conn *pgx.Conn
	err := withSocketAccount(&c.Config, func() (err error) {
		conn, err = pgx.ConnectConfig(ctx, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer closeConn(conn.PgConn())
	rows, err := conn.Query(ctx, needsQuery)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[needRow])
}

func (s *survey) take(database string, r needRow) {
	need := set.Need{Name: r.Name}
	switch r.Kind {
	case "unlogged":
		n, _ := strconv.Atoi(r.Name)
		s.unlogged += n
		s.with = append(s.with, strconv.Quote(database))
		return
	case "locale":
		if sameEverywhere(r.Name) && !strings.Contains(r.Name, ".") { // C and POSIX are everywhere
			return
		}
	case "extension":
		need.Version = r.More
	case "library":
		need.Extension = r.More
	}
	key := [4]string{r.Kind, need.Name, need.Version, need.Extension}
	if s.by[key] == nil {
		s.by[key] = &need
	}
	n := s.by[key]
	if len(n.Databases) == namedDatabases {
		n.More++
		return
	}
	n.Databases = append(n.Databases, database)
}

// close puts the lists in order.
func (s *survey) close() {
	lists := map[string]*[]set.Need{"locale": &s.needs.Locales, "extension": &s.needs.Extensions, "library": &s.needs.Libraries, "dictionary": &s.needs.Dictionaries}
	for key, need := range s.by {
		*lists[key[0]] = append(*lists[key[0]], *need)
	}
	for _, list := range lists {
		slices.SortFunc(*list, func(x, y set.Need) int {
			return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Version, y.Version), cmp.Compare(x.Extension, y.Extension))
		})
	}
}

// first names the first n of a list, and how many there are besides.
func first(list []string, n int) string {
	if len(list) <= n {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:n], ", "), len(list)-n)
}
