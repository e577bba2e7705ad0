"""The workers of an attempt may be on several nodes of a cluster."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("training_jobs", sa.Column("nodes", sa.JSON, nullable=False, server_default="[]"))
