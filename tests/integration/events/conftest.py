"""Names that no other test has on the shared broker."""

from uuid import uuid4

import pytest


@pytest.fixture
def own() -> str:
    return f"t{uuid4().hex[:12]}"
