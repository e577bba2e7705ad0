"""When a process took a replica: what starts for too long is seen by it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("replicas", sa.Column("claim_time", sa.Float))
