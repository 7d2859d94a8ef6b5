-- WAL of every shape between a backup's start and its stop. Run by psql -X -At with
-- -v space=DIR (an empty directory of the server's account); prints start and stop.
\set ON_ERROR_STOP 1
set client_min_messages = error;
create extension if not exists bloom;
select pg_backup_start('wal', true) as start \gset
create table t (i int primary key, x text, b bytea);
insert into t select i, repeat(chr(97 + i % 26), i % 700), decode(repeat(to_hex(i % 256 + 256), i % 90 * 2), 'hex') from generate_series(1, 2500) i;
create index on t using hash (i);
create index on t using brin (i);
create index on t using gin (to_tsvector('simple', left(x, 200)));
create index on t using gist (point(i, i));
create index on t using spgist (point(i, i));
create index on t using bloom (i);
create sequence s; select nextval('s') from generate_series(1, 100) \g /dev/null
update t set x = x || 'y' where i % 3 = 0;
delete from t where i % 5 = 0;
begin; savepoint a; insert into t values (-1); savepoint b; insert into t values (-2); rollback to a; commit;
begin; select 1 from t where i = 1 for key share \g /dev/null
savepoint c; update t set x = 'z' where i = 1; commit;
begin; insert into t values (-3); prepare transaction 'one'; commit prepared 'one';
begin; insert into t values (-4); prepare transaction 'two'; rollback prepared 'two';
select pg_logical_emit_message(false, 'small', repeat('m', n)) from generate_series(1, 60) n \g /dev/null
select pg_logical_emit_message(false, 'large', repeat('large message ', 300000)) \g /dev/null
select pg_logical_emit_message(true, 'just a segment', repeat('s', 1 << 20)) \g /dev/null
select pg_switch_wal() \g /dev/null
create table after_switch (i int);
select pg_switch_wal() \g /dev/null
select pg_create_restore_point('a point') \g /dev/null
select pg_switch_wal() \g /dev/null
create tablespace made location :'space';
create table away (i int) tablespace made;
insert into away select generate_series(1, 500);
create database copied strategy file_copy;
alter database copied set tablespace made;
drop database copied;
drop table away;
drop tablespace made;
create tablespace made_again location :'space';
drop tablespace made_again;
set allow_in_place_tablespaces = on;
create tablespace inside location '';
drop tablespace inside;
create database logged strategy wal_log;
drop database logged;
checkpoint;
truncate t;
vacuum full pg_statistic;
vacuum (freeze) pg_class;
select lsn as stop from pg_backup_stop(false) \gset
\echo :start
\echo :stop
