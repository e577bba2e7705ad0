#!/bin/sh
# Makes an image's environment in /opt/lepton from one lock of requirements/; runs inside `docker build` alone.
set -eu
if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi
/tools/bin/uv venv --quiet /opt/lepton
/tools/bin/uv pip sync --quiet --python /opt/lepton/bin/python --require-hashes "requirements/$1.txt"
# Tests of packages, and what only compilers read.
find /opt/lepton -depth -type d -name tests -path '*/site-packages/*' -exec rm -rf {} +
find /opt/lepton -type f \( -name '*.pyi' -o -name '*.a' -o -name '*.pyx' -o -name '*.c' -o -name '*.h' -path '*/include/*' \) -delete
# Bytecode now: file systems are read-only at run time.
/opt/lepton/bin/python -m compileall -q -j 0 /opt/lepton/lib || true
