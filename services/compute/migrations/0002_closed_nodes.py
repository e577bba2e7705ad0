"""A cluster cordons its machines itself, and lends them to others too: its agent says both, beside what the operator says."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("whole", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("nodes", sa.Column("closed", sa.Boolean, nullable=False, server_default=sa.false()))
