#!/usr/bin/env bash
# Makes images of the local Docker engine known to the cluster: load.sh NAME:TAG…; those that it has already are passed over.
# Manifests name the same NAME:TAG with imagePullPolicy IfNotPresent.
set -euo pipefail
HERE=$(dirname "$(readlink -f "$0")")
. "$HERE/common.sh"
[ $# -gt 0 ] || die "usage: load.sh IMAGE…"
pid_of containerd >/dev/null || die "the cluster's containerd does not run: start it with up.sh"
mkdir -p "$RUN/loaded"
# What the engine has no more takes room for nothing.
for stamp in "$RUN"/loaded/*; do
    [ -e "$stamp" ] || continue
    image=$(cut -d' ' -f2 "$stamp")
    docker image inspect "$image" >/dev/null 2>&1 || { ctrk images rm "docker.io/$image" >/dev/null 2>&1; rm -f "$stamp"; }
done
# A node whose disk is full throws images away.
there=$(ctrk images ls -q)
has() { grep -qx "docker.io/$1" <<<"$there"; }
# Only what the cluster lacks, where the engine's store can be read.
archive() { # archive ID IMAGE
    if [ "$driver" = overlay2 ]; then ctrk content ls -q | "$HERE/layers.py" "$1" "docker.io/$2"; else docker save "$2"; fi
}
driver=$(docker info --format '{{.Driver}}')
for image; do
    id=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) || die "the Docker engine has no image $image"
    stamp=$RUN/loaded/$(tr '/:' '__' <<<"$image")
    [ "$(cut -d' ' -f1 "$stamp" 2>/dev/null)" != "$id" ] || ! has "$image" || continue
    begin=$SECONDS
    if same=$(grep -hm1 "^$id " "$RUN"/loaded/*) && has "${same#* }"; then
        # There already, by another name.
        ctrk images tag --force "docker.io/${same#* }" "docker.io/$image" >/dev/null || die "the cluster does not take the tag $image"
    else
        archive "$id" "$image" | ctrk images import - >/dev/null || die "the import of $image failed"
    fi
    echo "$id $image" >"$stamp"
    say "loaded $image in $((SECONDS - begin)) s"
done
