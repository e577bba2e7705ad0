"""First tables, and the plans trial and pro."""

import sqlalchemy as sa
from alembic import op

from libs.db import create_infrastructure

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    plans = op.create_table(
        "plans",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("display_name", sa.String, nullable=False),
        sa.Column("monthly_price", sa.BigInteger, nullable=False),
        sa.Column("quotas", sa.JSON, nullable=False),
        sa.Column("prices", sa.JSON, nullable=False),
    )
    op.create_table(
        "workspaces",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("display_name", sa.String, nullable=False),
        sa.Column("plan", sa.String, nullable=False),
        sa.Column("first", sa.Boolean, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_table(
        "members",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("email", sa.String, primary_key=True),
        sa.Column("role", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_index("ix_members_email", "members", ["email"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("member", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("prefix", sa.String, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("role", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("revoke_time", sa.Float),
    )
    op.create_index("ix_api_keys_workspace", "api_keys", ["workspace"])
    op.create_table(
        "reservations",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("metric", sa.String, primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("settled_time", sa.Float, nullable=False),
        sa.Column("expire_time", sa.Float),
    )
    op.create_table(
        "usage_records",
        sa.Column("source", sa.String, primary_key=True),
        sa.Column("event_id", sa.String, primary_key=True),
        sa.Column("metric", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("period", sa.String, nullable=False),
        sa.Column("resource", sa.String, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("unit_price", sa.BigInteger, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("invoice", sa.String, nullable=False),
    )
    op.create_index("ix_usage_records_workspace_period", "usage_records", ["workspace", "period"])
    op.create_index("ix_usage_records_open", "usage_records", ["invoice", "workspace", "period"])
    op.create_table(
        "usage_totals",
        sa.Column("workspace", sa.String, primary_key=True),
        sa.Column("period", sa.String, primary_key=True),
        sa.Column("metric", sa.String, primary_key=True),
        sa.Column("quantity", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "earnings",
        sa.Column("source", sa.String, primary_key=True),
        sa.Column("event_id", sa.String, primary_key=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("period", sa.String, nullable=False),
        sa.Column("listing", sa.String, nullable=False),
        sa.Column("buyer", sa.String, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("gross", sa.BigInteger, nullable=False),
        sa.Column("fee", sa.BigInteger, nullable=False),
        sa.Column("net", sa.BigInteger, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
    )
    op.create_index("ix_earnings_workspace_period", "earnings", ["workspace", "period"])
    op.create_table(
        "invoices",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("number", sa.String, nullable=False, unique=True),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("period", sa.String, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("issue_time", sa.Float, nullable=False),
    )
    op.create_index("ix_invoices_workspace", "invoices", ["workspace"])
    op.create_table(
        "invoice_numbers",
        sa.Column("period", sa.String, primary_key=True),
        sa.Column("last", sa.Integer, nullable=False),
    )
    op.bulk_insert(plans, PLANS)


# Prices in micros of USD a unit. A month of trial costs nothing, within its quotas.
PLANS = [
    {
        "name": "trial",
        "display_name": "Trial",
        "monthly_price": 0,
        "quotas": {
            "storage_bytes": 1 << 30,
            "concurrent_training_jobs": 2,
            "endpoints": 2,
            "api_keys": 5,
            "members": 3,
            "cpu_seconds": 36_000,
            "gpu_seconds": 0,
            "tpu_seconds": 0,
            "predictions": 10_000,
        },
        "prices": {"cpu_seconds": 0, "gpu_seconds": 0, "tpu_seconds": 0, "predictions": 0, "storage_gib_months": 0},
    },
    {
        "name": "pro",
        "display_name": "Pro",
        "monthly_price": 20_000_000,
        "quotas": {
            "storage_bytes": 1 << 40,
            "concurrent_training_jobs": 100,
            "endpoints": 100,
            "api_keys": 1_000,
            "members": 200,
            "cpu_seconds": 100_000_000,
            "gpu_seconds": 10_000_000,
            "tpu_seconds": 10_000_000,
            "predictions": 10_000_000_000,
        },
        "prices": {"cpu_seconds": 14, "gpu_seconds": 700, "tpu_seconds": 900, "predictions": 2, "storage_gib_months": 25_000},
    },
]
