"""Replicas are run by processes on their nodes, each under a lease. Until now the service itself ran them all."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("replicas", sa.Column("lease_expires", sa.Float, nullable=False, server_default="0"))
    op.add_column("replicas", sa.Column("devices", sa.JSON, nullable=False, server_default="[]"))
    op.create_index("replicas_by_owner", "replicas", ["owner", "state"])
