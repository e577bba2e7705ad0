"""Why a listing is withdrawn, and when its endpoint was last seen. Until now publishers alone withdrew."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("listings", sa.Column("reason", sa.Integer, nullable=False, server_default="0"))
    op.add_column("listings", sa.Column("endpoint_time", sa.Float, nullable=False, server_default="0"))
    op.execute("UPDATE listings SET endpoint_time = update_time")
    op.execute("UPDATE listings SET reason = 1 WHERE state = 2")
