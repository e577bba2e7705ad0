"""Endpoints, replicas, reservations on their way, recorded batches."""

import sqlalchemy as sa
from alembic import op

from libs.db import create_infrastructure

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    op.create_table(
        "endpoints",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("model_version", sa.Integer, nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("replicas", sa.Integer, nullable=False),
        sa.Column("resources", sa.JSON, nullable=False),
        sa.Column("accelerator", sa.String, nullable=False),
        sa.Column("device_count", sa.Integer, nullable=False),
        sa.Column("cpu_millis", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("next_try_time", sa.Float, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("update_time", sa.Float, nullable=False),
        sa.Column("delete_time", sa.Float),
        sa.Column("traceparent", sa.String, nullable=False),
    )
    not_deleted = sa.text("delete_time IS NULL")
    op.create_index(
        "endpoints_by_name", "endpoints", ["workspace", "name"], unique=True, sqlite_where=not_deleted, postgresql_where=not_deleted
    )
    op.create_table(
        "replicas",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("endpoint_id", sa.String, sa.ForeignKey("endpoints.id"), nullable=False),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("hurried", sa.Boolean, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("handle", sa.String, nullable=False),
        sa.Column("allocation_id", sa.String, nullable=False),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("token", sa.String, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("ready_time", sa.Float),
        sa.Column("end_time", sa.Float),
    )
    op.create_index("replicas_by_endpoint", "replicas", ["endpoint_id", "id"])
    op.create_index("replicas_by_state", "replicas", ["state"])
    op.create_index("replicas_by_allocation", "replicas", ["allocation_id"])
    op.create_table(
        "pending_reservations",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("endpoint", sa.String, primary_key=True),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_table(
        "prediction_batches",
        sa.Column("batch_id", sa.String, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
    )
    op.create_index("ix_prediction_batches_time", "prediction_batches", ["time"])
