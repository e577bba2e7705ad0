"""One platform of each size for the journeys that do not disturb each other."""

from collections.abc import Iterator

import pytest

from tests.composed import Composed
from tests.platform import Platform, running


@pytest.fixture(scope="session")
def embedded_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """`lepton up`."""
    with running(tmp_path_factory.mktemp("lepton")) as platform:
        yield platform
        platform.down()


@pytest.fixture(scope="session", params=["embedded", "composed"])
def platform(request: pytest.FixtureRequest) -> Platform | Composed:
    """The same journeys on one process of one machine, and on containers."""
    found: Platform | Composed = request.getfixturevalue(f"{request.param}_platform")
    return found
