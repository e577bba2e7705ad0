"""The tables that every service's database has beside its own: outbox, inbox, idempotency keys, leases."""

from typing import Any

import sqlalchemy as sa

# Whole numbers that a caller says, or that may pass 2^31. SQLite's INTEGER has 64 bits, and it counts up by itself in that type alone.
Int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData()

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("position", Int64, primary_key=True, autoincrement=True),
    sa.Column("topic", sa.String, nullable=False),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("headers", sa.JSON, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

inbox = sa.Table(
    "inbox",
    metadata,
    sa.Column("source", sa.String, primary_key=True),
    sa.Column("event_id", sa.String, primary_key=True),
    sa.Column("time", sa.Float, nullable=False, index=True),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("workspace", sa.String, primary_key=True),
    sa.Column("method", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("request_sha256", sa.LargeBinary, nullable=False),
    sa.Column("response", sa.LargeBinary),
    sa.Column("problem", sa.LargeBinary),
    sa.Column("time", sa.Float, nullable=False, index=True),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("token", Int64, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)


def create_infrastructure(op: Any) -> None:
    """Creates these tables in a service's first migration; `op` is alembic's operations object."""
    metadata.create_all(op.get_bind())
