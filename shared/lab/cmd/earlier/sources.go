package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/lab"
)

// fill makes application files with everything that must come back.
func (s *site) fill() error {
	app := filepath.Join(s.root, "app")
	var errs []error
	put := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(app, name)
		errs = append(errs, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode))
		return path
	}
	put("etc/alation_conf.yaml", strings.Repeat("key: value\n", 2000), 0o640)
	run := put("bin/run", "#!/bin/sh\n", 0o755|os.ModeSetuid)
	put("odd/na\xffme", "not UTF-8", 0o600)
	put("odd/new\nline", "x", 0o400)
	put("odd/"+strings.Repeat("long", 60), "a long name", 0o644)
	put("empty", "", 0o644)
	put("left.tmp", "excluded", 0o644)
	tagged := put("tagged", "with an attribute", 0o644)
	errs = append(errs, unix.Setxattr(tagged, "user.origin", []byte("catalog\x00\xff"), 0), os.Lchown(tagged, 1234, 5678),
		os.Link(run, filepath.Join(app, "bin/same")), os.Symlink("../../../etc/passwd", filepath.Join(app, "odd/link")))
	sparse := put("sparse", "begin", 0o644)
	errs = append(errs, os.Truncate(sparse, 8<<20))
	errs = append(errs, os.MkdirAll(filepath.Join(app, "closed/dir"), 0o755), os.Chmod(filepath.Join(app, "closed"), 0o500))
	then := time.Unix(1_000_000_000, 123_456_789)
	return errors.Join(append(errs, os.Chtimes(tagged, then, then), os.Chtimes(filepath.Join(app, "closed/dir"), then, then))...)
}

// database starts a small PostgreSQL: segments of 1 MB, and no database that the
// restored server can do without.
func (s *site) database(conf ...string) (err error) {
	if s.redis, err = lab.StartRedis(lab.RedisOptions{}); err != nil {
		return err
	}
	if s.pg, err = lab.StartPostgres(lab.PGOptions{InitDB: []string{"--wal-segsize=1"}, Conf: append([]string{"min_wal_size = 2MB", "max_wal_size = 8MB"}, conf...)}); err != nil {
		return err
	}
	for _, sql := range []string{
		`update pg_database set datistemplate = false`, `drop database template0`, `drop database template1`,
		`create table facts as select id, md5(id::text) as text, repeat('x', id % 50) as pad, case when id % 7 = 0 then null else id * 1.5 end as number from generate_series(1, 3000) id`,
		`alter table facts add primary key (id)`, `create sequence counted start 42`, `select nextval('counted')`,
		`select lo_from_bytea(4242, 'a large object')`, `create role reader login password 'secret'`, `delete from facts where id between 100 and 199`,
	} {
		if _, err := s.pg.Query(sql); err != nil {
			return err
		}
	}
	for _, sql := range []string{
		`select count(*), md5(string_agg(t::text, ',' order by id)) from facts t`, `select last_value from counted`, `select md5(lo_get(4242))`,
		`select string_agg(rolname, ',' order by rolname) from pg_roles where rolname !~ '^pg_'`, `select string_agg(datname, ',') from pg_database`,
	} {
		s.facts.Rows[sql] = ""
	}
	return nil
}

// spaced adds a tablespace and a table in it.
func (s *site) spaced() error {
	dir, err := s.pg.Mkdir("space")
	if err != nil {
		return err
	}
	for _, sql := range []string{`create tablespace spaced location '` + dir + `'`,
		`create table spaced tablespace spaced as select id, md5((id * 3)::text) as text from generate_series(1, 2000) id`} {
		if _, err := s.pg.Query(sql); err != nil {
			return err
		}
	}
	s.facts.Rows[`select count(*), md5(string_agg(t::text, ',' order by id)) from spaced t`] = ""
	s.facts.Rows[`select t.spcname from pg_class c join pg_tablespace t on t.oid = c.reltablespace where relname = 'spaced'`] = ""
	return nil
}

// events fills an Apache Kafka that compacts quickly.
func (s *site) events(ctx context.Context) (err error) {
	if s.bus, err = lab.StartKafka(lab.KafkaOptions{Extra: []string{"log.cleaner.backoff.ms=100"}}); err != nil {
		return err
	}
	c, err := s.bus.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer c.Close()
	adm := kadm.NewClient(c)
	text := func(v string) *string { return &v }
	for topic, o := range map[string]struct {
		partitions int32
		configs    map[string]*string
	}{
		"lineage":   {3, map[string]*string{"retention.ms": text("-1"), "max.message.bytes": text("2000000")}}, // its records are old
		"txn":       {1, nil},
		"empty":     {2, map[string]*string{"retention.bytes": text("12345678")}},
		"compacted": {1, map[string]*string{"cleanup.policy": text("compact"), "segment.bytes": text("8192"), "min.cleanable.dirty.ratio": text("0.001")}},
	} {
		if _, err := adm.CreateTopic(ctx, o.partitions, 1, o.configs, topic); err != nil {
			return err
		}
	}
	if err := errors.Join(s.plain(ctx, c), s.transactions(ctx), s.compacted(ctx, c)); err != nil {
		return err
	}
	at := kadm.Offsets{}
	at.Add(kadm.Offset{Topic: "lineage", Partition: 0, At: 50, LeaderEpoch: -1, Metadata: "seen"})
	at.Add(kadm.Offset{Topic: "lineage", Partition: 1, At: 100, LeaderEpoch: -1})
	at.Add(kadm.Offset{Topic: "txn", Partition: 0, At: 30, LeaderEpoch: -1})
	if err := adm.CommitAllOffsets(ctx, "indexer", at); err != nil {
		return err
	}
	_, err = adm.CreateACLs(ctx, kadm.NewACLs().Allow("User:app").AllowHosts("*").Topics("lin").ResourcePatternType(kadm.ACLPatternPrefixed).Operations(kadm.OpRead, kadm.OpDescribe))
	return err
}

func (s *site) plain(ctx context.Context, c *kgo.Client) error {
	for i := range 300 {
		r := &kgo.Record{Topic: "lineage", Partition: int32(i % 3), Key: fmt.Append(nil, i), Value: fmt.Appendf(nil, `{"n":%d,"pad":%q}`, i, strings.Repeat("v", i)),
			Headers: []kgo.RecordHeader{{Key: "trace", Value: fmt.Append(nil, i)}, {Key: "null"}}, Timestamp: time.UnixMilli(1_700_000_000_000 + int64(i))}
		if i%5 == 0 {
			r.Key = nil
		}
		if err := c.ProduceSync(ctx, r).FirstErr(); err != nil {
			return err
		}
	}
	return nil
}

// transactions writes six of ten records each; the second and fifth are aborted.
func (s *site) transactions(ctx context.Context) error {
	tx, err := s.bus.Client(kgo.TransactionalID("writer"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer tx.Close()
	for i := range 6 {
		if err := tx.BeginTransaction(); err != nil {
			return err
		}
		for j := range 10 {
			tx.Produce(ctx, &kgo.Record{Topic: "txn", Value: fmt.Appendf(nil, "tx %d commit=%v %d", i, i%3 != 1, j)}, nil)
		}
		if err := errors.Join(tx.Flush(ctx), tx.EndTransaction(ctx, kgo.TransactionEndTry(i%3 != 1))); err != nil {
			return err
		}
	}
	return nil
}

// compacted writes keys over and over until the cleaner has been there.
func (s *site) compacted(ctx context.Context, c *kgo.Client) error {
	const written = 1200
	for i := range written {
		r := &kgo.Record{Topic: "compacted", Key: fmt.Appendf(nil, "key-%d", i%60), Value: fmt.Appendf(nil, "round %d %s", i/60, strings.Repeat("x", i%90))}
		if i > written-60 && i%9 == 0 {
			r.Value = nil // a tombstone
		}
		if err := c.ProduceSync(ctx, r).FirstErr(); err != nil {
			return err
		}
	}
	left := written
	err := eventually("the topic is compacted", time.Minute, func() bool {
		r, err := s.bus.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"compacted": {0: kgo.NewOffset().AtStart()}}))
		if err != nil {
			return false
		}
		defer r.Close()
		poll, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		left = 0
		for last := int64(-1); last < written-1 && poll.Err() == nil; {
			r.PollFetches(poll).EachRecord(func(x *kgo.Record) { left++; last = x.Offset })
		}
		return left < written/3
	})
	if err != nil {
		return fmt.Errorf("%w: %d of %d records", err, left, written)
	}
	return nil
}
