"""Keys that know no workspace but their own. Until now everybody made their own keys only."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("confined", sa.Boolean, nullable=False, server_default=sa.false()))
