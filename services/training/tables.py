"""Jobs with what they tell, models with their versions, and the files that rows name."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, LargeBinary, MetaData, Text
from sqlmodel import Field, SQLModel

from libs.db import Int64
from services.training.domain.retry import Tally, Verdict
from services.training.domain.states import State, require_move


class Table(SQLModel):
    """Base of this service's tables."""

    metadata = MetaData()


class TrainingJob(Table, table=True):
    """One job: what is wanted, where it stands, and the lease of the worker that runs its attempt. Times are seconds since 1970."""

    __tablename__ = "training_jobs"
    __table_args__ = (
        Index("training_jobs_by_workspace", "workspace", "id"),
        Index("training_jobs_by_state", "state"),
        Index("training_jobs_by_allocation", "allocation_id"),
    )

    id: str = Field(primary_key=True)
    workspace: str
    name: str
    dataset: str
    task: str
    target: str
    features: list[str] = Field(sa_column=Column(JSON, nullable=False))
    output_model: str
    # As in the contract, complete.
    model: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    training: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    resources: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    # What a worker fetches: {"kind", "splits": [{"name", "digest"}], "init": [{"path", "digest"}]}
    inputs: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))

    state: str = State.QUEUED
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    progress: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    model_version: str = ""
    metrics: dict[str, float] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    create_time: float
    start_time: float | None = None
    first_step_time: float | None = None
    end_time: float | None = None
    trace_id: str = ""
    # Everything done for the job continues this trace.
    traceparent: str = ""
    # Number of its last job_events row.
    last_event: int = 0

    attempts: int = 0
    crashes: int = 0
    losses: int = 0
    hangs: int = 0
    # Processes have run for so long, all attempts together.
    seconds: float = 0.0
    # Quota that made the time limit shorter than was asked for.
    limited_by: str = ""
    # Of the running or next attempt; empty: has none.
    allocation_id: str = ""
    node: str = ""
    devices: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    # Where its workers are on several, as many on each; `node` is the first.
    nodes: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    # No attempt begins before.
    not_before: float = 0.0
    # The token grows with every claim: what a worker writes under an old one is refused.
    lease_holder: str = ""
    lease_token: int = 0
    lease_expires: float = 0.0

    @property
    def holder(self) -> str:
        """Names the next attempt's allocation."""
        return f"training-jobs/{self.id}/attempts/{self.attempts + 1}"

    @property
    def workers(self) -> int:
        """How many train the model together."""
        return int(self.training.get("workers", 1))

    @property
    def tally(self) -> Tally:
        return Tally(self.crashes, self.losses, self.hangs)

    def move(self, after: State, reason: str = "") -> None:
        """Raises Conflict where the state does not allow it."""
        require_move(State(self.state), after)
        # What an engine said last may be of any bytes; PostgreSQL's texts hold no NUL.
        self.state, self.reason = after, reason.replace("\0", "\ufffd")

    def grant(self, allocation_id: str, node: str, devices: list[int], nodes: list[str]) -> None:
        """Has an allocation: a worker may take it."""
        self.move(State.STARTING, f"has an allocation on {', '.join(nodes or [node])}; a worker is about to take it")
        self.allocation_id, self.node, self.devices, self.nodes = allocation_id, node, devices, nodes

    def claim(self, holder: str, expires: float, now: float) -> None:
        """A worker takes it: a new attempt, fenced off from the ones before."""
        self.lease_holder, self.lease_token, self.lease_expires = holder, self.lease_token + 1, expires
        self.attempts += 1
        self.start_time = self.start_time or now
        self.reason = "its process is being prepared"

    def drop_lease(self) -> None:
        """No worker holds it."""
        self.lease_holder, self.lease_expires = "", 0.0

    def drop_allocation(self) -> None:
        """It is no longer its own."""
        self.allocation_id, self.node, self.devices, self.nodes = "", "", [], []

    def take_verdict(self, verdict: Verdict, now: float, reason: str) -> None:
        """Another attempt with what is left of the last one, or the end."""
        self.drop_lease()
        tally = verdict.tally
        self.crashes, self.losses, self.hangs = tally.crashes, tally.losses, tally.hangs
        if verdict.error:
            self.fail(verdict.error, now)
            return
        self.not_before = now + verdict.pause
        self.move(State.STARTING if self.allocation_id else State.QUEUED, reason)

    def fail(self, error: dict[str, Any], now: float) -> None:
        self.error = error
        self.end(State.FAILED, error["detail"], now)

    def end(self, state: State, reason: str, now: float) -> None:
        """Succeeded, failed or cancelled; its allocation is given back by who sees it ended."""
        self.move(state, reason)
        self.end_time = now
        self.drop_lease()


class PendingReservation(Table, table=True):
    """Quota is being reserved for a job, or for an upload ("uploads/…"), that is not there yet; one that stays is given back."""

    __tablename__ = "pending_reservations"

    # Or the upload's.
    job_id: str = Field(primary_key=True)
    workspace: str
    create_time: float


class JobEvent(Table, table=True):
    """What a job told, in order: its state ("job"), a "metric" or a "log" line, as the message that is sent."""

    __tablename__ = "job_events"
    __table_args__ = (Index("job_events_by_kind", "job_id", "kind", "number"),)

    job_id: str = Field(primary_key=True)
    number: int = Field(sa_column=Column(Int64, primary_key=True, autoincrement=False))
    workspace: str
    kind: str
    # Of a metric.
    name: str = ""
    message: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Checkpoint(Table, table=True):
    """State of a run after an epoch; its files are rows of `files`."""

    __tablename__ = "checkpoints"

    job_id: str = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    workspace: str
    step: int = Field(sa_column=Column(BigInteger, nullable=False))
    create_time: float

    @property
    def owner(self) -> str:
        return f"checkpoints/{self.job_id}/{self.epoch}"


class StoredFile(Table, table=True):
    """An object of the artifact store that a row owns. What no row names is swept."""

    __tablename__ = "files"
    __table_args__ = (Index("files_by_digest", "digest"),)

    # "checkpoints/{job}/{epoch}" or "models/{workspace}/{model}/{number}"
    owner: str = Field(primary_key=True)
    path: str = Field(primary_key=True)
    workspace: str
    # Purpose in the artifact store: "checkpoints" or "models".
    purpose: str
    digest: str
    size: int = Field(sa_column=Column(BigInteger, nullable=False))


class Model(Table, table=True):
    """A name of versions. Deleted, it stays: a number is never given twice."""

    __tablename__ = "models"

    workspace: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    latest_version: int = 0
    create_time: float
    deleted: bool = False


class ModelVersion(Table, table=True):
    """Immutable: the message as it was registered. One a job; what was uploaded has a made-up id in its place."""

    __tablename__ = "model_versions"

    workspace: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    number: int = Field(sa_column=Column(Int64, primary_key=True, autoincrement=False))
    training_job: str = Field(unique=True)
    message: bytes = Field(sa_column=Column(LargeBinary, nullable=False))

    @property
    def owner(self) -> str:
        return f"models/{self.workspace}/{self.model}/{self.number}"


class ServedModel(Table, table=True):
    """Which model an endpoint of the deployment service wants, as its events tell."""

    __tablename__ = "served_models"
    __table_args__ = (Index("served_models_by_model", "workspace", "model"),)

    workspace: str = Field(primary_key=True)
    endpoint: str = Field(primary_key=True)
    model: str
