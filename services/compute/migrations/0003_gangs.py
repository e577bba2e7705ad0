"""An allocation may be for several workers, and on several nodes of a cluster."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("cluster", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("allocations", sa.Column("workers", sa.Integer, nullable=False, server_default="1"))
    op.add_column("allocations", sa.Column("nodes", sa.JSON, nullable=False, server_default="[]"))
