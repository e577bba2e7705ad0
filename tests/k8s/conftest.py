"""One platform on the cluster for the tests that leave it whole."""

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, cluster


@pytest.fixture(scope="session")
def cluster_platform() -> Iterator[Cluster]:
    """All of k8s/overlays/dev, up and ready."""
    with cluster() as platform:
        yield platform
