"""Nodes and allocations."""

import sqlalchemy as sa
from alembic import op

from libs.db import Int64, create_infrastructure

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    op.create_table(
        "nodes",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("pool", sa.String, nullable=False),
        sa.Column("cpu_millis", Int64, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("cpu_model", sa.String, nullable=False),
        sa.Column("devices", sa.JSON, nullable=False),
        sa.Column("cordoned", sa.Boolean, nullable=False),
        sa.Column("lost", sa.Boolean, nullable=False),
        sa.Column("heartbeat_time", sa.Float, nullable=False),
    )
    op.create_table(
        "allocations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("accelerator", sa.String, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("cpu_millis", Int64, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("lease_seconds", sa.Integer, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("devices", sa.JSON, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("grant_time", sa.Float),
        sa.Column("renew_time", sa.Float),
        sa.Column("end_time", sa.Float),
    )
    live = sa.text("end_time IS NULL")
    op.create_index("live_holders", "allocations", ["holder"], unique=True, sqlite_where=live, postgresql_where=live)
    op.create_index("allocations_by_workspace", "allocations", ["workspace", "id"])
    op.create_index("allocations_by_state", "allocations", ["state"])
