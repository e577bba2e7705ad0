#!/bin/bash
# What compose.yaml relies on of the official image: POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB, PGDATA, and at the first start *.sh
# and *.sql of /docker-entrypoint-initdb.d.
set -euo pipefail

if [ "${1:0:1}" = - ]; then set -- postgres "$@"; fi
[ "${1:-}" = postgres ] || exec "$@"

if [ "$(id -u)" = 0 ]; then # becomes postgres, who owns the data
    mkdir -p "$PGDATA" /var/run/postgresql
    chown postgres:postgres "$PGDATA" /var/run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

run_scripts() {
    local file
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh) bash "$file" ;;
            *.sql) psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --dbname="$POSTGRES_DB" --file="$file" ;;
        esac
    done
}

# In a folder beside, so that a start that was killed halfway begins anew instead of leaving half a database.
initialize() (
    final=$PGDATA
    export PGDATA=$final/.new POSTGRES_USER=${POSTGRES_USER:-postgres} PGHOST=/var/run/postgresql
    export POSTGRES_DB=${POSTGRES_DB:-$POSTGRES_USER} PGUSER=$POSTGRES_USER
    : "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD}"
    rm -rf "$PGDATA"
    initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") --auth-local=trust --auth-host=scram-sha-256 \
        --encoding=UTF8 --no-sync >/dev/null
    printf 'host all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    # Nobody outside sees the server before it is whole.
    pg_ctl --silent --wait --options="-c listen_addresses='' -c fsync=off" start
    [ "$POSTGRES_DB" = postgres ] || psql --quiet --no-psqlrc --dbname=postgres --command="CREATE DATABASE \"$POSTGRES_DB\""
    run_scripts
    pg_ctl --silent --wait --mode=fast stop
    find "$PGDATA" -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec sh -c 'rm -rf "$1/${2##*/}" && mv "$2" "$1/"' _ "$final" {} \;
    sync
    mv "$PGDATA/PG_VERSION" "$final/" # says that the rest is there
    rmdir "$PGDATA"
)

mkdir -p "$PGDATA"
chmod 0700 "$PGDATA"
[ -s "$PGDATA/PG_VERSION" ] || initialize
shift
exec postgres -c listen_addresses='*' "$@"
