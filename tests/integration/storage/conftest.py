"""A server that a test may break, and stores on it."""

from collections.abc import Iterator

import pytest

from tests.s3 import S3Server, minio_server


@pytest.fixture(scope="module")
def own_minio() -> Iterator[S3Server]:
    """Shared with nobody outside of a module."""
    with minio_server() as server:
        yield server
