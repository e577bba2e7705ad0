#!/usr/bin/env bash
# Makes the hashed locks in requirements/ from the dependency groups of pyproject.toml, one a group.
#
#   tools/lock.sh              pins stay as they are where they still fit
#   tools/lock.sh --upgrade    everything to its newest version (also: --upgrade-package NAME)
#
# `dev` holds every group and is resolved first; the others are resolved inside its pins, so that all locks agree.
# One lock serves all platforms and Python 3.11 and later; no lock carries an address.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/uv.sh
uv=$(find_uv)
groups=(gateway control data serving ml worker standalone client build)
work=$(mktemp -d "${TMPDIR:-/tmp}/lepton-lock.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/requirements"
cp requirements/*.txt "$work/requirements/" 2>/dev/null || true
cp pyproject.toml "$work/"
cd "$work"

compile() { # compile OUTPUT SOURCE... : keeps OUTPUT's pins as preferences
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --annotation-style line \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file "requirements/$1" "${@:2}"
}

compile dev.txt --group pyproject.toml:dev "$@"
for group in "${groups[@]}"; do
    rm -f "requirements/$group.txt"    # only dev's pins count
    compile "$group.txt" --group "pyproject.toml:$group" --constraints requirements/dev.txt
done
printf 'uv==%s\n' "$UV_VERSION" >uv.in
compile uv.txt uv.in

cd "$OLDPWD"
for lock in "$work"/requirements/*.txt; do
    name=$(basename "$lock")
    cmp -s "$lock" "requirements/$name" || { mv "$lock" "requirements/$name"; echo "requirements/$name"; }
done
