#!/usr/bin/env bash
# Builds the servers' images of compose.yaml out of packages (Debian's, Go's, Maven's), for where no image registry is within reach.
#
#   tools/images.sh                all; those made of the same inputs as before are kept
#   tools/images.sh kafka redis    these, and what they stand on
#   tools/images.sh --env          the lines of .env that point compose.yaml at them
#
# See tools/images/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/images/go.sh
. tools/images/versions.env
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lepton/offline
ALL=(debian python postgres redis kafka minio versitygw prometheus jaeger otel-collector)

variable() { local name=${1^^}; echo "${name//-/_}"; }
tag() {
    local version
    case $1 in
        debian) version=$DEBIAN_RELEASE ;;
        python) version=$PYTHON_VERSION-slim-$DEBIAN_RELEASE ;;
        *) version=$(variable "$1")_VERSION; version=${!version} ;;
    esac
    echo "lepton-offline/$1:$version"
}

# A digest of all that decides what comes out.
inputs() {
    {
        grep "^$(variable "$1")_" tools/images/versions.env
        find "tools/images/$1" -type f | LC_ALL=C sort | xargs sha256sum
        if [ "$1" = debian ]; then declare -f bootstrap; else cat tools/images/apt-install; declare -f "prepare_$1" || true; inputs debian; fi
    } | sha256sum | cut -d' ' -f1
}

# What apt inside builds needs to know of the host: mirrors, certificates, proxies. It is mounted there, and stays out of images.
host_apt() { # host_apt FOLDER
    local list
    mkdir -p "$1"
    need apt-get "apt; images are built on Debian or a relative"
    if [ -n "${LEPTON_DEBIAN_MIRROR:-}" ]; then
        list="deb $LEPTON_DEBIAN_MIRROR $DEBIAN_RELEASE main"
    else
        list=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' \
            | awk -v release="$DEBIAN_RELEASE" '$2 ~ "^" release "(-updates|-security)?$" && $3 == "main" { print "deb", $0 }' | sort -u)
    fi
    [ -n "$list" ] || die "apt knows no mirror of Debian $DEBIAN_RELEASE here; name one: LEPTON_DEBIAN_MIRROR=http://mirror.example/debian"
    echo "$list" >"$1/sources.list"
    apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries|Max-ValidTime|ForceIPv)' | grep -v CaInfo >"$1/apt.conf" || true
    cat >>"$1/apt.conf" <<'CONF'
Dir::Etc::SourceList "/run/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::netrc "/run/apt/auth.conf";
Acquire::Languages "none";
CONF
    cat /etc/apt/auth.conf /etc/apt/auth.conf.d/*.conf 2>/dev/null >"$1/auth.conf" || true
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then
        cp /etc/ssl/certs/ca-certificates.crt "$1/ca.crt"
        echo 'Acquire::https::CaInfo "/run/apt/ca.crt";' >>"$1/apt.conf"
    fi
    cp tools/images/apt-install "$1/install"
}

bootstrap() { # Debian without papers and tables of old encodings, with today's security updates
    need debootstrap debootstrap
    [ "$(id -u)" = 0 ] || die "debootstrap, which makes the base of all images, needs root."
    local root=$context/root mirror
    mirror=$(awk -v release="$DEBIAN_RELEASE" '$3 == release { print $2; exit }' "$context/apt/sources.list")
    debootstrap --variant=minbase "$DEBIAN_RELEASE" "$root" "$mirror" >"$cache/debootstrap.log" 2>&1 || {
        tail -n 10 "$cache/debootstrap.log" >&2
        die "debootstrap failed: $cache/debootstrap.log"
    }
    cp tools/images/debian/dpkg-slim.conf "$root/etc/dpkg/dpkg.cfg.d/slim"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # packages start no services while they are installed
    chmod 755 "$root/usr/sbin/policy-rc.d"
    cp -r "$context/apt" "$root/run/apt"
    chroot "$root" sh -c 'export APT_CONFIG=/run/apt/apt.conf DEBIAN_FRONTEND=noninteractive
        apt-get -qq update && apt-get -qq upgrade --yes --no-install-recommends' >>"$cache/debootstrap.log" 2>&1 ||
        die "apt-get upgrade failed in the new system: $cache/debootstrap.log"
    find "$root"/usr/share/{doc,info,lintian,locale,man} -mindepth 1 -delete
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/{apt,debconf}/* "$root"/var/log/* "$root"/run/apt \
        "$root"/etc/{resolv.conf,hostname} "$root"/usr/share/zoneinfo/{right,posix} "$root"/var/lib/dpkg/*-old "$root"/usr/lib/*/gconv
    cp "$context/apt/sources.list" "$root/etc/apt/sources.list" # builds on this base find packages where the host does
    tar -C "$root" -c . | docker import --change "LABEL lepton.inputs=$(inputs debian)" --change 'ENV LANG=C.UTF-8' \
        --change 'CMD ["bash"]' - "$(tag debian)" >/dev/null
}

# prepare_NAME puts into $context what the Dockerfile copies and no other file has.
program() { # program NAME MODULE VERSION PACKAGE [LDFLAGS [REPLACE]]
    local name=$1 file=$cache/bin/$1-$3
    shift
    go_program "$file" "$@"
    cp "$file" "$context/$name"
}

prepare_minio() {
    program minio github.com/minio/minio "$MINIO_MODULE_VERSION" github.com/minio/minio \
        "-X github.com/minio/minio/cmd.ReleaseTag=RELEASE.${MINIO_VERSION}T00-00-00Z -X github.com/minio/minio/cmd.Version=${MINIO_VERSION}T00:00:00Z"
}

prepare_versitygw() {
    program versitygw github.com/versity/versitygw "v$VERSITYGW_VERSION" github.com/versity/versitygw/cmd/versitygw \
        "-X main.Version=v$VERSITYGW_VERSION"
}

prepare_jaeger() { # its requirement of sarama has a name that the module gave up after 1.33
    program jaeger github.com/jaegertracing/jaeger "v$JAEGER_VERSION" github.com/jaegertracing/jaeger/cmd/all-in-one \
        "-X github.com/jaegertracing/jaeger/pkg/version.latestVersion=v$JAEGER_VERSION" \
        "github.com/Shopify/sarama => github.com/Shopify/sarama v1.33.0"
}

prepare_otel-collector() {
    local file=$cache/bin/otelcol-$OTEL_COLLECTOR_VERSION-$(sha256sum tools/images/otel-collector/main.go | cut -c1-12)
    if [ ! -x "$file" ]; then
        need go "golang, or bring Go 1.25 or later"
        local work=$context/module
        mkdir -p "$work" "$cache/bin"
        cp tools/images/otel-collector/main.go "$work/"
        # The modules that main.go imports, all of one release; the providers' numbers run apart from the rest.
        {
            printf 'module lepton.invalid/otel-collector\n\ngo 1.25\n\nrequire (\n'
            sed -nE 's#^\t"((go.opentelemetry.io/collector|github.com/open-telemetry)/.*(exporter|receiver|processor|extension|otelcol))"$#\1#p' "$work/main.go" \
                | grep -vE 'collector/(exporter|receiver|processor|extension)$' | sed "s/\$/ v$OTEL_COLLECTOR_VERSION/"
            sed -nE 's#^\t"(go.opentelemetry.io/collector/confmap/provider/.*)"$#\1#p' "$work/main.go" | sed "s/\$/ v$OTEL_COLLECTOR_CONFMAP_VERSION/"
            echo ')'
        } >"$work/go.mod"
        # Without the service discovery of two dozen clouds.
        (cd "$work" && go_build "$file.log" -tags remove_all_sd -ldflags "-s -w -X main.version=$OTEL_COLLECTOR_VERSION" -o "$file.part" .) ||
            die "the collector does not build: $file.log"
        mv "$file.part" "$file"
    fi
    cp "$file" "$context/otelcol"
}

prepare_kafka() {
    local libs=$cache/kafka-$KAFKA_VERSION-$KAFKA_LOG4J_VERSION
    if [ ! -d "$libs" ]; then
        need mvn maven
        rm -rf "$libs.part"
        mvn --quiet --batch-mode --file tools/images/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$libs.part" \
            -DincludeScope=runtime -Dkafka.version="$KAFKA_VERSION" -Dlog4j.version="$KAFKA_LOG4J_VERSION" >"$cache/kafka.log" 2>&1 || {
            tail -n 15 "$cache/kafka.log" >&2
            die "Maven could not bring Kafka: $cache/kafka.log"
        }
        mv "$libs.part" "$libs"
    fi
    cp -r "$libs" "$context/libs"
}

image() ( # image NAME; a shell of its own, which clears away behind it
    name=$1 image=$(tag "$1") digest=$(inputs "$1") began=$SECONDS how=kept
    if [ "$(docker image inspect --format '{{index .Config.Labels "lepton.inputs"}}' "$image" 2>/dev/null)" != "$digest" ]; then
        context=$(mktemp -d "$cache/context.XXXXXX")
        trap 'rm -rf "$context"' EXIT
        host_apt "$context/apt"
        if [ "$name" = debian ]; then
            bootstrap
        else
            image debian quietly
            cp -r "tools/images/$name/." "$context/"
            if declare -F "prepare_$name" >/dev/null; then "prepare_$name"; fi
            version=$(variable "$name")_VERSION
            docker buildx build --quiet --load --label "lepton.inputs=$digest" --build-arg "BASE=$(tag debian)" \
                --build-arg "VERSION=${!version}" --tag "$image" "$context" >/dev/null
        fi
        how="$((SECONDS - began)) s"
    elif [ "${2:-}" = quietly ]; then
        exit
    fi
    size=$(docker image inspect --format '{{.Size}}' "$image")
    printf '%-46s %4d MB  %s\n' "$image" $((size / 1000000)) "$how"
)

print_env() {
    local name
    for name in python kafka postgres minio redis versitygw otel-collector jaeger prometheus; do
        echo "LEPTON_$(variable "$name")_IMAGE=$(tag "$name")"
    done
    echo COMPOSE_PROFILES=core,observability # Grafana is among none of these packages
}

if [ "${1:-}" = --env ]; then
    print_env
    exit
fi
[ $# -gt 0 ] || set -- "${ALL[@]}"
for name; do
    [[ " ${ALL[*]} " = *" $name "* ]] || die "there is no image $name; there are ${ALL[*]}"
done
docker info >/dev/null 2>&1 || die "No Docker engine answers: tools/docker.sh engine starts one."
docker buildx version >/dev/null 2>&1 || die "docker buildx is missing: tools/docker.sh compose builds it."
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # one at a time: two would build the same
for name; do
    image "$name"
done
