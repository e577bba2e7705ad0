#!/usr/bin/env bash
# A cluster on this machine with the platform's images in it, from nothing: Debian's packages, Kubernetes out of Go modules, the images.
# Its last line is what a shell needs to use it.
set -euo pipefail
HERE=$(dirname "$(readlink -f "$0")")
missing=()
for need in etcd:etcd-server containerd:containerd runc:runc iptables:iptables ip:iproute2 conntrack:conntrack openssl:openssl curl:curl; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
[ -x /usr/lib/cni/bridge ] || [ -n "${CLUSTER_CNI_BIN:-}" ] || missing+=(containernetworking-plugins)
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || { echo "missing: ${missing[*]} (names of Debian's packages)" >&2; exit 1; }
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
fi
"$HERE/build.sh"
"$HERE/up.sh" >&2
. "$HERE/common.sh"
export KUBECONFIG=$KUBECONFIG_ADMIN PATH=$BIN:$PATH
cd "$HERE/../.."
docker compose build >&2
# Pulled where there is a registry, built before where there is none.
mapfile -t images < <(tools/k8s.sh images)
for image in "${images[@]}"; do
    docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" >&2
done
"$HERE/load.sh" "${images[@]}" >&2
echo "export KUBECONFIG=$KUBECONFIG_ADMIN PATH=$BIN:\$PATH"
