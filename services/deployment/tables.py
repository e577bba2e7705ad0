"""Endpoints, their revisions and replicas, what is seen of their traffic, recorded predictions, and batch predictions with their parts."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Float, Index, MetaData, Text, text
from sqlmodel import Field, SQLModel

from services.deployment.domain.batch import BatchState, Part, parts_of, pause_after
from services.deployment.domain.resources import Needs
from services.deployment.domain.rollout import Newcomer, Rollout, Seen, Served, Wanted
from services.deployment.domain.scaling import Scaling
from services.deployment.domain.states import EndpointState, ReplicaState, RevisionState

_NOT_DELETED = text("delete_time IS NULL")


class Table(SQLModel):
    """Base of this service's tables. Times are seconds since 1970."""

    metadata = MetaData()


class Endpoint(Table, table=True):
    """A name that answers, and what should answer under it. A deleted one stays as a tombstone."""

    __tablename__ = "endpoints"
    __table_args__ = (
        Index("endpoints_by_name", "workspace", "name", unique=True, sqlite_where=_NOT_DELETED, postgresql_where=_NOT_DELETED),
    )

    id: str = Field(primary_key=True)
    workspace: str
    name: str
    model: str
    model_version: int
    # The model package: {"path", "digest", "size_bytes"}.
    files: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    # Wanted now.
    replicas: int
    # Bounds between which `replicas` follows the requests; none: it is what was asked for.
    bounds: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    # As asked for, without defaults: another model may need others.
    resources: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    accelerator: str
    device_count: int
    cpu_millis: int
    memory_bytes: int = Field(sa_type=BigInteger)
    revision: int = 1
    state: str = EndpointState.STARTING
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    failures: int = 0
    next_try_time: float = 0.0
    create_time: float
    update_time: float
    delete_time: float | None = None
    # Everything done for the wanted revision continues the trace of the request that wanted it.
    traceparent: str = ""

    @property
    def reference(self) -> str:
        """ "name@n" of the wanted model version."""
        return f"{self.model}@{self.model_version}"

    @property
    def group(self) -> str:
        """What its launcher knows the replicas of the wanted revision by."""
        return _group(self.name, self.revision, self.id)

    @property
    def wanted(self) -> Wanted:
        """What should be."""
        return Wanted(0 if self.delete_time is not None else self.replicas, self.revision, self.failures, self.next_try_time)

    @property
    def needs(self) -> Needs:
        """Of a replica, complete."""
        return Needs(self.accelerator, self.device_count, self.memory_bytes, self.cpu_millis)

    @property
    def scaling(self) -> Scaling:
        """Its bounds; of one that does not scale, both are what it wants."""
        return Scaling(**self.bounds) if self.bounds else Scaling(self.replicas, self.replicas)

    def scale(self, scaling: Scaling) -> None:
        """Sets its bounds. What is wanted now stays where the bounds allow it; who was stopped starts with a replica."""
        asleep = self.sleeps
        self.bounds = asdict(scaling) if scaling.least != scaling.most else None
        self.replicas = scaling.bounded(self.replicas if self.replicas or asleep else 1)

    @property
    def sleeps(self) -> bool:
        """Whether the next request starts a replica."""
        return self.replicas == 0 and self.bounds is not None and self.delete_time is None

    @property
    def shown_state(self) -> str:
        """As members see it."""
        return EndpointState.SLEEPING if self.sleeps else self.state

    def need(self, needs: Needs) -> None:
        """Sets what a replica gets."""
        self.accelerator, self.device_count = needs.accelerator, needs.count
        self.cpu_millis, self.memory_bytes = needs.cpu_millis, needs.memory_bytes

    def want(self, revision: "Revision") -> None:
        """Its model is the wanted one from now on."""
        self.model, self.model_version, self.files, self.revision = revision.model, revision.model_version, revision.files, revision.number
        self.need(revision.needs)
        self.traceparent = revision.traceparent
        self.failures, self.next_try_time, self.error = revision.failures, revision.next_try_time, revision.error

    def forgive(self) -> None:
        """Forgets failures: something has changed, or it works."""
        self.failures, self.next_try_time, self.error = 0, 0.0, None


class Revision(Table, table=True):
    """One model version of an endpoint, from the wish for it on: what its replicas serve, how far its roll-out is, and how it does."""

    __tablename__ = "revisions"

    endpoint_id: str = Field(primary_key=True, foreign_key="endpoints.id")
    number: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    workspace: str
    endpoint: str
    model: str
    model_version: int
    files: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    accelerator: str
    device_count: int
    cpu_millis: int
    memory_bytes: int = Field(sa_type=BigInteger)
    traceparent: str = ""
    state: str = RevisionState.ACTIVE
    percent: int = 100
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    # A Rollout's fields.
    rollout: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    create_time: float
    # Of its state and share.
    change_time: float
    # Requests are counted since then.
    window_time: float
    requests: int = Field(default=0, sa_type=BigInteger)
    errors: int = Field(default=0, sa_type=BigInteger)
    seconds_sum: float = 0.0
    shadow_compared: int = Field(default=0, sa_type=BigInteger)
    shadow_differing: int = Field(default=0, sa_type=BigInteger)
    last_request_time: float = 0.0
    # Of its replicas, while the endpoint wants another revision; else they stand in the endpoint's row.
    failures: int = 0
    next_try_time: float = 0.0
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))

    @property
    def reference(self) -> str:
        """ "name@n"."""
        return f"{self.model}@{self.model_version}"

    @property
    def needs(self) -> Needs:
        """Of a replica, complete."""
        return Needs(self.accelerator, self.device_count, self.memory_bytes, self.cpu_millis)

    @property
    def rules(self) -> Rollout:
        """How it takes over."""
        return Rollout(**{**self.rollout, "percents": tuple(self.rollout["percents"])}) if self.rollout else Rollout()

    def roll_by(self, rollout: Rollout) -> None:
        """Sets them."""
        self.rollout = {**asdict(rollout), "percents": list(rollout.percents)}

    @property
    def served(self) -> Served:
        """Since `window_time`."""
        return Served(self.requests, self.errors, self.seconds_sum)

    def as_newcomer(self, ready: int, starts_since: float | None, failures: int, failure: str) -> Newcomer:
        """For decisions."""
        return Newcomer(RevisionState(self.state), self.percent, self.change_time, ready, starts_since, self.served, failures, failure)

    def go(self, state: RevisionState, percent: int, now: float, reason: str = "") -> None:
        """Its next step."""
        self.state, self.percent, self.reason, self.change_time = state, percent, reason, now

    def count_anew(self, now: float) -> None:
        """Requests of now say how it does now."""
        self.requests, self.errors, self.seconds_sum, self.window_time = 0, 0, 0.0, now


class Replica(Table, table=True):
    """A process that serves one model version, from the wish for it to its end. Its own copy of what it serves outlives a roll-out."""

    __tablename__ = "replicas"
    __table_args__ = (
        Index("replicas_by_endpoint", "endpoint_id", "id"),
        Index("replicas_by_state", "state"),
        Index("replicas_by_allocation", "allocation_id"),
        Index("replicas_by_owner", "owner", "state"),
    )

    id: str = Field(primary_key=True)
    endpoint_id: str = Field(foreign_key="endpoints.id")
    workspace: str
    endpoint: str
    revision: int
    # "name@n"
    model: str
    state: str = ReplicaState.STARTING
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    # Drained without waiting for routers to hear of it: they ask no more.
    hurried: bool = False
    # Which process runs it, and by which name its launcher knows it. Nobody takes a replica over: one that is handed back or lost ends,
    # and another takes its place. So whoever writes under (id, owner) is fenced off from those before and after.
    owner: str = ""
    handle: str = ""
    # Until then its owner is believed to live without having said so again.
    lease_expires: float = Field(default=0.0, sa_column=Column(Float, nullable=False, server_default="0"))
    # Empty once it is given back.
    allocation_id: str = ""
    # Where the allocation was granted, and which devices with it; empty while it waits.
    node: str = ""
    devices: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False, server_default="[]"))
    url: str = ""
    # What a router proves itself with; empty before it is ready and after its end.
    token: str = Field(default="", repr=False)
    create_time: float
    # When a process took it, to start what it serves.
    claim_time: float | None = None
    ready_time: float | None = None
    end_time: float | None = None
    # Until then its ready time has been told; none: not yet.
    metered_until: float | None = None

    @property
    def seen(self) -> Seen:
        """For decisions."""
        return Seen(self.id, self.revision, ReplicaState(self.state), self.ready_time)

    @property
    def group(self) -> str:
        """Of its endpoint and revision."""
        return _group(self.endpoint, self.revision, self.endpoint_id)

    @property
    def holder(self) -> str:
        """The name that compute knows its allocation by."""
        return f"endpoints/{self.endpoint}/replicas/{self.id}"

    def place(self, allocation_id: str, node: str, devices: list[int]) -> None:
        """Where it has its allocation; an empty `node`: nowhere yet."""
        self.allocation_id, self.node, self.devices = allocation_id, node, devices

    def claim(self, owner: str, expires: float, now: float) -> None:
        """`owner` runs it from now on."""
        self.owner, self.lease_expires, self.claim_time = owner, expires, now
        self.reason = "its process is on its way"

    def end(self, reason: str, now: float) -> None:
        """It is gone, and so is its secret."""
        self.state, self.reason, self.end_time = ReplicaState.ENDED, reason, now
        self.url = self.token = ""


class PendingReservation(Table, table=True):
    """Quota that is being taken for an endpoint that is not stored yet."""

    __tablename__ = "pending_reservations"

    workspace: str = Field(primary_key=True)
    endpoint: str = Field(primary_key=True)
    create_time: float


class PredictionBatch(Table, table=True):
    """A batch of predictions that was recorded: its second coming records nothing."""

    __tablename__ = "prediction_batches"

    batch_id: str = Field(primary_key=True)
    time: float = Field(index=True)


class Traffic(Table, table=True):
    """What one gateway said last of one revision. What is older than a few seconds says nothing."""

    __tablename__ = "traffic"

    gateway: str = Field(primary_key=True)
    endpoint_id: str = Field(primary_key=True)
    revision: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    in_flight: float
    waiting: int
    p95_seconds: float
    time: float = Field(index=True)


class ScalingDecision(Table, table=True):
    """A change of the number of replicas that requests, or none, led to."""

    __tablename__ = "scaling_decisions"
    __table_args__ = (Index("scaling_decisions_by_endpoint", "endpoint_id", "id"),)

    id: str = Field(primary_key=True)
    endpoint_id: str = Field(foreign_key="endpoints.id")
    workspace: str
    time: float = Field(index=True)
    from_replicas: int
    to_replicas: int
    why: str = Field(sa_column=Column(Text, nullable=False))


class BatchPrediction(Table, table=True):
    """What is to be predicted and into what, who is at it, and how far it is."""

    __tablename__ = "batch_predictions"
    __table_args__ = (
        Index("batch_predictions_by_workspace", "workspace", "id"),
        Index("batch_predictions_by_state", "state"),
        Index("batch_predictions_by_allocation", "allocation_id"),
    )

    id: str = Field(primary_key=True)
    workspace: str
    model: str
    model_version: int
    # The model package: {"path", "digest", "size_bytes"}.
    files: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    # "name@n", and its files in the order of their rows: {"name", "digest", "rows"}.
    dataset: str
    splits: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    # Copied from the dataset, and all of the result's: {"name", "type", "nullable"}.
    kept: list[str] = Field(sa_column=Column(JSON, nullable=False))
    columns: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    probabilities: bool
    output: str
    output_version: int = 0
    part_rows: int
    rows: int = Field(sa_type=BigInteger)
    rows_done: int = Field(default=0, sa_type=BigInteger)
    cpu_millis: int
    memory_bytes: int = Field(sa_type=BigInteger)
    state: str = BatchState.QUEUED
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    attempts: int = 0
    # Processes that have died since the last part.
    failures: int = 0
    not_before: float = 0.0
    # Accounts holds its rows for it until its end.
    quota_held: bool = True
    allocation_id: str = ""
    node: str = ""
    # The token grows with every claim: what a worker writes under an old one is refused.
    lease_holder: str = ""
    lease_token: int = 0
    lease_expires: float = 0.0
    create_time: float
    start_time: float | None = None
    end_time: float | None = None
    traceparent: str = ""

    @property
    def reference(self) -> str:
        """ "name@n" of the model version."""
        return f"{self.model}@{self.model_version}"

    @property
    def holder(self) -> str:
        """The name that compute knows its allocation by."""
        return f"batch-predictions/{self.id}"

    @property
    def needs(self) -> Needs:
        return Needs("cpu", 1, self.memory_bytes, self.cpu_millis)

    @property
    def parts(self) -> list[Part]:
        """All of them, in the order of their rows."""
        return parts_of([(split["name"], split["rows"]) for split in self.splits], self.part_rows)

    def place(self, allocation_id: str, node: str) -> None:
        """Where it has its allocation; an empty `node`: nowhere yet."""
        self.allocation_id, self.node = allocation_id, node

    def claim(self, holder: str, expires: float, now: float) -> None:
        """A worker takes it: another attempt, fenced off from the ones before."""
        self.lease_holder, self.lease_token, self.lease_expires = holder, self.lease_token + 1, expires
        self.attempts += 1
        self.start_time = self.start_time or now
        self.state, self.reason = BatchState.RUNNING, "its process is on its way"

    def put_back(self, reason: str, now: float, *, failed: bool, pause: float) -> None:
        """Its worker leaves it; one that was asked to cancel is cancelled."""
        self.lease_holder, self.lease_expires = "", 0.0
        if self.state == BatchState.CANCELLING:
            self.end(BatchState.CANCELLED, "cancelled", now)
            return
        self.failures += failed
        self.state, self.reason = BatchState.QUEUED, reason
        self.not_before = now + (pause_after(self.failures) if failed else pause)

    def fail(self, error: dict[str, Any], now: float) -> None:
        self.error = error
        self.end(BatchState.FAILED, error["detail"], now)

    def end(self, state: BatchState, reason: str, now: float) -> None:
        """What it holds is given back by who sees it ended."""
        self.state, self.reason, self.end_time = state, reason, now
        self.lease_holder, self.lease_expires = "", 0.0


class PredictedPart(Table, table=True):
    """A part that lies in the artifact store: its rows are predicted, and told to be billed, in the transaction that made this row."""

    __tablename__ = "predicted_parts"
    __table_args__ = (Index("predicted_parts_by_digest", "digest"),)

    batch_prediction_id: str = Field(primary_key=True, foreign_key="batch_predictions.id")
    number: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    workspace: str
    digest: str
    size: int = Field(sa_type=BigInteger)


def _group(endpoint: str, revision: int, id: str) -> str:
    return f"{endpoint}-{revision}-{id}"
