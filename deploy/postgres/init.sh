#!/bin/bash
# Makes a role and a database for each service, for the postgres image's /docker-entrypoint-initdb.d; run again, it sets the
# passwords anew and leaves the rest. A role can connect to its own database only, and owns nothing else.
#
# Passwords come from the environment as the services have them (LEPTON_<SERVICE>_DATABASE__PASSWORD). psql reads them there by
# itself, so that no argument list shows them, and the server is told not to log the statements.
set -e

for service in accounts data compute training deployment marketplace; do
  password="LEPTON_${service^^}_DATABASE__PASSWORD"
  if [ -z "${!password}" ]; then
    echo "init.sh: $password is not set" >&2
    exit 1
  fi
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set name="lepton_$service" \
    --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-postgres}" <<SQL
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
\getenv password $password
SELECT format('CREATE ROLE %I', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION PASSWORD :'password';
-- Names are paged in the order of their bytes, as on SQLite.
SELECT format('CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING ''UTF8'' LC_COLLATE ''C'' LC_CTYPE ''C''', :'name', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE CONNECT, TEMPORARY ON DATABASE :"name" FROM PUBLIC;
SQL
done
