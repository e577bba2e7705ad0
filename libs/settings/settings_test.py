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


class Shared(Settings):
    model_config = SettingsConfigDict(env_prefix="LEPTON_SHARED_")

    log_level: str = "info"
    events: Database = Database()


def test_the_platform_says_what_the_process_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_PLATFORM_EVENTS__URL", "kafka://one")
    monkeypatch.setenv("LEPTON_PLATFORM_LOG_LEVEL", "debug")
    monkeypatch.setenv("LEPTON_SHARED_LOG_LEVEL", "error")
    monkeypatch.setenv("LEPTON_PLATFORM_STORAGE__URL", "s3://passed-over")
    settings = Shared()
    assert (settings.events.url, settings.log_level) == ("kafka://one", "error")


def test_a_platform_key_that_no_process_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_PLATFORM_EVENT__URL", "kafka://one")
    with pytest.raises(ValidationError, match="LEPTON_PLATFORM_EVENTS"):
        Shared()


def test_an_argument_counts_before_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_PLATFORM_LOG_LEVEL", "debug")
    assert Shared(log_level="warning").log_level == "warning"


def test_a_secret_in_the_wrong_place_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_EXAMPLE_DATABASE__PASWORD", "hunter2")
    monkeypatch.setenv("LEPTON_EXAMPLE_WORKERS", "hunter3")
    with pytest.raises(ValidationError) as refused:
        ExampleSettings()
    assert "database.pasword" in str(refused.value)
    assert "hunter" not in str(refused.value)
