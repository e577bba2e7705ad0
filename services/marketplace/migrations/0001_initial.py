"""First tables."""

import sqlalchemy as sa
from alembic import op

from libs.db import create_infrastructure

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    op.create_table(
        "listings",
        sa.Column("slug", sa.String, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("publisher", sa.String, nullable=False),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("summary", sa.String, nullable=False),
        sa.Column("card", sa.String, nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("price", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("words", sa.String, nullable=False),
        sa.Column("reviews", sa.Integer, nullable=False),
        sa.Column("stars", sa.Integer, nullable=False),
        sa.Column("subscribers", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("update_time", sa.Float, nullable=False),
    )
    op.create_index("ix_listings_publisher", "listings", ["publisher"])
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("listing", sa.String, nullable=False),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("price", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("end_time", sa.Float),
    )
    active = sa.text("state = 1")
    op.create_index(
        "ix_subscriptions_active", "subscriptions", ["listing", "workspace"], unique=True, sqlite_where=active, postgresql_where=active
    )
    op.create_index("ix_subscriptions_workspace_listing", "subscriptions", ["workspace", "listing"])
    op.create_table(
        "reviews",
        sa.Column("listing", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("stars", sa.Integer, nullable=False),
        sa.Column("text", sa.String, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_table(
        "invocation_batches",
        sa.Column("batch_id", sa.String, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
    )
    op.create_index("ix_invocation_batches_time", "invocation_batches", ["time"])
