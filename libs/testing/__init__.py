"""What tests of services share: a migrated database in memory (or on PostgreSQL), an identity, a clock that moves only when told,
a component that tells of its start and stop.

For tests alone.
"""

from libs.testing.clock import FakeClock
from libs.testing.database import database_environment, database_settings, migrated_database, schema_differences
from libs.testing.identity import as_member
from libs.testing.recorder import Recorder

__all__ = ["FakeClock", "Recorder", "as_member", "database_environment", "database_settings", "migrated_database", "schema_differences"]
