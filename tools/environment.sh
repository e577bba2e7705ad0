#!/bin/sh
# Makes an image's environment in /opt/lepton from one lock of requirements/; runs inside `docker build` alone.
set -eu
if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi
/tools/bin/uv venv --quiet /opt/lepton
# With bytecode: file systems are read-only at run time.
/tools/bin/uv pip sync --quiet --python /opt/lepton/bin/python --require-hashes --compile-bytecode "requirements/$1.txt"
cd /opt/lepton
# Tests of packages, what only compilers read, and symbols that only debuggers read.
find . -depth -type d \( -name tests -o -name SelfTest \) -path '*/site-packages/*' -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.a' -o -name '*.pyx' -o -name '*.c' -o -name '*.h' \) -delete
if command -v strip >/dev/null; then
    find . -type f -name '*.so*' -size -64M -not -path '*.libs/*' -exec strip --strip-unneeded {} + 2>/dev/null || true
else
    echo "no strip here: the image keeps the symbols of its libraries" >&2
fi
