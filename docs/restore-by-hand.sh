#!/usr/bin/env bash
# Restores a backup set without catalog-backup: with sha256sum, tar, gzip and pgBackRest alone.
#
#   restore-by-hand.sh MANIFEST TARGET     e.g. restore-by-hand.sh /data2/backup/202109232027_10-0-0-147420_alation_backup.json /data3/restored
#   restore-by-hand.sh ARCHIVE  TARGET     when the manifest is lost: then the archives' hashes cannot be checked
#
# TARGET must not exist yet, or be empty. Afterwards it holds:
#   postgres/data              a PostgreSQL data directory; the command that starts it is printed
#   postgres/tablespaces/OID   its tablespaces
#   unpacked/files/…           the application's files by their absolute paths
#   unpacked/postgres/config/… PostgreSQL's configuration from outside the data directory
#   unpacked/eventbus/…        the Event Bus as Kafka log segments (docs/set-format.md tells how to bring them into a broker)
# Keep unpacked/ until the server has started once: its recovery reads the WAL from there.
# Run as root (PostgreSQL then gets the account PGUSER_OS, default postgres), or as the user who will run PostgreSQL.
set -euo pipefail
die() { printf 'restore-by-hand: %s\n' "$*" >&2; exit 1; }
step() { printf '== %s\n' "$*"; }

[ $# = 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
what=$(readlink -f -- "$1") || die "$1 is not there"
target=$(readlink -m -- "$2")
account=${PGUSER_OS:-postgres}
[[ $target =~ ^[A-Za-z0-9/._@%+,:-]+$ ]] || die "choose a target of plain letters, digits, / . _ and -: $target"
[ -f "$what" ] || die "$what is not a file"
[ -z "$(ls -A -- "$target" 2>/dev/null)" ] || die "$target is not empty"
for tool in tar gzip sha256sum awk pgbackrest; do
  command -v "$tool" >/dev/null || die "$tool is missing"
done

# The set's files lie beside each other and begin with the set's id.
dir=$(dirname -- "$what")
name=$(basename -- "$what")
[[ $name =~ ^([0-9]{12}_[0-9A-Za-z-]+)_alation_(eb_)?backup\.(json|tar\.gz)$ ]] || die "$name is not the name of a manifest or an archive"
id=${BASH_REMATCH[1]}
manifest=$dir/${id}_alation_backup.json
main=$dir/${id}_alation_backup.tar.gz
bus=$dir/${id}_alation_eb_backup.tar.gz

step "check the archives"
if [ -f "$manifest" ]; then
  # "archives" is a list of kind, name, size and sha256; its end is a line with one space and a bracket.
  sums=$(awk -F'"' '/^ "archives": \[/ {on=1} on && $2=="name" {n=$4} on && $2=="sha256" {print $4 "  " n} on && /^ \]/ {exit}' "$manifest")
  [ -n "$sums" ] || die "$manifest names no archive"
  (cd -- "$dir" && sha256sum -c - <<<"$sums") || die "an archive is damaged or missing: use another set"
else
  echo "the manifest is not there: gzip -t is all that can be checked"
  for a in "$main" "$bus"; do
    [ ! -e "$a" ] || gzip -t -- "$a" || die "$a is damaged"
  done
fi
[ -f "$main" ] || [ -f "$bus" ] || die "no archive of $id is in $dir"

step "unpack"
umask 077
mkdir -p -- "$target/unpacked"
for a in "$main" "$bus"; do
  [ -e "$a" ] || continue
  # A name that comes twice is a file that changed while it was backed up: the later one counts, as tar has it.
  tar -xzpf "$a" -C "$target/unpacked" --numeric-owner --delay-directory-restore --xattrs --xattrs-include='*'
done
repo=$target/unpacked/postgres/pgbackrest
[ -d "$repo" ] || { echo "this set has no PostgreSQL part, or only the bus archive was there: done"; exit 0; }

step "PostgreSQL: pgbackrest restore"
labels=("$repo"/backup/catalog/*F/)
if [ ${#labels[@]} != 1 ] || [ ! -d "${labels[0]}" ]; then die "$repo/backup/catalog should hold one full backup"; fi
label=$(basename -- "${labels[0]}")
data=$target/postgres/data
mkdir -p -- "$target"/postgres/{data,tablespaces,socket} "$target"/postgres/pgbackrest/{log,lock,spool}
cat >"$target/postgres/pgbackrest/pgbackrest.conf" <<C
[global]
repo1-path=$repo
log-path=$target/postgres/pgbackrest/log
lock-path=$target/postgres/pgbackrest/lock
spool-path=$target/postgres/pgbackrest/spool
log-level-console=warn
log-level-file=off
process-max=$(nproc)

[catalog]
pg1-path=$data
C
as=()
if [ "$(id -u)" = 0 ]; then
  chown -R "$account:" "$target/postgres" "$repo"
  chmod 711 "$target" "$target/unpacked" "$target/unpacked/postgres"
  as=(runuser -u "$account" --)
fi
# --archive-mode=off: the restored server must never write into the original's archive.
"${as[@]}" pgbackrest --config="$target/postgres/pgbackrest/pgbackrest.conf" --stanza=catalog --set="$label" \
  --type=immediate --target-action=promote --archive-mode=off --tablespace-map-all="$target/postgres/tablespaces" restore

step "PostgreSQL: settings that keep the server to itself"
major=$(cat "$data/PG_VERSION")
bin=/usr/lib/postgresql/$major/bin
[ -x "$bin/pg_ctl" ] || bin=$(dirname -- "$(command -v pg_ctl || true)")
[ -x "$bin/pg_ctl" ] || die "PostgreSQL $major is not installed: apt-get install postgresql-$major, then take its pg_ctl -D $data start"
if [ ! -e "$data/postgresql.conf" ]; then # Debian keeps it in /etc; it lies in unpacked/postgres/config
  # The limits that recovery demands, as pg_control records them.
  LC_ALL=C "${as[@]}" "$bin/pg_controldata" "$data" |
    sed -nE 's/^(max_connections|max_worker_processes|max_wal_senders|max_prepared_xacts|max_locks_per_xact) setting: +([0-9]+)$/\1 = \2/p' |
    sed -e 's/max_prepared_xacts/max_prepared_transactions/' -e 's/max_locks_per_xact/max_locks_per_transaction/' >"$data/postgresql.conf"
fi
[ -e "$data/pg_hba.conf" ] || echo 'local all all trust' >"$data/pg_hba.conf"
[ -e "$data/pg_ident.conf" ] || : >"$data/pg_ident.conf"
cat >>"$data/postgresql.auto.conf" <<C
# Appended by restore-by-hand.sh. These lines win over postgresql.conf; remove them to put the server into service.
data_directory = '$data'
hba_file = '$data/pg_hba.conf'
ident_file = '$data/pg_ident.conf'
external_pid_file = '$target/postgres/server.pid'
port = 5432
listen_addresses = ''
unix_socket_directories = '$target/postgres/socket'
unix_socket_permissions = '0700'
ssl = off
archive_command = ''
primary_conninfo = ''
synchronous_standby_names = ''
C
[ "$(id -u)" != 0 ] || chown -R "$account:" "$data"

step "done"
echo "files:      $target/unpacked/files"
[ ! -d "$target/unpacked/eventbus" ] || echo "event bus:  $target/unpacked/eventbus/topics"
echo "start PostgreSQL, which then recovers to the end of the backup by itself:"
echo "  ${as[*]}${as:+ }$bin/pg_ctl -D $data -l $target/postgres/server.log -t 86400 -w start"
echo "look at it:"
echo "  ${as[*]}${as:+ }psql -h $target/postgres/socket -l"
