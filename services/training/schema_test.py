"""The migrations make what the tables say, and importing a worker loads nothing heavy."""

import subprocess
import sys

from libs.testing import schema_differences
from services.training.tables import Table


async def test_migrations_make_the_tables() -> None:
    assert await schema_differences("services.training", Table.metadata) == []


def test_the_service_loads_no_framework() -> None:
    program = "import sys, services.training.main; print([m for m in ('torch', 'pandas', 'duckdb', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
