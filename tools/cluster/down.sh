#!/usr/bin/env bash
# down.sh - stops the cluster that up.sh started.
#
#   down.sh           keeps the cluster's state (etcd, images): up.sh brings it back
#   down.sh --purge   removes $CLUSTER_HOME/run and the hostPath volumes as well
#
# Leaves no process, network interface, iptables rule, cgroup or mount behind.
# Safe to run at any time, and again.
set -uo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"
need_root
case ${1:-} in '' | --purge) ;; *) die "usage: down.sh [--purge]" ;; esac

# kubelet first: it would restart what is stopped below
for d in metrics-server kubelet kube-scheduler kube-controller-manager; do stop_daemon $d; done

# the pods
if pid_of containerd >/dev/null && ctrk version >/dev/null 2>&1; then
  for c in $(ctrk tasks ls -q 2>/dev/null); do ctrk tasks kill -s SIGKILL -a "$c" >/dev/null 2>&1; done
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    for c in $(ctrk tasks ls -q 2>/dev/null); do ctrk tasks rm -f "$c" >/dev/null 2>&1; done
    [ -n "$(ctrk tasks ls -q 2>/dev/null)" ] || break
    sleep 0.3
  done
  for c in $(ctrk containers ls -q 2>/dev/null); do ctrk containers rm "$c" >/dev/null 2>&1; done
fi
stop_daemon containerd
# containerd-shims outlive containerd; ours are those that serve our socket
for p in /proc/[0-9]*; do
  { tr '\0' ' ' <"$p/cmdline"; } 2>/dev/null |
    grep -q -- "containerd-shim-runc-v2 -namespace k8s.io .*-address $CTRD_SOCK" &&
    kill -9 "${p#/proc/}" 2>/dev/null
done

# kube-proxy, its rules, ours, and those of the CNI plugins
stop_daemon kube-proxy
[ ! -x "$BIN/kube-proxy" ] || "$BIN/kube-proxy" --cleanup >/dev/null 2>&1
for t in iptables ip6tables; do
  command -v "$t" >/dev/null || continue
  for table in nat filter mangle; do
    "$t" -w -t $table -S 2>/dev/null | grep -E -- '^-A ' |
      grep -E -- 'lepton-cluster|-[Aj] (KUBE-|CNI-)' | sed 's/^-A/-D/' |
      while read -r rule; do eval "$t -w -t $table $rule" 2>/dev/null; done
    for chain in $("$t" -w -t $table -S 2>/dev/null | awk '$1 == "-N" && $2 ~ /^(KUBE|CNI)-/ {print $2}'); do
      "$t" -w -t $table -F "$chain" 2>/dev/null; "$t" -w -t $table -X "$chain" 2>/dev/null
    done
  done
done

for d in kube-apiserver etcd; do stop_daemon $d; done

# mounts under the work dir, network namespaces, bridges, pod cgroups
awk -v r="$RUN/" 'index($5, r) == 1 {print $5}' /proc/self/mountinfo | sort -r |
  while read -r m; do umount -l "$m" 2>/dev/null; done
if ls "$RUN"/cni-ipam/lepton-cluster/*.* >/dev/null 2>&1 || [ -d /run/netns ]; then
  for ns in /run/netns/cni-*; do
    [ -e "$ns" ] || continue
    ip netns exec "${ns##*/}" ip -4 addr show 2>/dev/null | grep -q " ${CLUSTER_POD_CIDR%.*}\." || continue
    ip netns delete "${ns##*/}" 2>/dev/null
  done
fi
rm -rf "$RUN/cni-ipam" /var/lib/cni/results/lepton-cluster-* /var/lib/cni/cache/results/lepton-cluster-*
for br in "$CLUSTER_POD_BRIDGE" "$CLUSTER_NODE_BRIDGE"; do ip link delete "$br" 2>/dev/null; done
for i in 1 2 3; do
  find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null
done
if [ -z "$CLUSTER_KEEP_SYSCTL" ] && [ -s "$RUN/config/sysctl.saved" ]; then
  while read -r s; do sysctl -qw "$s" 2>/dev/null; done <"$RUN/config/sysctl.saved"
  rm -f "$RUN/config/sysctl.saved"
fi
find /var/log/containers -maxdepth 1 -lname "$RUN/*" -delete 2>/dev/null

if [ "${1:-}" = --purge ]; then
  rm -rf "$RUN" || die "could not remove $RUN (still mounted?)"
  rm -rf /tmp/hostpath_pv      # where the host-path provisioner puts volumes; not configurable
  say "state removed"
fi
say "cluster is down"
