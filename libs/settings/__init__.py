"""Settings of a process, read once from the environment: frozen, checked, and with no key that nobody reads."""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.errors import near


class Block(BaseModel):
    """A group of settings that a lib owns and services nest."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(BaseSettings):
    """Base of a service's settings; subclasses set `env_prefix` ("LEPTON_COMPUTE_"). Blocks are reached by `__` in the name."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        prefix = cls.model_config.get("env_prefix", "")
        known = {f"{prefix}{name}".upper() for name in cls.model_fields}
        for name in os.environ:
            if prefix and name.upper().startswith(prefix.upper()) and name.upper().split("__")[0] not in known:
                hint = near(name.upper(), known)
                raise ValueError(f"{name} is no setting" + (f"; did you mean {hint[0]}?" if hint else ""))
        return values


__all__ = ["Block", "Settings", "SettingsConfigDict"]
