"""The services' own tests, on PostgreSQL."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

ROOT = Path(__file__).parents[3]
# Without what knows no database: engines, domains, replicas.
PATHS = [
    "services/accounts",
    "services/compute",
    "services/marketplace",
    "services/data/maker_test.py",
    "services/data/main_test.py",
    "services/data/servicer_test.py",
    "services/deployment/deployment_test.py",
    "services/deployment/processes_test.py",
    "services/training/main_test.py",
    "services/training/schema_test.py",
    "services/training/servicer_test.py",
    "services/training/supervisor",
]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_services_own_tests_pass_on_postgresql(postgres: URL) -> None:
    environment = {**os.environ, "LEPTON_TEST_DATABASE": postgres.render_as_string(hide_password=False)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *PATHS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1480, check=False)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
