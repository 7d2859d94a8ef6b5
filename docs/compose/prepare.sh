#!/bin/sh
# Runs first, as root: gives the volumes to the worker's user, and makes the passwords that are not there yet.
set -eu
owner=${OWNER:-999:999}
secrets=/run/catalog-backup
password() { # password NAME
  [ -s "$secrets/$1" ] && return
  head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$secrets/$1.part"
  mv "$secrets/$1.part" "$secrets/$1"
}
umask 077
password redis-password
password postgres-password
password dashboard-password
printf 'requirepass %s\n' "$(cat "$secrets/redis-password")" >"$secrets/redis.conf"
chown -R "$owner" "$secrets"
chmod 755 "$secrets"
chmod 400 "$secrets"/*
for dir in /data1 /data2/backup /data2/tmp /var/lib/catalog-backup /var/lib/postgresql/tablespaces; do
  chown "$owner" "$dir"
done
chmod 755 /data1 /data2/backup
chmod 700 /data2/tmp /var/lib/postgresql/tablespaces
chmod 750 /var/lib/catalog-backup
