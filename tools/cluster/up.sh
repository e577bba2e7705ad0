#!/usr/bin/env bash
# up.sh - starts a single-node Kubernetes cluster on this machine, or completes
# one that is partly up. Needs: build.sh run once; Debian packages
#   containerd runc iptables etcd-server containernetworking-plugins conntrack openssl iproute2 curl
#
# Parts: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, containerd
# (its own instance and socket; dockerd's is left alone), kubelet, kube-proxy
# (iptables mode), a bridge CNI, CoreDNS as pods, metrics-server as a process,
# and a default StorageClass (host path).
#
# Afterwards: export KUBECONFIG=$CLUSTER_HOME/run/kubeconfig/admin.conf
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

need_root
need_cmd etcd etcd-server
need_cmd containerd containerd
need_cmd runc runc
need_cmd iptables iptables
need_cmd openssl openssl
need_cmd ip iproute2
need_cmd curl curl
[ -x "$CLUSTER_CNI_BIN/bridge" ] || die "no CNI plugins in $CLUSTER_CNI_BIN; apt-get install -y containernetworking-plugins, or set CLUSTER_CNI_BIN"
for b in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
  [ -x "$BIN/$b" ] || die "$BIN/$b missing: run build.sh first"
done
[ -r "$IMAGES/pause.tar" ] && [ -r "$IMAGES/coredns.tar" ] || die "images missing in $IMAGES: run build.sh images"
for c in cpu cpuacct cpuset memory; do
  [ -d /sys/fs/cgroup/$c ] || [ -e /sys/fs/cgroup/cgroup.controllers ] || die "cgroup controller $c is not mounted"
done
mkdir -p "$RUN"/{pki,kubeconfig,config,pid,etcd,kubelet,cni} "$LOG"
T0=$SECONDS

# ---------------------------------------------------------------- network
# The node's address sits on a bridge of its own: it exists on any machine, stays
# the same, and nothing outside this machine can reach it.
ip link show "$CLUSTER_NODE_BRIDGE" >/dev/null 2>&1 || ip link add "$CLUSTER_NODE_BRIDGE" type bridge
ip addr replace "$CLUSTER_NODE_IP/32" dev "$CLUSTER_NODE_BRIDGE"
ip link set "$CLUSTER_NODE_BRIDGE" up

# dockerd sets the FORWARD policy to DROP; let pod traffic through. (No loading of
# br_netfilter here: it must be in the kernel, or be loaded before.)
sysctl -qw net.ipv4.ip_forward=1
[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || sysctl -qw net.bridge.bridge-nf-call-iptables=1
for dir in -s -d; do
  iptables -w -C FORWARD $dir "$CLUSTER_POD_CIDR" -m comment --comment lepton-cluster -j ACCEPT 2>/dev/null ||
    iptables -w -I FORWARD 1 $dir "$CLUSTER_POD_CIDR" -m comment --comment lepton-cluster -j ACCEPT
done

cat >"$RUN/cni/10-k8s.conflist" <<EOF
{
  "cniVersion": "0.4.0",
  "name": "lepton-cluster",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "$CLUSTER_POD_BRIDGE",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "$RUN/cni-ipam",
        "ranges": [[{"subnet": "$CLUSTER_POD_CIDR"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
EOF

# ---------------------------------------------------------------- certificates
PKI=$RUN/pki
ca() { # ca NAME CN
  [ -s "$PKI/$1.crt" ] && return 0
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj "/CN=$2" -keyout "$PKI/$1.key" -out "$PKI/$1.crt" 2>/dev/null
}
cert() { # cert NAME CA SUBJECT [SAN]
  [ -s "$PKI/$1.crt" ] && return 0
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" \
    -keyout "$PKI/$1.key" -out "$PKI/$1.csr" 2>/dev/null
  openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/$2.crt" -CAkey "$PKI/$2.key" \
    -set_serial "0x$(openssl rand -hex 8)" -days 3650 -out "$PKI/$1.crt" 2>/dev/null \
    -extfile <(printf 'extendedKeyUsage=clientAuth,serverAuth\n%s' "${4:+subjectAltName=$4}")
  rm -f "$PKI/$1.csr"
}
kubeconfig() { # kubeconfig NAME: from the certificate of that name
  cat >"$RUN/kubeconfig/$1.conf" <<EOF
apiVersion: v1
kind: Config
current-context: lepton
clusters:
- name: lepton
  cluster:
    server: https://$CLUSTER_NODE_IP:$CLUSTER_API_PORT
    certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")
contexts:
- name: lepton
  context: {cluster: lepton, user: $1}
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$PKI/$1.crt")
    client-key-data: $(base64 -w0 "$PKI/$1.key")
EOF
  chmod 600 "$RUN/kubeconfig/$1.conf"
}
(
  umask 077
  ca ca kubernetes-ca
  ca front-proxy-ca front-proxy-ca
  cert apiserver ca /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$CLUSTER_NODE_IP,IP:$CLUSTER_SERVICE_IP"
  cert apiserver-kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client
  cert front-proxy-client front-proxy-ca /CN=front-proxy-client
  cert kubelet-server ca "/CN=$CLUSTER_NODE_NAME" "DNS:$CLUSTER_NODE_NAME,IP:$CLUSTER_NODE_IP"
  cert metrics-server ca /CN=metrics-server.kube-system.svc "DNS:metrics-server.kube-system.svc,IP:$CLUSTER_NODE_IP"
  cert admin ca /O=system:masters/CN=admin
  cert controller-manager ca /CN=system:kube-controller-manager
  cert scheduler ca /CN=system:kube-scheduler
  cert kubelet ca "/O=system:nodes/CN=system:node:$CLUSTER_NODE_NAME"
  cert kube-proxy ca /CN=system:kube-proxy
  cert metrics-server-client ca /CN=system:serviceaccount:kube-system:metrics-server
  [ -s "$PKI/sa.key" ] || openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null
  [ -s "$PKI/sa.pub" ] || openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null
  for k in admin controller-manager scheduler kubelet kube-proxy metrics-server-client; do kubeconfig $k; done
) || die "making the certificates failed"

# ---------------------------------------------------------------- control plane
start_daemon etcd etcd --name lepton --data-dir "$RUN/etcd" --logger zap --log-level warn \
  --listen-client-urls "http://127.0.0.1:$CLUSTER_ETCD_PORT" --advertise-client-urls "http://127.0.0.1:$CLUSTER_ETCD_PORT" \
  --listen-peer-urls "http://127.0.0.1:$CLUSTER_ETCD_PEER_PORT" --initial-advertise-peer-urls "http://127.0.0.1:$CLUSTER_ETCD_PEER_PORT" \
  --initial-cluster "lepton=http://127.0.0.1:$CLUSTER_ETCD_PEER_PORT"
wait_for 30 etcd curl -fsS "http://127.0.0.1:$CLUSTER_ETCD_PORT/health"

start_daemon kube-apiserver "$BIN/kube-apiserver" \
  --etcd-servers="http://127.0.0.1:$CLUSTER_ETCD_PORT" \
  --bind-address="$CLUSTER_NODE_IP" --advertise-address="$CLUSTER_NODE_IP" --secure-port="$CLUSTER_API_PORT" \
  --service-cluster-ip-range="$CLUSTER_SERVICE_CIDR" \
  --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
  --kubelet-client-certificate="$PKI/apiserver-kubelet-client.crt" --kubelet-client-key="$PKI/apiserver-kubelet-client.key" \
  --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --service-account-key-file="$PKI/sa.pub" --service-account-signing-key-file="$PKI/sa.key" \
  --requestheader-client-ca-file="$PKI/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
  --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
  --requestheader-extra-headers-prefix=X-Remote-Extra- \
  --proxy-client-cert-file="$PKI/front-proxy-client.crt" --proxy-client-key-file="$PKI/front-proxy-client.key" \
  --enable-aggregator-routing=true --allow-privileged=true \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
wait_for 90 kube-apiserver kc get --raw /readyz

start_daemon kube-controller-manager "$BIN/kube-controller-manager" \
  --kubeconfig="$RUN/kubeconfig/controller-manager.conf" \
  --authentication-kubeconfig="$RUN/kubeconfig/controller-manager.conf" \
  --authorization-kubeconfig="$RUN/kubeconfig/controller-manager.conf" \
  --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true \
  --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" \
  --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
  --enable-hostpath-provisioner=true --controllers='*,-node-ipam-controller'
start_daemon kube-scheduler "$BIN/kube-scheduler" \
  --kubeconfig="$RUN/kubeconfig/scheduler.conf" \
  --authentication-kubeconfig="$RUN/kubeconfig/scheduler.conf" \
  --authorization-kubeconfig="$RUN/kubeconfig/scheduler.conf" \
  --bind-address=127.0.0.1 --leader-elect=false

# ---------------------------------------------------------------- container runtime
# An unprivileged container may lack CAP_SYS_RESOURCE: restrict_oom_score_adj keeps
# containerd from asking for a lower oom score than its own, which would fail.
cat >"$RUN/config/containerd.toml" <<EOF
version = 2
root = "$RUN/containerd/root"
state = "$RUN/containerd/state"
oom_score = 0
[grpc]
  address = "$CTRD_SOCK"
[plugins."io.containerd.internal.v1.opt"]
  path = "$RUN/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$CLUSTER_PAUSE_IMAGE"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CLUSTER_CNI_BIN"
    conf_dir = "$RUN/cni"
EOF
start_daemon containerd containerd --config "$RUN/config/containerd.toml" --log-level warn
wait_for 30 containerd ctrk version
ctrk images ls -q >"$RUN/config/images"
for image in "$CLUSTER_PAUSE_IMAGE:pause" "$CLUSTER_COREDNS_IMAGE:coredns"; do
  tar=$IMAGES/${image##*:}.tar stamp=$RUN/config/${image##*:}.sha256
  # again when the file changed, or a node whose disk was full threw it away
  sha256sum --status -c "$stamp" 2>/dev/null && grep -qx "docker.io/${image%:*}" "$RUN/config/images" && continue
  ctrk images import "$tar" >/dev/null || die "importing $tar failed"
  sha256sum "$tar" >"$stamp"
done

# ---------------------------------------------------------------- kubelet
# Kubelet changes these; down.sh puts them back.
[ -s "$RUN/config/sysctl.saved" ] || for s in vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops; do
  echo "$s=$(sysctl -n $s)"
done >"$RUN/config/sysctl.saved"

# imageGCHighThresholdPercent 100 switches image collection off: a local image that
# is collected cannot be pulled again. Eviction only when the disk is all but full.
cat >"$RUN/config/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $CLUSTER_NODE_IP
healthzBindAddress: 127.0.0.1
containerRuntimeEndpoint: unix://$CTRD_SOCK
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDomain: cluster.local
clusterDNS: [$CLUSTER_DNS_IP]
resolvConf: /etc/resolv.conf
podLogsDir: $RUN/pod-logs
oomScoreAdj: 0
maxOpenFiles: $(ulimit -Hn | sed 's/unlimited/1000000/')
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, imagefs.inodesFree: 1%}
evictionPressureTransitionPeriod: 20s
shutdownGracePeriod: 0s
tlsCertFile: $PKI/kubelet-server.crt
tlsPrivateKeyFile: $PKI/kubelet-server.key
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $PKI/ca.crt}
authorization: {mode: Webhook}
EOF
KUBELET_RAN=$(pid_of kubelet || true)
STARTED=$(date +%s)
start_daemon kubelet "$BIN/kubelet" --config="$RUN/config/kubelet.yaml" \
  --kubeconfig="$RUN/kubeconfig/kubelet.conf" --root-dir="$RUN/kubelet" \
  --hostname-override="$CLUSTER_NODE_NAME" --node-ip="$CLUSTER_NODE_IP"

# It ends when this file is written, also where it says what it said; a proxy that runs keeps the one it has.
pid_of kube-proxy >/dev/null || cat >"$RUN/config/kube-proxy.yaml" <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: $CLUSTER_NODE_NAME
clientConnection: {kubeconfig: $RUN/kubeconfig/kube-proxy.conf}
clusterCIDR: $CLUSTER_POD_CIDR
bindAddress: $CLUSTER_NODE_IP
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
EOF
start_daemon kube-proxy "$BIN/kube-proxy" --config="$RUN/config/kube-proxy.yaml"

# ---------------------------------------------------------------- addons
# CoreDNS forwards other names to the machine's resolver, unless that is a loopback
# address (it would mean CoreDNS itself, inside the pod).
FORWARD='forward . /etc/resolv.conf'
if ! awk '$1 == "nameserver" && $2 !~ /^(127\.|::1)/ {found = 1} END {exit !found}' /etc/resolv.conf; then FORWARD=; fi
cat >"$RUN/config/addons.yaml" <<EOF
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: kubernetes.io/host-path
reclaimPolicy: Delete
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: system:coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: system:coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        health
        ready
        kubernetes cluster.local in-addr.arpa {
           pods insecure
           ttl 5
        }
        $FORWARD
        cache 5
        reload
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      priorityClassName: system-cluster-critical
      dnsPolicy: Default
      containers:
      - name: coredns
        image: $CLUSTER_COREDNS_IMAGE
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        ports: [{containerPort: 53, name: dns, protocol: UDP}, {containerPort: 53, name: dns-tcp, protocol: TCP}]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /health, port: 8080}, initialDelaySeconds: 30}
        resources: {requests: {cpu: 50m, memory: 30Mi}, limits: {memory: 170Mi}}
        volumeMounts: [{name: config, mountPath: /etc/coredns, readOnly: true}]
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: $CLUSTER_DNS_IP
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
EOF
if [ -x "$BIN/metrics-server" ]; then
  # A process on the node, behind a Service without a selector.
  cat >>"$RUN/config/addons.yaml" <<EOF
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: metrics-server, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: system:metrics-server}
rules:
- {apiGroups: [""], resources: [nodes/metrics, nodes/stats], verbs: [get]}
- {apiGroups: [""], resources: [pods, nodes, namespaces, configmaps], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: system:metrics-server}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:metrics-server}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "metrics-server:system:auth-delegator"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: metrics-server-auth-reader, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
---
apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: kube-system}
spec:
  ports: [{name: https, port: 443, protocol: TCP, targetPort: $CLUSTER_METRICS_PORT}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: metrics-server-1
  namespace: kube-system
  labels: {kubernetes.io/service-name: metrics-server, endpointslice.kubernetes.io/managed-by: lepton-cluster}
addressType: IPv4
ports: [{name: https, port: $CLUSTER_METRICS_PORT, protocol: TCP}]
endpoints: [{addresses: [$CLUSTER_NODE_IP], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: $(base64 -w0 "$PKI/ca.crt")
  service: {name: metrics-server, namespace: kube-system}
EOF
fi
# system:kube-proxy is bound to its role by the API server itself.
kc apply -f "$RUN/config/addons.yaml" >/dev/null || die "applying the addons failed ($RUN/config/addons.yaml)"
if [ -x "$BIN/metrics-server" ]; then
  start_daemon metrics-server "$BIN/metrics-server" \
    --kubeconfig="$RUN/kubeconfig/metrics-server-client.conf" \
    --authentication-kubeconfig="$RUN/kubeconfig/metrics-server-client.conf" \
    --authorization-kubeconfig="$RUN/kubeconfig/metrics-server-client.conf" \
    --bind-address="$CLUSTER_NODE_IP" --secure-port="$CLUSTER_METRICS_PORT" --metric-resolution=10s --kubelet-request-timeout=5s \
    --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$PKI/ca.crt" \
    --tls-cert-file="$PKI/metrics-server.crt" --tls-private-key-file="$PKI/metrics-server.key"
fi

# ---------------------------------------------------------------- ready?
# After a restart the API still holds the old run's "Ready", so look for signs of
# this one: a heartbeat newer than the start, and DNS answering through its Service.
fresh_node() {
  local beat
  beat=$(kc get node "$CLUSTER_NODE_NAME" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].lastHeartbeatTime}') &&
    [ -n "$beat" ] && [ "$(date -d "$beat" +%s)" -ge "$STARTED" ]
}
dns_answers() { timeout 2 bash -c "exec 3<>/dev/tcp/$CLUSTER_DNS_IP/53"; }
[ -n "$KUBELET_RAN" ] || wait_for 60 kubelet fresh_node
kc wait --for=condition=Ready "node/$CLUSTER_NODE_NAME" --timeout=120s >/dev/null ||
  { tail -n 20 "$LOG/kubelet.log" >&2; die "the node did not become Ready; see $LOG/kubelet.log"; }
kc -n kube-system rollout status deployment/coredns --timeout=120s >/dev/null ||
  die "CoreDNS did not become ready: $BIN/kubectl --kubeconfig $KUBECONFIG_ADMIN -n kube-system describe pods"
wait_for 60 kube-proxy dns_answers
if [ -x "$BIN/metrics-server" ]; then   # its first values take some 20 s more
  wait_for 60 metrics-server kc get --raw /apis/metrics.k8s.io/v1beta1
fi
say "cluster is up after $((SECONDS - T0)) s"
echo "export KUBECONFIG=$KUBECONFIG_ADMIN PATH=$BIN:\$PATH"
