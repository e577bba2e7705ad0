"""Databases: one transaction a unit of work, with its events and its idempotency key in it.

Knows SQLAlchemy and the infrastructure tables; knows no service's tables.
"""

from libs.db.database import Database, DatabaseSettings, DatabaseTlsSettings
from libs.db.ids import new_id
from libs.db.infrastructure import Int64, create_infrastructure
from libs.db.migrate import await_schema, migrate
from libs.db.paging import page_size, page_token, start_after
from libs.db.unit import RequestKey, Unit

__all__ = [
    "Database",
    "DatabaseSettings",
    "DatabaseTlsSettings",
    "Int64",
    "RequestKey",
    "Unit",
    "await_schema",
    "create_infrastructure",
    "migrate",
    "new_id",
    "page_size",
    "page_token",
    "start_after",
]
