#!/bin/bash
# A broker without ZooKeeper from the environment of the official image: CLUSTER_ID, KAFKA_HEAP_OPTS, KAFKA_OPTS, and KAFKA_X_Y=… for x.y=…
# in server.properties, where `__` stands for `_` and `___` for `-`.
set -euo pipefail
umask 077 # there may be passwords among the properties
properties=/tmp/server.properties

defaults() { # of a broker on its own
    : "${KAFKA_LOG_DIRS:=/var/lib/kafka/data}"
    if [ -z "${KAFKA_PROCESS_ROLES:-}" ]; then
        KAFKA_PROCESS_ROLES=broker,controller
        : "${KAFKA_NODE_ID:=1}" "${KAFKA_LISTENERS:=PLAINTEXT://:9092,CONTROLLER://:9093}"
        : "${KAFKA_ADVERTISED_LISTENERS:=PLAINTEXT://localhost:9092}" "${KAFKA_CONTROLLER_LISTENER_NAMES:=CONTROLLER}"
        : "${KAFKA_LISTENER_SECURITY_PROTOCOL_MAP:=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT}"
        : "${KAFKA_CONTROLLER_QUORUM_VOTERS:=${KAFKA_NODE_ID}@localhost:9093}" "${KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR:=1}"
        : "${KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR:=1}" "${KAFKA_TRANSACTION_STATE_LOG_MIN_ISR:=1}"
    fi
}

key() {
    local key=${1#KAFKA_}
    key=${key,,} key=${key//___/-} key=${key//__/:} key=${key//_/.}
    printf '%s' "${key//:/_}"
}

write_properties() {
    local name value
    for name in "${!KAFKA_@}"; do
        case $name in
            KAFKA_VERSION | KAFKA_HEAP_OPTS | KAFKA_OPTS | KAFKA_JMX_OPTS | KAFKA_GC_LOG_OPTS | KAFKA_JVM_PERFORMANCE_OPTS | KAFKA_*LOG4J_*) continue ;;
        esac
        value=${!name//$'\n'/ }
        printf '%s=%s\n' "$(key "$name")" "$value"
    done
}

defaults
write_properties >"$properties"
classes=(-Dlog4j2.configurationFile=/opt/kafka/log4j2.properties -cp '/opt/kafka/libs/*')
# The options are lists of words.
# shellcheck disable=SC2206
options=(${KAFKA_HEAP_OPTS:--Xms256m -Xmx512m} ${KAFKA_JVM_PERFORMANCE_OPTS:--XX:+UseG1GC -XX:MaxGCPauseMillis=20} ${KAFKA_OPTS:-})
java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "${classes[@]}" kafka.tools.StorageTool format --ignore-formatted \
    --cluster-id "${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}" --config "$properties"
exec java -server "${options[@]}" -Djava.awt.headless=true "${classes[@]}" kafka.Kafka "$properties"
