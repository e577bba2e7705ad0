"""Settings of a process, read once from the environment: frozen, checked, and with no key that nobody reads."""

import os
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from libs.errors import near


class Block(BaseModel):
    """A group of settings that a lib owns and services nest."""

    # What is refused may be a secret in the wrong place: errors name the field, not its value.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


# What is said once for all processes of a platform, as LEPTON_PLATFORM_EVENTS__URL; a process without such a field passes it over.
PLATFORM = "LEPTON_PLATFORM_"
SHARED = frozenset(
    {
        "alive_file",
        "drain_seconds",
        "events",
        "identity",
        "launcher",
        "log_level",
        "metrics_listen",
        "migrate_on_start",
        "peers",
        "storage",
        "tasks_url",
        "telemetry_sample",
        "telemetry_url",
        "tls",
        "traces_url",
    }
)


class Settings(BaseSettings):
    """Base of a service's settings; subclasses set `env_prefix` ("LEPTON_COMPUTE_"). Blocks are reached by `__` in the name.

    What its own prefix does not say, LEPTON_PLATFORM_ may, for the names in SHARED.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        prefix = cls.model_config.get("env_prefix", "")
        if prefix:
            _require_known(prefix, cls.model_fields)
            _require_known(PLATFORM, SHARED)
        return values

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments before the process's own variables before the platform's."""
        if not cls.model_config.get("env_prefix"):
            return init_settings, env_settings
        return init_settings, env_settings, _Platform(settings_cls, env_prefix=PLATFORM)


class _Platform(EnvSettingsSource):
    """The shared names alone: LEPTON_PLATFORM_PORT is no setting."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if name in SHARED}


def _require_known(prefix: str, names: Iterable[str]) -> None:
    known = {f"{prefix}{name}".upper() for name in names}
    for name in os.environ:
        if name.upper().startswith(prefix.upper()) and name.upper().split("__")[0] not in known:
            hint = near(name.upper(), known)
            raise ValueError(f"{name} is no setting" + (f"; did you mean {hint[0]}?" if hint else ""))


__all__ = ["Block", "Settings", "SettingsConfigDict"]
