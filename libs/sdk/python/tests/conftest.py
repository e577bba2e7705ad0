"""A fake platform and a client of it, for each test."""

from collections.abc import Iterator

import pytest
from fake_platform import KEY, FakePlatform

import leptonai as la


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    fake = FakePlatform()
    yield fake
    fake.close()


@pytest.fixture
def client(platform: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[la.Client]:
    for name in ("LEPTON_API_KEY", "LEPTON_URL"):
        monkeypatch.delenv(name, raising=False)
    with la.Client(KEY, platform.url, timeout=5) as made:
        yield made
