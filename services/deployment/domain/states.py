"""Where endpoints and replicas stand; the words are those of the contract."""

from enum import StrEnum


class EndpointState(StrEnum):
    """Of an endpoint."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


class ReplicaState(StrEnum):
    """Of a replica. STARTING → READY → DRAINING → ENDED; any of them may end at once."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    ENDED = "ended"


LIVE = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING)
ACTIVE = (ReplicaState.STARTING, ReplicaState.READY)
