#!/usr/bin/env bash
# Writes .env for compose.yaml: secrets that nobody else has, and which parts run. What is there already stays as it is.
#
#   tools/env.sh [FILE]
#   tools/env.sh --set [FILE]    takes the lines NAME=VALUE of standard input in, instead of what the file says of these names
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
set=
if [ "${1:-}" = --set ]; then set=1; shift; fi
file=${1:-.env}
umask 077
touch "$file"

if [ -n "$set" ]; then
    lines=$(cat)
    grep -v -E "^($(cut -d= -f1 <<<"$lines" | paste -s -d '|'))=" "$file" >"$file.new" || true
    printf '%s\n' "$lines" >>"$file.new"
    mv "$file.new" "$file"
    exit
fi

has() { grep -q "^$1=" "$file"; }
add() { has "$1" || printf '%s=%s\n' "$1" "$2" >>"$file"; }
secret() { openssl rand -hex 24; }

command -v openssl >/dev/null || { echo "make env needs openssl for keys (on Debian: apt-get install openssl)" >&2; exit 1; }

add COMPOSE_PROFILES core,observability,dashboards
# For clients on other machines both become addresses that they can reach.
add LEPTON_LISTEN 127.0.0.1:8080
add LEPTON_GRPC_LISTEN 127.0.0.1:8081
add LEPTON_MINIO_LISTEN 127.0.0.1:9000
add LEPTON_STORAGE_PUBLIC_URL http://127.0.0.1:9000
add LEPTON_API_KEY "lpt_$(secret)"
for name in POSTGRES_PASSWORD REDIS_PASSWORD STORAGE_SECRET_KEY GRAFANA_PASSWORD; do
    add "LEPTON_$name" "$(secret)"
done
for service in ACCOUNTS DATA COMPUTE TRAINING DEPLOYMENT MARKETPLACE; do
    add "LEPTON_${service}_DATABASE__PASSWORD" "$(secret)"
done
# Images are built with the certificates that this machine trusts: a proxy's own is among them.
for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
    [ ! -s "$bundle" ] || add LEPTON_BUILD_CA "$bundle"
done
# A key for each who calls others, and the public ones for those who are called. PEM on several lines, which compose reads in quotes.
issuers=(gateway accounts data compute training deployment marketplace node)
if ! has LEPTON_IDENTITY_PUBLIC_KEYS; then
    public=
    for issuer in "${issuers[@]}"; do
        key=$(openssl genpkey -algorithm ed25519)
        printf 'LEPTON_%s_PRIVATE_KEY="%s"\n' "${issuer^^}" "$key" >>"$file"
        pem=$(openssl pkey -pubout <<<"$key")
        public+="${public:+,}\"$issuer\":\"${pem//$'\n'/\\n}\""
    done
    # Last, and in one line: with it the keys are whole.
    printf "LEPTON_IDENTITY_PUBLIC_KEYS='{%s}'\n" "$public" >>"$file"
fi
