# Finds uv, or brings it: sourced by the other scripts, which stand in the root of the repository.

UV_VERSION=0.13.9   # requirements/uv.txt pins the same, with hashes

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# python_version PATH -> "3.11", or nothing when it does not run (version managers leave such shims).
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' </dev/null 2>/dev/null; }

# The Python that the platform runs on: LEPTON_PYTHON, or python3 when it is 3.11 to 3.13, or the newest of these on the PATH.
find_python() {
    local candidate version newer=
    for candidate in ${LEPTON_PYTHON:+"$LEPTON_PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
        version=$(python_version "$candidate") || continue
        case $version in
            3.11 | 3.12 | 3.13) "$candidate" -c 'import sys; print(sys.executable)'; return ;;
            3.1[4-9]) newer=${newer:-$candidate} ;;
        esac
        [ "$candidate" != "${LEPTON_PYTHON:-}" ] || die "LEPTON_PYTHON is Python $version; Lepton needs 3.11, 3.12 or 3.13."
    done
    if [ -n "$newer" ]; then
        say "Python 3.11, 3.12 or 3.13 is what Lepton is tested with; going on with $newer, as there is none of these."
        "$newer" -c 'import sys; print(sys.executable)'
        return
    fi
    die "Lepton needs Python 3.11, 3.12 or 3.13, and none is on the PATH. Install one, or name it: LEPTON_PYTHON=/path/to/python3.11 make install"
}

# An uv of ours, or one on the PATH that is not older than what the flags here need; else ours is installed into .tools/uv.
find_uv() {
    local own=.tools/uv/bin/uv python
    if [ -x "$own" ] && [ "$("$own" --version 2>/dev/null | cut -d' ' -f2)" = "$UV_VERSION" ]; then
        echo "$PWD/$own"
        return
    fi
    if command -v uv >/dev/null && uv --version 2>/dev/null | awk '{ split($2, v, "."); exit !(v[1] > 0 || v[2] >= 8) }'; then
        command -v uv
        return
    fi
    python=$(find_python) || exit 1
    say "Bringing uv $UV_VERSION into .tools/uv"
    rm -rf .tools/uv
    "$python" -m venv .tools/uv >&2 || die "$python cannot make a virtual environment (on Debian: apt-get install python3-venv)."
    .tools/uv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r requirements/uv.txt >&2 \
        || die "uv could not be installed: is a Python package registry within reach?"
    echo "$PWD/$own"
}
