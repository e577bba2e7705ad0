"""Batch predictions, and the parts of them that are done."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "batch_predictions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("model_version", sa.Integer, nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("dataset", sa.String, nullable=False),
        sa.Column("splits", sa.JSON, nullable=False),
        sa.Column("kept", sa.JSON, nullable=False),
        sa.Column("columns", sa.JSON, nullable=False),
        sa.Column("probabilities", sa.Boolean, nullable=False),
        sa.Column("output", sa.String, nullable=False),
        sa.Column("output_version", sa.Integer, nullable=False),
        sa.Column("part_rows", sa.Integer, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("rows_done", sa.BigInteger, nullable=False),
        sa.Column("cpu_millis", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("quota_held", sa.Boolean, nullable=False),
        sa.Column("allocation_id", sa.String, nullable=False),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("lease_holder", sa.String, nullable=False),
        sa.Column("lease_token", sa.Integer, nullable=False),
        sa.Column("lease_expires", sa.Float, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("start_time", sa.Float),
        sa.Column("end_time", sa.Float),
        sa.Column("traceparent", sa.String, nullable=False),
    )
    op.create_index("batch_predictions_by_workspace", "batch_predictions", ["workspace", "id"])
    op.create_index("batch_predictions_by_state", "batch_predictions", ["state"])
    op.create_index("batch_predictions_by_allocation", "batch_predictions", ["allocation_id"])
    op.create_table(
        "predicted_parts",
        sa.Column("batch_prediction_id", sa.String, sa.ForeignKey("batch_predictions.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_index("predicted_parts_by_digest", "predicted_parts", ["digest"])
