"""A node's agent may say that it takes nothing new, beside the operator: a cluster cordons its machines itself."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("closed", sa.Boolean, nullable=False, server_default=sa.false()))
