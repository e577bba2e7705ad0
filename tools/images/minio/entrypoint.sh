#!/bin/sh
# `minio server …` and `server …` both, as in the official image.
set -eu
[ "${1:-}" != minio ] || shift
exec minio "$@"
