#!/usr/bin/env bash
# Runs Pants, and installs it first where it is missing: into .tools/pants, from the Python package registry alone.
#
#   tools/pants.sh list ::                    any goal of Pants
#   tools/pants.sh check                      what `make pants` does
#
# Pants 2.17 is the newest there; it runs on CPython 3.7 to 3.9 (PANTS_PYTHON names one), whatever the code runs on. It
# would fetch its pex from a release page; a pex made from the registry stands in for it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/uv.sh
PANTS_VERSION=2.17.1 PEX_VERSION=2.1.137
home=$PWD/.tools/pants

find_old_python() {
    local candidate
    for candidate in ${PANTS_PYTHON:+"$PANTS_PYTHON"} python3.9 python3.8 python3.7 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.{9,8,7}.*/bin/python; do
        case $(python_version "$candidate" || true) in
            3.7 | 3.8 | 3.9) "$candidate" -c 'import sys; print(sys.executable)'; return ;;
        esac
    done
    die "Pants $PANTS_VERSION, the newest on the Python package registry, itself runs on CPython 3.7, 3.8 or 3.9, and none was found." \
        "Install one, or name it: PANTS_PYTHON=/path/to/python3.9 tools/pants.sh ... Everything but Pants works without it: make test, make lint."
}

install() {
    local python
    python=$(find_old_python)
    say "Installing Pants $PANTS_VERSION into .tools/pants"
    rm -rf "$home"
    mkdir -p "$home"
    "$python" -m venv "$home/venv" >&2
    "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check "pantsbuild.pants==$PANTS_VERSION" >&2
    "$home/venv/bin/pex" "pex==$PEX_VERSION" -c pex -o "$home/pex" --python-shebang '/usr/bin/env python3' >&2
    echo "$PANTS_VERSION $PEX_VERSION $home" >"$home/installed"
}

unset PYTHONDONTWRITEBYTECODE # else every start of Pants is slow
[ "$(cat "$home/installed" 2>/dev/null)" = "$PANTS_VERSION $PEX_VERSION $home" ] || install
export PANTS_PEX_CLI_VERSION=v$PEX_VERSION
export PANTS_PEX_CLI_URL_TEMPLATE=file://$home/pex
PANTS_PEX_CLI_KNOWN_VERSIONS="['v$PEX_VERSION|linux_x86_64|$(sha256sum "$home/pex" | cut -d' ' -f1)|$(stat -c %s "$home/pex")']"
export PANTS_PEX_CLI_KNOWN_VERSIONS

# Tests run under the pytest that the lock pins; Pants has an older one of its own.
pin() { sed -n "s/^\\($1==[^ ;]*\\).*/\\1/p" requirements/dev.txt; }
PANTS_PYTEST_VERSION=$(pin pytest)
PANTS_PYTEST_EXTRA_REQUIREMENTS="['$(pin pytest-asyncio)', '$(pin pytest-timeout)']"
export PANTS_PYTEST_VERSION PANTS_PYTEST_EXTRA_REQUIREMENTS PANTS_PYTEST_LOCKFILE='<none>'

pants() { "$home/venv/bin/pants" "$@"; }

if [ "${1:-}" != check ]; then
    exec "$home/venv/bin/pants" "$@"
fi
export PANTS_PANTSD=false # leaves no daemon behind
pants --level=warn list :: | wc -l | xargs echo "Pants sees targets:"
pants --level=warn dependencies libs/errors::
pants test libs/errors::
