"""Datasets, versions, files."""

import sqlalchemy as sa
from alembic import op

from libs.db import Int64, create_infrastructure

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    op.create_table(
        "datasets",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("implicit", sa.Boolean, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("used_numbers", sa.Integer, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("dataset", sa.String, primary_key=True),
        sa.Column("number", Int64, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("job", sa.JSON, nullable=False),
        sa.Column("lineage", sa.LargeBinary, nullable=False),
        sa.Column("request_key", sa.String),
        sa.Column("awaited_until", sa.Float, nullable=False),
        sa.Column("traceparent", sa.String, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("columns", sa.JSON, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("notices", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("ready_time", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("lease_holder", sa.String, nullable=False),
        sa.Column("lease_token", sa.Integer, nullable=False),
        sa.Column("lease_expires", sa.Float, nullable=False),
        sa.UniqueConstraint("workspace", "request_key", name="versions_by_request"),
    )
    op.create_index("versions_by_state", "versions", ["state"])
    op.create_table(
        "files",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("dataset", sa.String, primary_key=True),
        sa.Column("number", Int64, primary_key=True, autoincrement=False),
        sa.Column("role", sa.String, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_index("files_by_digest", "files", ["digest"])
    op.create_table(
        "profiles",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("dataset", sa.String, primary_key=True),
        sa.Column("number", Int64, primary_key=True, autoincrement=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "orphans",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
    )
