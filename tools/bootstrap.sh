#!/usr/bin/env bash
# Makes .venv from requirements/dev.txt, generates the types of proto/, and puts the platform and its client into it, editable.
# Does nothing, in a blink, when nothing changed; can be killed and started again at any moment, and several may run at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/uv.sh
stamp=.venv/.installed
begun=.venv/.installing # there while packages are written: who finds it finds half of them

wanted() { # what the environment is made of
    cat requirements/dev.txt tools/bootstrap.sh tools/uv.sh
    sed -n '/^\[build-system\]/,/^\[dependency-groups\]/p' pyproject.toml
    cat libs/sdk/python/pyproject.toml 2>/dev/null || true
    echo "$PWD" # editable installs and scripts hold the path
}

works() { [ ! -e "$begun" ] && [ -x .venv/bin/python ] && .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

current() { [ -f "$stamp" ] && works && [ "$(cat "$stamp")" = "$digest" ]; }

generate() { # types, and bytecode of our own: without it a start takes twice as long where PYTHONDONTWRITEBYTECODE is set
    .venv/bin/python -m tools.proto
    env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m compileall -q build/proto libs services >/dev/null || true
}

digest=$(wanted | cksum)
if current; then
    generate
    exit
fi

# One at a time. Python's flock, since not every system has the command; it is this shell's descriptor, and goes with it.
python=$(find_python)
mkdir -p .tools
exec 9>.tools/bootstrap.lock
if ! "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then
    say "Waiting for another installation in this folder"
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
fi
if current; then
    generate
    exit
fi

uv=$(find_uv)
export UV_NO_PROGRESS=1
unset VIRTUAL_ENV PYTHONDONTWRITEBYTECODE PYTHONPATH
rm -f "$stamp"
if ! works; then
    say "Making .venv with $("$python" -V)"
    "$uv" venv --quiet --clear --python "$python" .venv
fi
touch "$begun"
say "Installing requirements/dev.txt into .venv: some 5 GB, most of it torch"
# Compiled now: else every first import is slow, and where PYTHONDONTWRITEBYTECODE is set, every import ever.
"$uv" pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode requirements/dev.txt
rm -f "$begun"
generate
projects=(--editable .)
[ ! -f libs/sdk/python/pyproject.toml ] || projects+=(--editable libs/sdk/python)
# `compat` puts folders on the path, which type checkers and editors understand, and which costs no start-up time.
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --config-settings editable_mode=compat "${projects[@]}"
.venv/bin/python -c 'import pathlib, sysconfig
folder = pathlib.Path(sysconfig.get_path("purelib"))
(folder / "lepton-types.pth").write_text(str(pathlib.Path("build/proto").resolve()) + "\n")'
echo "$digest" >"$stamp.new"
mv "$stamp.new" "$stamp"
say "Installed. Next: make demo, make test, or .venv/bin/lepton --help"
