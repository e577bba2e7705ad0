#!/usr/bin/env bash
# Builds what the cluster needs out of Go modules: Kubernetes, CoreDNS, metrics-server, and the two images that it runs itself.
# What is there at the wanted version is kept. The first time takes some 20 minutes on two cores, with a warm Go cache half a minute.
set -euo pipefail
HERE=$(dirname "$(readlink -f "$0")")
. "$HERE/common.sh"
. "$HERE/../images/go.sh"
say() { printf '[%(%H:%M:%S)T] %s\n' -1 "$*" >&2; }

COREDNS_VERSION=1.14.3
METRICS_SERVER_VERSION=0.9.0
mkdir -p "$BIN" "$LOG" "$IMAGES"

# The staging modules (k8s.io/api, …) are replaced by their published twins, as k8s.io/kubernetes itself replaces them by folders.
kubernetes() {
    local version=$CLUSTER_VERSION staging=v0.${CLUSTER_VERSION#1.} work gomod flags='' package program
    local programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
    [ "$(cat "$BIN/kubernetes.version" 2>/dev/null)" != "$version" ] || return 0
    need go "golang, or bring Go 1.24 or later"
    work=$(mktemp -d)
    cd "$work"
    GOFLAGS=-mod=mod go mod download "k8s.io/kubernetes@v$version" 2>"$LOG/download.log" ||
        die "k8s.io/kubernetes v$version cannot be downloaded (not every patch release can): $LOG/download.log"
    gomod=$(go env GOMODCACHE)/cache/download/k8s.io/kubernetes/@v/v$version.mod
    {
        printf 'module lepton.invalid/cluster\n\ngo 1.24\n\nrequire k8s.io/kubernetes v%s\n\n' "$version"
        awk '$1 == "godebug" { print }' "$gomod"
        echo 'replace ('
        awk -v version="$staging" '$2 == "=>" && $3 ~ /^\.\/staging\// { print "\t" $1 " => " $1 " " version }' "$gomod"
        echo ')'
    } >go.mod
    # Without these the programs call themselves v0.0.0-master.
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
        flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=gomodules -X $package.buildDate=2026-01-01T00:00:00Z"
    done
    for program in "${programs[@]}"; do
        say "Building $program $version"
        go_build "$LOG/build-$program.log" -tags notest,grpcnotrace -ldflags "-s -w $flags" -o "$BIN/$program" "k8s.io/kubernetes/cmd/$program" ||
            die "$program does not build: $LOG/build-$program.log"
    done
    cd - >/dev/null
    rm -rf "$work"
    echo "$version" >"$BIN/kubernetes.version"
}

# Holds a pod's namespaces, and reaps what is left in one that is shared.
pause() {
    [ ! -x "$BIN/pause" ] || return 0
    local work
    work=$(mktemp -d)
    printf 'module lepton.invalid/pause\n\ngo 1.24\n' >"$work/go.mod"
    cat >"$work/main.go" <<'GO'
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
GO
    (cd "$work" && go_build "$LOG/build-pause.log" -ldflags "-s -w" -o "$BIN/pause" .) || die "pause does not build"
    rm -rf "$work"
}

program() { # program NAME MODULE VERSION PACKAGE
    go_program "$BIN/$1-$3" "$2" "v$3" "$4"
    ln -sf "$1-$3" "$BIN/$1"
}

image() { # image NAME TAG: an archive of the program of that name and nothing else
    [ "$IMAGES/$1.tar" -ot "$BIN/$1" ] || return 0
    tar -C "$BIN" --dereference -c "$1" | docker import --change "ENTRYPOINT [\"/$1\"]" - "$2" >/dev/null
    docker save "$2" -o "$IMAGES/$1.tar"
}

kubernetes
say "Building CoreDNS, metrics-server and pause"
program coredns github.com/coredns/coredns "$COREDNS_VERSION" github.com/coredns/coredns
program metrics-server sigs.k8s.io/metrics-server "$METRICS_SERVER_VERSION" sigs.k8s.io/metrics-server/cmd/metrics-server
pause
image pause "$CLUSTER_PAUSE_IMAGE"
image coredns "$CLUSTER_COREDNS_IMAGE"
