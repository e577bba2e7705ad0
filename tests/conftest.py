"""What suites share: the composed platform is built and started once a session."""

from collections.abc import Iterator

import pytest

from tests.collector import _collector as collector
from tests.composed import Composed, composed
from tests.s3 import minio, versitygw

__all__ = ["composed_platform", "minio", "versitygw"]
from tests.kafka import kafka

__all__ = ["collector", "composed_platform", "kafka"]


@pytest.fixture(scope="session")
def composed_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """compose.yaml, up and ready."""
    with composed(tmp_path_factory.mktemp("composed")) as platform:
        yield platform
