"""Endpoints scale and roll out: bounds, revisions, traffic as gateways tell it, decisions; and until when ready time was told."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("endpoints", sa.Column("bounds", sa.JSON))
    op.add_column("replicas", sa.Column("metered_until", sa.Float))
    # Endpoints of before get the row of their revision from the first look at them.
    op.create_table(
        "revisions",
        sa.Column("endpoint_id", sa.String, sa.ForeignKey("endpoints.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("model_version", sa.Integer, nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("accelerator", sa.String, nullable=False),
        sa.Column("device_count", sa.Integer, nullable=False),
        sa.Column("cpu_millis", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("traceparent", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("percent", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("rollout", sa.JSON, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("change_time", sa.Float, nullable=False),
        sa.Column("window_time", sa.Float, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("seconds_sum", sa.Float, nullable=False),
        sa.Column("shadow_compared", sa.BigInteger, nullable=False),
        sa.Column("shadow_differing", sa.BigInteger, nullable=False),
        sa.Column("last_request_time", sa.Float, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("next_try_time", sa.Float, nullable=False),
        sa.Column("error", sa.JSON),
    )
    op.create_table(
        "traffic",
        sa.Column("gateway", sa.String, primary_key=True),
        sa.Column("endpoint_id", sa.String, primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("in_flight", sa.Float, nullable=False),
        sa.Column("waiting", sa.Integer, nullable=False),
        sa.Column("p95_seconds", sa.Float, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
    )
    op.create_index("ix_traffic_time", "traffic", ["time"])
    op.create_table(
        "scaling_decisions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("endpoint_id", sa.String, sa.ForeignKey("endpoints.id"), nullable=False),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("from_replicas", sa.Integer, nullable=False),
        sa.Column("to_replicas", sa.Integer, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
    )
    op.create_index("scaling_decisions_by_endpoint", "scaling_decisions", ["endpoint_id", "id"])
    op.create_index("ix_scaling_decisions_time", "scaling_decisions", ["time"])
