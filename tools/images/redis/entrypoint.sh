#!/bin/sh
# As in the official image, other containers may connect without a password if none is set: who may reach Redis is the network's matter.
set -eu
case ${1:-} in
    -* | *.conf) set -- redis-server "$@" ;;
esac
if [ "$1" = redis-server ]; then
    shift
    case ${1:-} in
        *.conf) file=$1; shift; set -- redis-server "$file" --protected-mode no "$@" ;;
        *) set -- redis-server --protected-mode no "$@" ;;
    esac
fi
exec "$@"
