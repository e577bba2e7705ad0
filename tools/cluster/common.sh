# Settings and helpers of the cluster scripts, which source this. The environment may say otherwise of every value.
#
# All that they build or write lies under $CLUSTER_HOME, but for what the container stack insists on putting elsewhere (see down.sh).

: "${CLUSTER_HOME:=${XDG_CACHE_HOME:-$HOME/.cache}/lepton/cluster}"  # src/ bin/ images/ run/ log/
: "${CLUSTER_VERSION:=1.34.10}"            # last minor that accepts cgroup v1 by default
                                       # and still talks to containerd 1.6
: "${CLUSTER_NODE_NAME:=node1}"
: "${CLUSTER_NODE_BRIDGE:=leptonnode0}"       # port-less bridge that carries the node's address
: "${CLUSTER_NODE_IP:=10.210.0.1}"
: "${CLUSTER_POD_BRIDGE:=leptonpod0}"
: "${CLUSTER_POD_CIDR:=10.211.0.0/24}"
: "${CLUSTER_SERVICE_CIDR:=10.212.0.0/16}"
: "${CLUSTER_SERVICE_IP:=10.212.0.1}"      # first address of the service range
: "${CLUSTER_DNS_IP:=10.212.0.10}"
: "${CLUSTER_API_PORT:=6443}"
: "${CLUSTER_ETCD_PORT:=12379}"            # not 2379: leaves the usual port to the project
: "${CLUSTER_ETCD_PEER_PORT:=12380}"
: "${CLUSTER_METRICS_PORT:=4443}"          # metrics-server, a process on the node
: "${CLUSTER_CNI_BIN:=/usr/lib/cni}"       # Debian: containernetworking-plugins
: "${CLUSTER_PAUSE_IMAGE:=lepton-cluster/pause:1}"
: "${CLUSTER_COREDNS_IMAGE:=lepton-cluster/coredns:1}"
: "${CLUSTER_KEEP_SYSCTL:=}"               # non-empty: down.sh leaves sysctls as kubelet set them

BIN=$CLUSTER_HOME/bin
RUN=$CLUSTER_HOME/run                      # cluster state: pki, etcd, kubelet, containerd
LOG=$CLUSTER_HOME/log
IMAGES=$CLUSTER_HOME/images
CTRD_SOCK=$RUN/containerd.sock
KUBECONFIG_ADMIN=$RUN/kubeconfig/admin.conf

die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }
say() { printf '[%(%H:%M:%S)T] %s\n' -1 "$*"; }

need_root() { [ "$(id -u)" = 0 ] || die "must run as root (network namespaces, mounts, cgroups)"; }

# need_cmd CMD PACKAGE: a Debian tool that must be there.
need_cmd() { command -v "$1" >/dev/null || die "$1 not found; install it with: apt-get install -y $2"; }

# start_time PID: a process's start time, or nothing if it is gone or a zombie
# (pid 1 of a container may take seconds to reap what it inherits).
start_time() { awk '{sub(/^.*\) /, ""); if ($1 != "Z") print $20}' "/proc/$1/stat" 2>/dev/null; }

# pid_of NAME: prints the pid of a daemon started by start_daemon if it still runs.
# The recorded start time guards against a recycled pid (a stale file after a reboot).
pid_of() {
  local f=$RUN/pid/$1 pid start
  [ -r "$f" ] || return 1
  read -r pid start <"$f" || return 1
  [ -n "$start" ] && [ "$(start_time "$pid")" = "$start" ] || return 1
  echo "$pid"
}

# start_daemon NAME COMMAND...: starts it detached with its output in $LOG/NAME.log.
start_daemon() {
  local name=$1 pid; shift
  if pid_of "$name" >/dev/null; then say "$name already runs"; return 0; fi
  mkdir -p "$RUN/pid" "$LOG"
  : >"$LOG/$name.log"
  setsid "$@" >>"$LOG/$name.log" 2>&1 </dev/null &
  pid=$!
  disown "$pid" 2>/dev/null || true
  echo "$pid $(start_time "$pid")" >"$RUN/pid/$name"
}

# stop_daemon NAME [SECONDS]: TERM, then KILL after SECONDS.
stop_daemon() {
  local name=$1 t=${2:-15} pid i
  if pid=$(pid_of "$name"); then
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < t * 10; i++)); do pid_of "$name" >/dev/null || break; sleep 0.1; done
    if pid_of "$name" >/dev/null; then kill -9 "$pid" 2>/dev/null || true; fi
    say "stopped $name"
  fi
  rm -f "$RUN/pid/$name"
}

# wait_for SECONDS WHAT COMMAND...: polls COMMAND; on failure shows the log of WHAT.
wait_for() {
  local t=$1 what=$2 i; shift 2
  for ((i = 0; i < t * 5; i++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    if [ -e "$RUN/pid/$what" ] && ! pid_of "$what" >/dev/null; then
      tail -n 15 "$LOG/$what.log" >&2; die "$what exited; the end of $LOG/$what.log is above"
    fi
    sleep 0.2
  done
  [ ! -e "$LOG/$what.log" ] || tail -n 15 "$LOG/$what.log" >&2
  die "$what not ready after ${t}s (waited for: $*)"
}

kc() { "$BIN/kubectl" --kubeconfig "$KUBECONFIG_ADMIN" "$@"; }
ctrk() { ctr --address "$CTRD_SOCK" --namespace k8s.io "$@"; }
