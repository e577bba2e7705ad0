"""One platform on the cluster for the tests that leave it whole."""

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, cluster


@pytest.fixture(scope="session")
def cluster_platform() -> Iterator[Cluster]:
    """All of k8s/overlays/dev, up and ready."""
    with cluster() as platform:
        yield platform


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First two of each of everything, which fill a small machine, and then `cluster_platform`, which stays to the end."""
    items.sort(key=lambda item: "prod_test" not in item.nodeid)
