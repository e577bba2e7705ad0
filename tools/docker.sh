#!/usr/bin/env bash
# Makes Docker work here, and does nothing where it does.
#
#   tools/docker.sh engine     an engine that answers: Debian's is installed if there is none, and started; needs root
#   tools/docker.sh compose    docker compose 2.20 or later, and buildx: built from their Go modules where they are missing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/images/go.sh
. tools/images/versions.env
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lepton

answers() { docker info >/dev/null 2>&1; }

install_engine() {
    need apt-get "apt; elsewhere install a Docker engine"
    say "Installing Docker's engine"
    apt-get -qq update
    # iptables is a mere recommendation of the package, and without it no container has a network.
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends docker.io iptables >/dev/null
}

start_engine() {
    local log=$cache/dockerd.log
    mkdir -p "$cache"
    say "Starting dockerd; it writes to $log"
    setsid dockerd --pidfile "$cache/dockerd.pid" >>"$log" 2>&1 </dev/null &
    local pid=$!
    for _ in $(seq 120); do
        if answers; then return; fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    tail -n 15 "$log" >&2
    die "dockerd does not answer; the end of $log is above."
}

engine() {
    if answers; then return; fi
    [ -z "${DOCKER_HOST:-}" ] || die "Nothing answers at DOCKER_HOST=$DOCKER_HOST."
    [ "$(id -u)" = 0 ] || die "No Docker engine answers. Start one, or run tools/docker.sh engine as root."
    command -v dockerd >/dev/null && command -v docker >/dev/null || install_engine
    answers || start_engine
}

compose_works() {
    local version
    version=$(docker compose version --short 2>/dev/null) && docker buildx version >/dev/null 2>&1 \
        && printf '2.20\n%s\n' "${version#v}" | sort -CV
}

compose() {
    if compose_works; then return; fi
    need docker "docker.io"
    local plugins=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins module=github.com/docker/compose/v2
    local programs=$cache/offline/bin
    say "Building docker compose $COMPOSE_VERSION and buildx $BUILDX_VERSION; some minutes the first time"
    go_program "$programs/docker-compose-$COMPOSE_VERSION" $module "v$COMPOSE_VERSION" $module/cmd "-X $module/internal.Version=v$COMPOSE_VERSION"
    # Out of the modules of compose, which has the same buildx inside.
    go_program "$programs/docker-buildx-$BUILDX_VERSION" $module "v$COMPOSE_VERSION" github.com/docker/buildx/cmd/buildx \
        "-X github.com/docker/buildx/version.Version=v$BUILDX_VERSION"
    mkdir -p "$plugins"
    install -m 755 "$programs/docker-compose-$COMPOSE_VERSION" "$plugins/docker-compose"
    install -m 755 "$programs/docker-buildx-$BUILDX_VERSION" "$plugins/docker-buildx"
    compose_works || die "docker does not take the plugins in $plugins: try docker compose version"
}

case ${1:-} in
    engine | compose) "$1" ;;
    *) die "usage: tools/docker.sh engine|compose" ;;
esac
