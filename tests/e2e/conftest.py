"""One platform for the journeys that do not disturb each other."""

from collections.abc import Iterator

import pytest

from tests.platform import Platform, running


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("lepton")) as platform:
        yield platform
        platform.down()
