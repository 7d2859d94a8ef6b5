#!/usr/bin/env bash
# Restores this backup set without catalog-backup: by sha256sum, tar, gzip and pgBackRest alone.
#
#   bash <id>_alation_backup.restore.sh [--from DIR] TARGET [PART...]
#
# TARGET   a directory that does not exist yet, or is empty
# PART     postgres, files, eventbus; none = all that the set has
# DIR      where the set's archives lie; not needed where this script lies beside them, or in
#          catalog-backup/ beside them (tar xzf <id>_alation_backup.tar.gz catalog-backup/restore.sh)
#
# Afterwards TARGET holds:
#   postgres/data              a PostgreSQL data directory; the command that starts it is printed
#   postgres/tablespaces/...   its tablespaces
#   unpacked/files/...         the application's files by their absolute paths
#   unpacked/postgres/config/  PostgreSQL's configuration from outside the data directory
#   unpacked/eventbus/...      the Event Bus as Kafka log segments
# Run it as root (PostgreSQL then gets the account PGUSER_OS, default postgres), or as the user who
# will run PostgreSQL. It writes below TARGET only, and starts nothing. <id>_alation_backup.restore.txt
# says what the set holds and what to do afterwards.

# What the caller's shell and environment say must not count: functions and options of the shell,
# TAR_OPTIONS, GZIP, CDPATH, POSIXLY_CORRECT, other repositories and servers. Only these do:
POSIXLY_CORRECT=1 # the special builtin comes before a function of its name
unset -f compgen export shopt
unset -f $(compgen -A function)
for name in $(compgen -e); do
  case $name in
    PATH | HOME | USER | LOGNAME | TERM | TMPDIR | LD_LIBRARY_PATH | PGUSER_OS) ;;
    *) unset "$name" 2>/dev/null || export -n "${name?}" ;;
  esac
done
set +afkvxBCPT +o posix
set -B -euo pipefail
shopt -u nullglob failglob dotglob nocasematch nocaseglob xpg_echo
export LC_ALL=C

# ---- this set ------------------------------------------------------------------------------------
#VALUES#
# --------------------------------------------------------------------------------------------------

die() { printf 'restore %s: %s\n' "$ID" "$*" >&2; exit 1; }
{ # to its end it is read before anything is done: bash -s takes it from a pipe
exec </dev/null
begun='' failed=''
ended() {
  [ $? = 0 ] || [ -z "$begun" ] || printf 'restore %s: what is in %s is not complete: remove it, mend the cause and begin again%s\n' "$ID" "$target" "${failed:+ (tar failed, too; PostgreSQL alone: $self $target postgres)}" >&2
}
trap ended EXIT
step() { printf '== %s\n' "$*"; }
me=${BASH_SOURCE[0]-}
usage() {
  if [ -f "$me" ]; then sed -n '2,/^$/s/^# \{0,1\}//p' "$me"; else echo 'bash -s -- [--from DIR] TARGET [PART...]'; fi >&2
  exit 2
}
# owner runs a command as the account that will run PostgreSQL.
owner() { if [ "$(id -u)" = 0 ]; then runuser -u "$account" -- "$@"; else "$@"; fi; }
wants() { [[ " $parts " == *" $1 "* ]]; }

from='' target='' parts=''
while [ $# -gt 0 ]; do
  case $1 in
    --from) [ $# -ge 2 ] || usage; from=$2; shift ;;
    -*) usage ;;
    *) if [ -z "$target" ]; then target=$1; else parts+=" $1"; fi ;;
  esac
  shift
done
[ -n "$target" ] || usage
for p in $parts; do
  [[ " $PARTS " == *" $p "* ]] || die "this set has no part $p; it has: $PARTS"
done
[ -n "$parts" ] || parts=$PARTS
target=$(readlink -m -- "$target")
account=${PGUSER_OS:-postgres}

# ---- everything that can be refused is refused before anything is written -------------------------
[[ $target =~ ^[A-Za-z0-9/._@%+,:-]+$ ]] || die "choose a target of plain letters, digits, / . _ and -: $target"
[ ! -e "$target" ] || [ -d "$target" ] || die "$target is not a directory"
[ -z "$(ls -A -- "$target" 2>/dev/null)" ] || die "$target is not empty"
for tool in tar gzip sha256sum awk df find; do
  command -v "$tool" >/dev/null || die "$tool is missing: install it"
done
[[ "$(tar --version 2>&1)" == *'GNU tar'* ]] || die "GNU tar is needed, since the archives hold extended attributes and sparse files: install it"

main=${ID}_alation_backup.tar.gz bus=${ID}_alation_eb_backup.tar.gz manifest=${ID}_alation_backup.json
if [ -f "$me" ]; then
  real=$(readlink -e -- "$me")
  self=$(printf 'bash %q' "$real")
  places=("$(dirname -- "$real")" "$(dirname -- "$(dirname -- "$real")")" "$(readlink -e -- "$(dirname -- "$me")")")
else
  self="bash ${ID}_alation_backup.restore.sh"
  places=("$(pwd -P)")
fi
if [ -n "$from" ]; then
  dir=$(readlink -e -- "$from") || die "$from is not there"
else
  for dir in "${places[@]}" "${places[0]}"; do
    if [ -e "$dir/$main" ] || [ -e "$dir/$bus" ]; then break; fi
  done
fi
if [ -n "$from" ] || [ ! -f "$me" ]; then self+=$(printf ' --from %q' "$dir"); fi
cd / # the server's account need not enter where this was called
archives=()
if wants postgres || wants files; then archives+=("$main"); fi
if wants eventbus; then archives+=("$bus"); fi
for a in "${archives[@]}"; do
  [ -f "$dir/$a" ] && continue
  left=''
  for p in $PARTS; do
    if [ "$p" = eventbus ]; then b=$bus; else b=$main; fi
    [ ! -f "$dir/$b" ] || left+=" $p"
  done
  die "$dir/$a is missing: bring it, or say where the archives lie by --from DIR${left:+, or restore what is there: $self $target$left}"
done

bin='' as=''
if wants postgres; then
  for b in "/usr/lib/postgresql/$MAJOR/bin" "/usr/pgsql-$MAJOR/bin" "/usr/lib/postgresql$MAJOR/bin" /usr/local/pgsql/bin "$(dirname -- "$(command -v pg_ctl || echo /none)")"; do
    [ -x "$b/pg_ctl" ] && [[ "$("$b/pg_ctl" --version)" =~ \ $MAJOR([.a-z]|$) ]] && { bin=$b; break; }
  done
  others=${PARTS/postgres/}
  [ -n "$bin" ] || die "PostgreSQL $MAJOR is not installed here, and no other major version can start this database: apt-get install postgresql-$MAJOR (from https://apt.postgresql.org where the system has another), or dnf install postgresql$MAJOR-server (https://yum.postgresql.org)${others:+; without PostgreSQL: $self $target$others}"
  command -v pgbackrest >/dev/null || die "pgBackRest is missing: install the package pgbackrest, $PGBACKREST or newer"
  socket=$target/postgres/socket
  [[ $socket != *,* ]] || die "the server takes a comma for the end of its socket's directory: choose a target without one"
  [ ${#socket} -le 87 ] || die "the path of the target is too long for the server's socket: choose one of at most $((87 - 16)) characters"
  if [ "$(id -u)" = 0 ]; then
    command -v runuser >/dev/null || die "runuser is missing: install util-linux"
    id -u "$account" >/dev/null 2>&1 || die "there is no account $account to run PostgreSQL, which refuses to run as root: make it, or name another in PGUSER_OS"
    as="runuser -u $account -- "
    up=$target
    while up=$(dirname -- "$up"); do
      [ ! -d "$up" ] || owner test -x "$up" || die "the account $account, which will run PostgreSQL, cannot enter $up: chmod o+x $up, or choose another target"
      [ "$up" != / ] || break
    done
  fi
fi

step "check the archives in $dir"
if [ -f "$dir/$manifest" ]; then
  # "archives" is a list of kind, name, size and sha256; its end is a line with one space and a bracket.
  sums=$(awk -F'"' '/^ "archives": \[/ {on=1} on && $2=="name" {n=$4} on && $2=="sha256" {print $4 "  " n} on && /^ \]/ {exit}' "$dir/$manifest")
  for a in "${archives[@]}"; do
    sum=$(awk -v name="$a" '$2 == name' <<<"$sums")
    [[ $sum =~ ^[0-9a-f]{64}\  ]] || die "$dir/$manifest has no SHA-256 of $a: it is damaged; move it away to go on without it"
    (cd -- "$dir" && sha256sum -c - <<<"$sum") || die "$a is damaged: use another set, or a part that lies in the other archive; docs/restoring.md of catalog-backup tells how to get out what is left"
  done
else
  echo "the manifest $manifest is not there: its copy at the end of each archive and gzip's own checksums are all that can be looked at"
  for a in "${archives[@]}"; do
    gzip -t -- "$dir/$a" || die "$a is damaged: use another set, or a part that lies in the other archive"
    # The copy is the last entry. Where it is not, the archive was cut, at a place where gzip sees nothing.
    of=$(tar -xzOf "$dir/$a" catalog-backup/set.json 2>/dev/null | awk -F'"' '/^ "set": "/ && id == "" {id = $4} END {print id}') || of=''
    [ -n "$of" ] || die "$a is cut: the copy of the manifest, its last entry, is not in it: use another set, or a part that lies in the other archive"
    [ "$of" = "$ID" ] || die "$a is an archive of another set, $(cat -v <<<"$of"): bring the one of this set"
    echo "$a: gzip -t finds nothing wrong, and it is whole"
  done
fi
above=$target
until [ -d "$above" ]; do above=$(dirname -- "$above"); done
need=0
for p in $parts; do
  case $p in
    postgres) need=$((need + NEED_POSTGRES)) ;;
    files) need=$((need + NEED_FILES)) ;;
    eventbus) need=$((need + NEED_EVENTBUS)) ;;
  esac
done
free=$(df -PB1 -- "$above" | awk 'NR==2 {print $4}')
[ "$free" -ge "$need" ] || echo "WARNING: $above has $free bytes free and up to $need are needed: it may not fit"

step "unpack into $target/unpacked"
begun=yes
(umask 022 && mkdir -p -- "$target") # the server's account has to enter what lies above
umask 077
chmod 700 "$target"
# A default ACL of the directory above would pass to all that is made here: cp takes it away with the mode.
plain=$(mktemp -d) && cp -rT --preserve=mode -- "$plain" "$target" && rmdir -- "$plain"
mkdir -- "$target/unpacked"
leave=(--anchored --exclude=catalog-backup)
wants postgres || leave+=(--exclude=postgres)
wants files || leave+=(--exclude=files)
for a in "${archives[@]}"; do
  # A name that comes twice is a file that changed while it was backed up: the later one counts, as tar has it.
  tar -xzpf "$dir/$a" -C "$target/unpacked" --numeric-owner --delay-directory-restore --xattrs --xattrs-include='*' "${leave[@]}" || failed+=" $a"
done
[ -z "$failed" ] || echo "WARNING: tar could not unpack all; what it could is restored first" >&2

# Segments of a topic that was deleted, and of a partition that was read anew, while the backup ran. What
# was read last is the partition: 0~2 stands for 0.
for entry in $DISCARDED; do rm -f -- "$target/unpacked/$entry"; done
if wants eventbus && [ -d "$target/unpacked/eventbus" ]; then
  find "$target/unpacked/eventbus" -mindepth 2 -type d -empty -delete
  for again in "$target"/unpacked/eventbus/topics/*/*~*; do
    [ ! -d "$again" ] || mv -T -- "$again" "${again%~*}"
  done
fi

where() {
  step done
  ! wants files || echo "files:      $target/unpacked/files"
  ! wants eventbus || echo "event bus:  $target/unpacked/eventbus/topics"
}
# finish ends the program: with an error where something is missing.
finish() {
  [ -n "$failed" ] || exit 0
  begun=''
  die "NOT COMPLETE: tar could not unpack all of$failed. Its messages above name what is missing; the rest is in $target. (No tar takes a path of more than 4095 bytes; worker restore does.)"
}
if ! wants postgres; then
  where
  finish
fi

step "PostgreSQL: pgbackrest restore"
repo=$target/unpacked/postgres/pgbackrest
data=$target/postgres/data
conf=$target/postgres/pgbackrest/pgbackrest.conf
[ -d "$repo/backup/catalog/$LABEL" ] || die "$repo has no backup $LABEL: the archive is not the one of this set"
mkdir -p -- "$target"/postgres/{data,tablespaces,socket} "$target"/postgres/pgbackrest/{log,lock,spool}
# By number: a tablespace's name may be a path that leads elsewhere.
maps=()
for oid in $TABLESPACES; do
  mkdir -- "$target/postgres/tablespaces/$oid"
  maps+=("--tablespace-map=$oid=$target/postgres/tablespaces/$oid")
done
cat >"$conf" <<C
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
if [ "$(id -u)" = 0 ]; then
  chown -Rh "$account:" "$target/postgres" "$repo"
  chmod 711 "$target" "$target/unpacked" "$target/unpacked/postgres"
fi
tool() { owner pgbackrest --config="$conf" --stanza=catalog "$@"; }
# Type none leaves the recovery to the lines below: the server takes its WAL from pg_wal and asks nobody.
tool --set="$LABEL" --type=none "${maps[@]}" restore
segments=0
while read -r segment; do
  tool archive-get "$segment" "$data/pg_wal/$segment"
  segments=$((segments + 1))
done < <(find "$repo/archive/catalog" -type f -printf '%f\n' | grep -oE '^[0-9A-F]{24}' | sort -u)
[ -f "$data/pg_wal/$START_WAL" ] && [ -f "$data/pg_wal/$STOP_WAL" ] || die "the WAL from $START_WAL to $STOP_WAL is not in the archive"
echo "$segments WAL segments, $START_WAL to $STOP_WAL"

step "PostgreSQL: settings that keep the server to itself"
[ "$(cat -- "$data/PG_VERSION")" = "$MAJOR" ] || die "the database is of PostgreSQL $(cat -v -- "$data/PG_VERSION"), the set is of $MAJOR"
# The server would write wherever a link leads. pgBackRest makes those of tablespaces only, into the target.
links=$(find "$data" -type l ! -path "$data/pg_tblspc/*" | cat -v)
[ -z "$links" ] || die "the data directory has links, which may lead to a server in use: $links"
for link in "$data"/pg_tblspc/*; do
  [ ! -L "$link" ] || [[ "$(readlink -m -- "$link")" == "$target/postgres/tablespaces/"* ]] || die "$link leads out of the target"
done
rm -f -- "$data"/{standby.signal,recovery.signal,recovery.conf,postmaster.pid,postmaster.opts,tablespace_map}
for name in postgresql.conf postgresql.auto.conf pg_hba.conf pg_ident.conf; do
  [ ! -e "$data/$name" ] || mv -- "$data/$name" "$data/$name.original"
done
libraries=$(find "$data"/*.original "$target/unpacked/postgres/config" -type f -exec grep -hiE '^[[:space:]]*(shared|session|local)_preload_libraries' {} + 2>/dev/null | sort -u | cat -v || true)
limits=$LIMITS
[ -n "$limits" ] || limits=$(owner "$bin/pg_controldata" "$data" |
  sed -nE 's/^(max_connections|max_worker_processes|max_wal_senders|max_prepared_xacts|max_locks_per_xact) setting: +([0-9]+)$/\1=\2/p' |
  sed -e 's/max_prepared_xacts/max_prepared_transactions/' -e 's/max_locks_per_xact/max_locks_per_transaction/')
recovery="restore_command = 'false'
recovery_target = 'immediate'
recovery_target_action = 'promote'"
{
  echo "# Made by a restore of set $ID. The original is in *.original or in $target/unpacked/postgres/config."
  echo "# What recovery must not go below:"
  for limit in $limits; do echo "${limit%%=*} = ${limit#*=}"; done
  cat <<C
# The server keeps to itself.
port = 5432
listen_addresses = ''
unix_socket_directories = '$socket'
unix_socket_permissions = 0700
archive_mode = off
max_logical_replication_workers = 0
shared_preload_libraries = ''
huge_pages = try
superuser_reserved_connections = 0
C
  # As initdb sets them: the defaults are too small for such segments to start with.
  [ "$SEGMENT_MB" -le 16 ] || printf 'min_wal_size = %dMB\nmax_wal_size = %dMB\n' $((5 * SEGMENT_MB)) $((64 * SEGMENT_MB))
  [ "$COMMIT_TIMES" = 0 ] || echo 'track_commit_timestamp = on' # a start without it forgets them all
  [ "$MAJOR" -lt 17 ] || echo 'event_triggers = off' # those at log-in run in every session
  [ "$MAJOR" -lt 12 ] || printf "# It takes its WAL from pg_wal, to the end of the backup.\n%s\nrecovery_target_timeline = 'current'\n" "$recovery"
} >"$data/postgresql.conf"
: >"$data/postgresql.auto.conf"
: >"$data/pg_ident.conf"
printf '# The socket is for the account of the server only.\nlocal all all trust\nlocal replication all trust\n' >"$data/pg_hba.conf"
if [ "$MAJOR" -lt 12 ]; then printf '%s\n' "$recovery" >"$data/recovery.conf"; else : >"$data/recovery.signal"; fi
[ "$(id -u)" != 0 ] || chown -Rh "$account:" "$data"

# Tablespaces that were made while the backup ran are not in it, and recovery would link them to their old place.
made=$(owner "$bin/pg_waldump" -p "$data/pg_wal" -r Tablespace -s "$START_LSN" -e "$STOP_LSN" 2>/dev/null | sed -nE 's/.*desc: CREATE [0-9]+ "(.*)"$/\1/p' || true)
while read -r place; do
  [ -n "$place" ] || continue
  [ ! -e "$place" ] || die "while the backup ran, a tablespace was made in $(cat -v <<<"$place"), which exists on this host: recovery would write into it. Start the server on a host, or in a container, without it"
  echo "BEFORE THE START: make the empty directory $(cat -v <<<"$place") for the server's account: a tablespace was made there while the backup ran"
done <<<"$made"

where
[ -z "$libraries" ] || printf 'libraries that the original server loads, left out here (if the log says that a resource manager is missing, put its library into\n%s and start again):\n%s\n' "$data/postgresql.conf" "$libraries"
echo "The server that starts here listens on its socket only, archives nothing and applies no subscription. Before it gets its old"
echo "configuration back, in each database: for each row of pg_subscription, ALTER SUBSCRIPTION name DISABLE, and"
echo "ALTER SUBSCRIPTION name SET (slot_name = NONE): or it takes the changes that the original still waits for."
echo "start PostgreSQL, which then recovers to the end of the backup by itself:"
echo "  $as$bin/pg_ctl -D $data -l $target/postgres/server.log -t 86400 -w start"
echo "look at it:"
echo "  $as/usr/bin/env PGOPTIONS='-csession_preload_libraries= -clocal_preload_libraries=' $bin/psql -h $socket -p 5432 -U $(printf %q "$SUPERUSER") -d $(printf %q "$DATABASE") -l"
finish
}
