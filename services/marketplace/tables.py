"""Everything that the marketplace keeps. Times are seconds since 1970, money whole micros of USD."""

from enum import IntEnum
from typing import ClassVar

from sqlalchemy import BigInteger, Index, MetaData, text
from sqlmodel import Field, SQLModel


class ListingState(IntEnum):
    """As in the proto."""

    PUBLISHED = 1
    WITHDRAWN = 2


class WithdrawalReason(IntEnum):
    """As in the proto."""

    NONE = 0
    REQUESTED = 1
    ENDPOINT_DELETED = 2


class SubscriptionState(IntEnum):
    """As in the proto."""

    ACTIVE = 1
    ENDED = 2


class Table(SQLModel):
    """Base, with metadata of this service's own."""

    metadata: ClassVar[MetaData] = MetaData()


class Listing(Table, table=True):
    """Everybody reads it; its publisher alone changes it."""

    __tablename__ = "listings"
    slug: str = Field(primary_key=True)
    # In order of their making.
    id: str = Field(unique=True)
    publisher: str = Field(index=True)
    title: str
    summary: str
    card: str
    endpoint: str
    # When the endpoint was last seen: what ended before that was another one of the same name.
    endpoint_time: float
    price: int = Field(sa_type=BigInteger)
    state: int = ListingState.PUBLISHED
    reason: int = WithdrawalReason.NONE
    version: int = 1
    # Title, summary and slug, case-folded: what a search looks at.
    words: str
    reviews: int = 0
    stars: int = 0
    subscribers: int = 0
    create_time: float
    update_time: float

    @property
    def rating(self) -> float:
        return self.stars / self.reviews if self.reviews else 0.0

    def withdraw(self, reason: WithdrawalReason, now: float) -> None:
        self.state, self.reason = ListingState.WITHDRAWN, reason
        self.changed(now)

    def changed(self, now: float) -> None:
        """To be called after every change but those of subscribers and reviews."""
        self.words = f"{self.title}\n{self.summary}\n{self.slug}".casefold()
        self.version += 1
        self.update_time = now


class Subscription(Table, table=True):
    """At most one of a workspace and listing is active."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        Index(
            "ix_subscriptions_active",
            "listing",
            "workspace",
            unique=True,
            sqlite_where=text("state = 1"),
            postgresql_where=text("state = 1"),
        ),
        Index("ix_subscriptions_workspace_listing", "workspace", "listing"),
    )
    id: str = Field(primary_key=True)
    listing: str
    workspace: str
    state: int = SubscriptionState.ACTIVE
    # As agreed.
    price: int = Field(sa_type=BigInteger)
    requests: int = Field(default=0, sa_type=BigInteger)
    rows: int = Field(default=0, sa_type=BigInteger)
    create_time: float
    end_time: float | None = None


class Review(Table, table=True):
    __tablename__ = "reviews"
    listing: str = Field(primary_key=True)
    workspace: str = Field(primary_key=True)
    # In order of their writing.
    id: str = Field(unique=True)
    stars: int
    text: str
    create_time: float


class InvocationBatch(Table, table=True):
    """A batch of invocations that has been recorded."""

    __tablename__ = "invocation_batches"
    batch_id: str = Field(primary_key=True)
    time: float = Field(index=True)
