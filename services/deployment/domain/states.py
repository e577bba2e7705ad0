"""Where endpoints and replicas stand; the words are those of the contract."""

from enum import StrEnum


class EndpointState(StrEnum):
    """Of an endpoint."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"
    # Of messages alone; a row says STOPPED, which code of the release before knows.
    SLEEPING = "sleeping"


class ReplicaState(StrEnum):
    """Of a replica. STARTING → READY → DRAINING → ENDED; any of them may end at once."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    ENDED = "ended"


class RevisionState(StrEnum):
    """Of a revision. The one that serves is ACTIVE; a new one comes beside it, and takes over or is taken back."""

    STARTING = "starting"
    SHADOWING = "shadowing"
    CANARY = "canary"
    SPLIT = "split"
    PROVING = "proving"
    ACTIVE = "active"
    REPLACED = "replaced"
    ROLLED_BACK = "rolled_back"


LIVE = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING)
ACTIVE = (ReplicaState.STARTING, ReplicaState.READY)
# A revision in another state has no replicas that anybody wants.
BESIDE = (RevisionState.STARTING, RevisionState.SHADOWING, RevisionState.CANARY, RevisionState.SPLIT, RevisionState.PROVING)
# Its model is wanted, and does not have all that it will have.
TAKING_OVER = (RevisionState.STARTING, RevisionState.CANARY)
