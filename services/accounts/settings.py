"""What can be set of accounts, by LEPTON_ACCOUNTS_…"""

from decimal import Decimal

from pydantic import Field, SecretStr

from libs.service.settings import ServiceSettings
from libs.settings import SettingsConfigDict


class Settings(ServiceSettings):
    """The `bootstrap_` ones make the first workspace; its owners are the platform's operators."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__", env_prefix="LEPTON_ACCOUNTS_")

    bootstrap_workspace: str = Field(default="default", pattern=r"^[a-z][a-z0-9-]{1,39}$")
    bootstrap_member: str = Field(default="owner@localhost", pattern=r"^[^@\s]+@[^@\s]+$")
    # An API key of the first workspace's owner that works from the start on; 1 to 255 visible ASCII characters.
    bootstrap_key: SecretStr | None = None
    # The platform's part of what buyers pay publishers.
    platform_fee_percent: Decimal = Field(default=Decimal(10), ge=0, le=100)
    # After so long an open reservation of a monthly quota counts no more, unless it belongs to a training job.
    reservation_seconds: int = Field(default=3600, ge=1)
    # A month's invoice is issued so long after its end, for events that are still on their way.
    invoice_after_seconds: int = Field(default=3600, ge=0)
    # Workspaces that one member may own; operators as many as they like.
    workspaces_per_member: int = Field(default=20, ge=1)
