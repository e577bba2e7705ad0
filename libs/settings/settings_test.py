"""Settings refuse what nobody reads."""

import pytest
from pydantic import ValidationError

from libs.settings import Block, Settings, SettingsConfigDict


class Database(Block):
    url: str = "sqlite://"


class ExampleSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="LEPTON_EXAMPLE_")

    database: Database = Database()
    workers: int = 1


def test_nested_blocks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_EXAMPLE_DATABASE__URL", "sqlite:///x")
    assert ExampleSettings().database.url == "sqlite:///x"


def test_an_unknown_key_is_refused_with_a_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_EXAMPLE_WORKER", "2")
    with pytest.raises(ValidationError, match="LEPTON_EXAMPLE_WORKERS"):
        ExampleSettings()
