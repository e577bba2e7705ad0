"""Everything that accounts keeps. Times are seconds since 1970, money whole micros, quantities of use whole millionths."""

from typing import ClassVar

from sqlalchemy import JSON, BigInteger, Index, LargeBinary, MetaData
from sqlmodel import Field, SQLModel


class Table(SQLModel):
    """Base, with metadata of this service's own."""

    metadata: ClassVar[MetaData] = MetaData()


class Plan(Table, table=True):
    """Quotas and prices by metric; seeded with trial and pro, the operator may add and change."""

    __tablename__ = "plans"
    name: str = Field(primary_key=True)
    display_name: str
    monthly_price: int = Field(sa_type=BigInteger)
    quotas: dict[str, int] = Field(sa_type=JSON)
    prices: dict[str, int] = Field(sa_type=JSON)


class Workspace(Table, table=True):
    """Never deleted, so that its name is never another's."""

    __tablename__ = "workspaces"
    name: str = Field(primary_key=True)
    display_name: str
    plan: str
    # Its owners run the platform.
    first: bool = False
    create_time: float


class Member(Table, table=True):
    __tablename__ = "members"
    workspace: str = Field(primary_key=True)
    email: str = Field(primary_key=True, index=True)
    role: int
    create_time: float


class ApiKey(Table, table=True):
    """Of the secret, only its SHA-256."""

    __tablename__ = "api_keys"
    id: str = Field(primary_key=True)
    workspace: str = Field(index=True)
    member: str
    name: str
    prefix: str
    sha256: bytes = Field(sa_type=LargeBinary, unique=True)
    role: int
    # Made by others than its member, or with such a key. E-mails are not verified: it must not reach what the member has elsewhere.
    confined: bool = False
    create_time: float
    revoke_time: float | None = None

    def revoke(self, now: float) -> bool:
        """False where it had been revoked before."""
        if self.revoke_time is not None:
            return False
        self.revoke_time = now
        return True


class Reservation(Table, table=True):
    """Some of a quota, taken."""

    __tablename__ = "reservations"
    workspace: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    metric: str = Field(primary_key=True)
    amount: int = Field(sa_type=BigInteger)
    # When it was last asked for: what ended before that was another thing of the same name.
    time: float
    # Up to when what it stores has been written down as use.
    settled_time: float
    expire_time: float | None = None


class UsageRecord(Table, table=True):
    """One fact of use, priced when it was recorded. The key is the fact's own, so that no second telling counts."""

    __tablename__ = "usage_records"
    __table_args__ = (
        Index("ix_usage_records_workspace_period", "workspace", "period"),
        Index("ix_usage_records_open", "invoice", "workspace", "period"),
    )
    source: str = Field(primary_key=True)
    event_id: str = Field(primary_key=True)
    metric: str = Field(primary_key=True)
    workspace: str
    period: str
    resource: str
    quantity: int = Field(sa_type=BigInteger)
    unit_price: int = Field(sa_type=BigInteger)
    amount: int = Field(sa_type=BigInteger)
    time: float
    # Number of the invoice that holds it; empty until then.
    invoice: str = ""


class UsageTotal(Table, table=True):
    """Sum of a month's records of one metric, kept with them: quotas are asked for more often than used."""

    __tablename__ = "usage_totals"
    workspace: str = Field(primary_key=True)
    period: str = Field(primary_key=True)
    metric: str = Field(primary_key=True)
    quantity: int = Field(sa_type=BigInteger)


class Earning(Table, table=True):
    """A publisher's part in one fact of a listing's use."""

    __tablename__ = "earnings"
    __table_args__ = (Index("ix_earnings_workspace_period", "workspace", "period"),)
    source: str = Field(primary_key=True)
    event_id: str = Field(primary_key=True)
    workspace: str
    period: str
    listing: str
    buyer: str
    quantity: int = Field(sa_type=BigInteger)
    gross: int = Field(sa_type=BigInteger)
    fee: int = Field(sa_type=BigInteger)
    net: int = Field(sa_type=BigInteger)
    time: float


class Invoice(Table, table=True):
    """Closed; its lines are the records that carry its number."""

    __tablename__ = "invoices"
    id: str = Field(primary_key=True)
    number: str = Field(unique=True)
    workspace: str = Field(index=True)
    period: str
    total: int = Field(sa_type=BigInteger)
    issue_time: float


class InvoiceNumber(Table, table=True):
    """The last number given in a month."""

    __tablename__ = "invoice_numbers"
    period: str = Field(primary_key=True)
    last: int
