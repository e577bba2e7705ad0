#!/usr/bin/env bash
# The platform on the Kubernetes cluster of the current context.
#
#   tools/k8s.sh up            applies k8s/overlays/dev, waits until all answers, and says where and with which key
#   tools/k8s.sh backends      of the same the servers alone that the platform stands on, as before their contents are restored
#   tools/k8s.sh secrets       writes to standard output the Secrets of a new platform, for `kubectl apply -f -`
#   tools/k8s.sh manifests     writes what `up` applies, but for the Secrets
#   tools/k8s.sh images        the images that they name
#   tools/k8s.sh down          removes all of it, its data too
#
# Images are those of compose.yaml, by the same variables: LEPTON_IMAGE_PREFIX, LEPTON_VERSION, LEPTON_POSTGRES_IMAGE, …; what .env says of
# them counts where the environment says nothing. LEPTON_NAMESPACE is `lepton` unless said otherwise, LEPTON_NODE_PORT is 30080. With
# LEPTON_OVERLAY=prod `manifests` and `images` are about k8s/overlays/prod.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
namespace=${LEPTON_NAMESPACE:-lepton}
overlay=${LEPTON_OVERLAY:-dev}
BACKENDS=app.kubernetes.io/part-of=lepton-backends
SERVICES=(accounts data compute training deployment marketplace)

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
need() { command -v "$1" >/dev/null || die "$1 is missing: $2"; }
kube() { kubectl --namespace "$namespace" "$@"; }

# What .env says of images, without what else is in it.
if [ -r .env ]; then
    while IFS='=' read -r name value; do
        [ -n "${!name:-}" ] || export "$name=$value"
    done < <(grep -E '^LEPTON_([A-Z_]+_IMAGE|IMAGE_PREFIX|VERSION)=' .env)
fi

# A line of `images:` for each name in the manifests that the environment replaces.
replaced() {
    local name variable image
    for name in gateway "${SERVICES[@]}" worker; do
        printf '  - {name: lepton/%s, newName: %s%s, newTag: "%s"}\n' "$name" "${LEPTON_IMAGE_PREFIX:-lepton/}" "$name" "${LEPTON_VERSION:-dev}"
    done
    while read -r variable name; do
        image=${!variable:-}
        [ -z "$image" ] || printf '  - {name: %s, newName: %s, newTag: "%s"}\n' "$name" "${image%:*}" "${image##*:}"
    done <<'NAMES'
LEPTON_POSTGRES_IMAGE postgres
LEPTON_KAFKA_IMAGE apache/kafka
LEPTON_MINIO_IMAGE minio/minio
LEPTON_REDIS_IMAGE redis
LEPTON_OTEL_COLLECTOR_IMAGE otel/opentelemetry-collector-contrib
LEPTON_JAEGER_IMAGE jaegertracing/all-in-one
LEPTON_PROMETHEUS_IMAGE prom/prometheus
NAMES
}

# Of the one overlay that has it.
node_port() {
    [ "$overlay" != dev ] || cat <<YAML
  - target: {kind: Service, name: gateway}
    patch: |
      - {op: replace, path: /spec/ports/0/nodePort, value: ${LEPTON_NODE_PORT:-30080}}
YAML
}

manifests() {
    mkdir -p build/k8s
    local folder
    folder=$(mktemp -d build/k8s/XXXXXX)
    cat >"$folder/kustomization.yaml" <<YAML
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: $namespace
resources: [../../../k8s/overlays/$overlay]
images:
$(replaced)
patches:
$(node_port)
  - patch: |
      apiVersion: v1
      kind: ConfigMap
      metadata: {name: lepton-runner}
      data: {LEPTON_PLATFORM_LAUNCHER__IMAGE: "${LEPTON_IMAGE_PREFIX:-lepton/}worker:${LEPTON_VERSION:-dev}"}
  # Those of the cluster have no namespace: several platforms have several names.
  - target: {kind: ClusterRole, name: lepton-runner}
    patch: |
      - {op: replace, path: /metadata/name, value: lepton-runner-$namespace}
  - target: {kind: ClusterRoleBinding, name: lepton-runner}
    patch: |
      - {op: replace, path: /metadata/name, value: lepton-runner-$namespace}
      - {op: replace, path: /roleRef/name, value: lepton-runner-$namespace}
  - target: {kind: Namespace}
    patch: |
      - {op: replace, path: /metadata/name, value: $namespace}
YAML
    kubectl kustomize "$folder"
    rm -rf "$folder"
}

# put FOLDER NAME: the value on standard input as a file, which is how kubectl takes secrets without an argument list that shows them.
put() { mkdir -p "$1"; cat >"$1/$2"; }

# Keys and passwords that nobody else has. What stands on other hosts than the components: LEPTON_POSTGRES (host:port), LEPTON_EVENTS_URL,
# LEPTON_STORAGE_URL, LEPTON_TASKS_URL, LEPTON_STORAGE_ACCESS_KEY, and LEPTON_STORAGE_SECRET_KEY.
secrets() (
    need openssl "on Debian: apt-get install openssl"
    umask 077
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    events=${LEPTON_EVENTS_URL:-kafka://kafka:9092} storage=${LEPTON_STORAGE_URL:-s3+http://minio:9000} tasks=${LEPTON_TASKS_URL:-}
    access=${LEPTON_STORAGE_ACCESS_KEY:-lepton} own=${LEPTON_STORAGE_SECRET_KEY:-}
    unset LEPTON_EVENTS_URL LEPTON_STORAGE_URL LEPTON_TASKS_URL LEPTON_STORAGE_ACCESS_KEY
    # Where somebody else chose the store's key, it is not made anew.
    [ -z "$own" ] || printf 'LEPTON_STORAGE_SECRET_KEY=%s\n' "$own" >"$work/env"
    tools/env.sh "$work/env"
    set -a
    . "$work/env"
    set +a
    platform=$work/lepton-platform
    put "$platform" LEPTON_PLATFORM_EVENTS__URL < <(printf %s "$events")
    put "$platform" LEPTON_PLATFORM_STORAGE__URL < <(printf %s "$storage")
    put "$platform" LEPTON_PLATFORM_STORAGE__ACCESS_KEY < <(printf %s "$access")
    put "$platform" LEPTON_PLATFORM_STORAGE__SECRET_KEY < <(printf %s "$LEPTON_STORAGE_SECRET_KEY")
    put "$platform" LEPTON_PLATFORM_TASKS_URL < <(printf %s "${tasks:-redis://:$LEPTON_REDIS_PASSWORD@redis:6379/0}")
    put "$platform" LEPTON_PLATFORM_IDENTITY__PUBLIC_KEYS < <(printf %s "$LEPTON_IDENTITY_PUBLIC_KEYS")
    for service in "${SERVICES[@]}"; do
        name=LEPTON_${service^^}
        key=${name}_PRIVATE_KEY password=${name}_DATABASE__PASSWORD
        put "$work/lepton-$service" "${name}_IDENTITY__PRIVATE_KEY" < <(printf %s "${!key}")
        put "$work/lepton-$service" "${name}_DATABASE__PASSWORD" < <(printf %s "${!password}")
        put "$work/lepton-$service" "${name}_DATABASE__URL" \
            < <(printf %s "postgresql+asyncpg://lepton_$service@${LEPTON_POSTGRES:-postgres:5432}/lepton_$service")
        put "$work/lepton-postgres" "${name}_DATABASE__PASSWORD" < <(printf %s "${!password}")
    done
    put "$work/lepton-accounts" LEPTON_ACCOUNTS_BOOTSTRAP_KEY < <(printf %s "$LEPTON_API_KEY")
    put "$work/lepton-gateway" LEPTON_GATEWAY_IDENTITY__PRIVATE_KEY < <(printf %s "$LEPTON_GATEWAY_PRIVATE_KEY")
    put "$work/lepton-node" LEPTON_COMPUTE_IDENTITY__PRIVATE_KEY < <(printf %s "$LEPTON_NODE_PRIVATE_KEY")
    put "$work/lepton-postgres" POSTGRES_PASSWORD < <(printf %s "$LEPTON_POSTGRES_PASSWORD")
    put "$work/lepton-minio" MINIO_ROOT_USER < <(printf %s "$access")
    put "$work/lepton-minio" MINIO_ROOT_PASSWORD < <(printf %s "$LEPTON_STORAGE_SECRET_KEY")
    put "$work/lepton-redis" redis.conf < <(printf 'requirepass %s\nsave ""\nappendonly no\nmaxmemory 256mb\n' "$LEPTON_REDIS_PASSWORD")
    for folder in "$work"/lepton-*; do
        kube create secret generic "${folder##*/}" --from-file="$folder" --dry-run=client --output yaml \
            | kubectl label --local --filename - app.kubernetes.io/part-of=lepton --output yaml
        echo ---
    done
)

address() {
    local host port
    host=$(kubectl get nodes --output 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
    port=$(kube get service gateway --output 'jsonpath={.spec.ports[0].nodePort}')
    echo "http://$host:$port"
}

# apply [SELECTOR]: into the namespace, which is made where it is missing.
apply() {
    kubectl version >/dev/null 2>&1 || die "no Kubernetes answers: kubectl config current-context says $(kubectl config current-context 2>&1)"
    kubectl get namespace "$namespace" >/dev/null 2>&1 || kubectl create namespace "$namespace" >/dev/null
    # Those that are there stay: the databases know their passwords.
    kube get secret lepton-platform >/dev/null 2>&1 || secrets | kube apply --server-side --filename - >/dev/null
    manifests | kubectl apply --server-side --force-conflicts --field-manager lepton ${1:+--selector "$1"} --filename - >/dev/null
}

# wait_for [SELECTOR]: until what is applied runs as it should; Deployments of replicas are the runner's affair.
wait_for() {
    local workload
    for workload in $(kube get deployments,statefulsets --selector "${1:-app.kubernetes.io/managed-by!=lepton}" --output name); do
        kube rollout status "$workload" --timeout "${LEPTON_WAIT:-300}s" >&2 || {
            kube get pods >&2
            kube get events --sort-by .lastTimestamp | tail -n 15 >&2
            die "$workload did not become ready"
        }
    done
}

up() {
    local began=$SECONDS
    apply
    wait_for
    say "Ready after $((SECONDS - began)) s"
    printf 'export LEPTON_URL=%s LEPTON_API_KEY=%s\n' "$(address)" \
        "$(kube get secret lepton-accounts --output 'jsonpath={.data.LEPTON_ACCOUNTS_BOOTSTRAP_KEY}' | base64 -d)"
}

backends() {
    apply "$BACKENDS"
    wait_for "$BACKENDS"
}

# What a cluster that cannot pull has to be given.
images() { manifests | sed -nE 's/^ *(image|LEPTON_PLATFORM_LAUNCHER__IMAGE): //p' | sort -u; }

down() {
    kubectl delete namespace "$namespace" --ignore-not-found
    kubectl delete clusterrolebinding,clusterrole "lepton-runner-$namespace" --ignore-not-found
}

need kubectl "https://kubernetes.io/docs/tasks/tools"
case ${1:-} in
    up | backends | secrets | manifests | images | down) "$1" ;;
    *) die "usage: tools/k8s.sh up|backends|secrets|manifests|images|down" ;;
esac
