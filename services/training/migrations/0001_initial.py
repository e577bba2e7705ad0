"""Jobs, what they tell, models and files."""

import sqlalchemy as sa
from alembic import op

from libs.db import Int64, create_infrastructure

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    op.create_table(
        "training_jobs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("dataset", sa.String, nullable=False),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("target", sa.String, nullable=False),
        sa.Column("features", sa.JSON, nullable=False),
        sa.Column("output_model", sa.String, nullable=False),
        sa.Column("model", sa.JSON, nullable=False),
        sa.Column("training", sa.JSON, nullable=False),
        sa.Column("resources", sa.JSON, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("progress", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("model_version", sa.String, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("start_time", sa.Float),
        sa.Column("first_step_time", sa.Float),
        sa.Column("end_time", sa.Float),
        sa.Column("trace_id", sa.String, nullable=False),
        sa.Column("traceparent", sa.String, nullable=False),
        sa.Column("last_event", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("hangs", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("limited_by", sa.String, nullable=False),
        sa.Column("allocation_id", sa.String, nullable=False),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("devices", sa.JSON, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("lease_holder", sa.String, nullable=False),
        sa.Column("lease_token", sa.Integer, nullable=False),
        sa.Column("lease_expires", sa.Float, nullable=False),
    )
    op.create_index("training_jobs_by_allocation", "training_jobs", ["allocation_id"])
    op.create_index("training_jobs_by_state", "training_jobs", ["state"])
    op.create_index("training_jobs_by_workspace", "training_jobs", ["workspace", "id"])
    op.create_table(
        "pending_reservations",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("number", Int64, primary_key=True, autoincrement=False),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
    )
    op.create_index("job_events_by_kind", "job_events", ["job_id", "kind", "number"])
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_table(
        "files",
        sa.Column("owner", sa.String, primary_key=True),
        sa.Column("path", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_index("files_by_digest", "files", ["digest"])
    op.create_table(
        "models",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("latest_version", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    op.create_table(
        "model_versions",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("number", Int64, primary_key=True, autoincrement=False),
        sa.Column("training_job", sa.String, nullable=False, unique=True),
        sa.Column("message", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "served_models",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("endpoint", sa.String, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
    )
    op.create_index("served_models_by_model", "served_models", ["workspace", "model"])
