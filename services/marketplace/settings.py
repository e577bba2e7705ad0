"""What can be set of the marketplace, by LEPTON_MARKETPLACE_…"""

from libs.service.settings import ServiceSettings
from libs.settings import SettingsConfigDict


class Settings(ServiceSettings):
    """Nothing of its own yet."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__", env_prefix="LEPTON_MARKETPLACE_")
