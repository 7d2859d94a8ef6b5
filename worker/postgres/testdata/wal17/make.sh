#!/bin/sh
# Makes the files of this directory on a PostgreSQL 17: run as root, ROOT is a tree made by
#   debootstrap --variant=minbase --include=postgresql-17,zstd trixie ROOT
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$1
work=/tmp/wal17
rm -rf "$root$work"
mkdir -p "$root$work/space"
cp "$here/workload.sql" "$root$work"
chroot "$root" chown -R postgres: "$work"
in_root() { chroot "$root" su postgres -s /bin/sh -c "cd $work; PATH=/usr/lib/postgresql/17/bin:\$PATH LC_ALL=C; $1"; }
in_root "initdb -A trust -U postgres -D data --wal-segsize=1 -N >/dev/null
  printf '%s\n' \"listen_addresses=''\" \"unix_socket_directories='$work'\" fsync=off max_prepared_transactions=5 autovacuum=off wal_keep_size=1GB >> data/postgresql.conf
  pg_ctl -D data -l log -w start >/dev/null
  psql -XAtq -h $work -U postgres -v space=$work/space -f workload.sql postgres > range
  pg_ctl -D data -w stop >/dev/null
  pg_controldata data | sed -n 's/^Database system identifier: *//p' >> range
  pg_waldump -p data/pg_wal -s \$(sed -n 1p range) -e \$(sed -n 2p range) | cut -c1-300 > records"
first=$(sed -n 1p "$root$work/range"); last=$(sed -n 2p "$root$work/range")
# Names of 1 MB segments: address / 1 MB.
segment() { high=${1%/*} low=${1#*/}; printf '00000001%08X%08X' "$((0x$high))" "$(((0x$low - $2) >> 20))"; }
names=$(cd "$root$work/data/pg_wal"; ls | awk -v a="$(segment "$first" 0)" -v b="$(segment "$last" 1)" 'length($0) == 24 && $0 "" >= a && $0 "" <= b' | sort)
(cd "$root$work/data/pg_wal"; cat $names) | zstd -q -19 --long=24 -f -o "$here/wal.zst"
zstd -q -19 -f "$root$work/records" -o "$here/records.zst"
cp "$root$work/range" "$here/range"
rm -rf "$root$work"
