"""Datasets, their versions, the files that versions name: the entities of the data service. Times are seconds since 1970."""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, LargeBinary, MetaData, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from libs.db import Int64
from services.data.domain.states import State, pause_after

UPLOAD, INPUT, SPLIT = "upload", "input", "split"


class Table(SQLModel):
    """Base of this service's tables."""

    metadata: ClassVar[MetaData] = MetaData()


class Dataset(Table, table=True):
    """A name of versions. Deleted, it stays: a number that was ready is never given twice."""

    __tablename__ = "datasets"

    workspace: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    description: str = Field(default="", sa_column=Column(Text, nullable=False))
    # "table" or "images"; empty until a version is ready.
    kind: str = ""
    create_time: float
    # An upload made it, and nothing has come of it yet: it goes with that upload.
    implicit: bool = False
    deleted: bool = False
    # No version gets this number or a lower one.
    used_numbers: int = 0


class Version(Table, table=True):
    """What is to be made, by whom it is being made, and what was made."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("workspace", "request_key", name="versions_by_request"),
        Index("versions_by_state", "state"),
    )

    workspace: str = Field(primary_key=True)
    dataset: str = Field(primary_key=True)
    number: int = Field(sa_column=Column(Int64, primary_key=True, autoincrement=False))
    state: str = State.RESERVING
    # What the engine does: {"kind": "ingest", "file_name"} or {"kind": "transform", "columns", "steps"}
    job: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    # lepton.data.v1.Lineage
    lineage: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    # Method and idempotency key of the request that made it: the same request finds it again.
    request_key: str | None = None
    # A caller waits for the outcome until then, and takes a refusal as the answer; 0: nobody does.
    awaited_until: float = 0.0
    traceparent: str = ""
    create_time: float

    kind: str = ""
    columns: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    rows: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    size: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    notices: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    ready_time: float | None = None

    attempts: int = 0
    # Nobody takes it up before.
    not_before: float = 0.0
    # The token grows with every claim: what a worker writes under an old one is refused.
    lease_holder: str = ""
    lease_token: int = 0
    lease_expires: float = 0.0

    @property
    def reservation(self) -> str:
        """The name that accounts knows its storage by, and releases when it has failed or its dataset is deleted."""
        return f"datasets/{self.workspace}/{self.dataset}@{self.number}"

    def is_claimable(self, now: float) -> bool:
        """Whether it is to be made and nobody is at it."""
        return self.state == State.PROCESSING and self.lease_expires <= now and self.not_before <= now

    def claim(self, holder: str, expires: float) -> None:
        """A worker takes it up, fenced off from the ones before."""
        self.lease_holder, self.lease_token, self.lease_expires = holder, self.lease_token + 1, expires
        self.attempts += 1

    def put_back(self, now: float, *, counts: bool, pause: float = 0.0) -> None:
        """Its worker gives it up; where it `counts`, for longer and longer, because the next try may go the same way."""
        self.lease_holder, self.lease_expires = "", 0.0
        if counts:
            self.not_before = now + pause_after(self.attempts)
        else:
            self.attempts -= 1
            self.not_before = now + pause

    def refuse(self, error: dict[str, Any]) -> None:
        """Will never be ready: the waiting caller hears why, or else the version says it."""
        self.state = State.REFUSED if self.awaited_until else State.FAILED
        self.error = error
        self.lease_holder, self.lease_expires = "", 0.0

    def finish(self, made: dict[str, Any], now: float) -> None:
        """`made`: what the engine answered."""
        self.state, self.ready_time = State.READY, now
        self.kind, self.columns, self.rows, self.notices = made["kind"], made["columns"], made["rows"], made["notices"]
        self.size = sum(split["size_bytes"] for split in made["splits"])
        self.awaited_until = 0.0
        self.lease_holder, self.lease_expires = "", 0.0


class File(Table, table=True):
    """An object of the artifact store that a version names: its upload, its splits, and while it is made the splits it is made of."""

    __tablename__ = "files"
    __table_args__ = (Index("files_by_digest", "digest"),)

    workspace: str = Field(primary_key=True)
    dataset: str = Field(primary_key=True)
    number: int = Field(sa_column=Column(Int64, primary_key=True, autoincrement=False))
    # UPLOAD, INPUT or SPLIT, and its place among those.
    role: str = Field(primary_key=True)
    position: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    # Of the split ("all", "train"), or of the uploaded file.
    name: str
    rows: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    digest: str
    size: int = Field(sa_column=Column(BigInteger, nullable=False))


class VersionProfile(Table, table=True):
    """lepton.data.v1.Profile of a ready version."""

    __tablename__ = "profiles"

    workspace: str = Field(primary_key=True)
    dataset: str = Field(primary_key=True)
    number: int = Field(sa_column=Column(Int64, primary_key=True, autoincrement=False))
    message: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Orphan(Table, table=True):
    """An object that a row has ceased to name; discarded after a while unless another one names it by then."""

    __tablename__ = "orphans"

    digest: str = Field(primary_key=True)
    time: float
