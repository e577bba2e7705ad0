"""Puts accounts together: its start makes the first workspace, its loop issues invoices."""

import time
from collections.abc import Callable

import structlog

from lepton.accounts.v1.accounts_service_pb2_grpc import add_AccountsServiceServicer_to_server
from libs.db import Database
from libs.events import EventLog
from libs.lifecycle import Lifecycle, Loop
from libs.service import Kit, command
from services.accounts.billing import Billing
from services.accounts.consumers import reactions
from services.accounts.handlers import bootstrap_workspace
from services.accounts.servicer import AccountsServicer
from services.accounts.settings import Settings

log = structlog.get_logger()


async def bootstrap(
    database: Database, settings: Settings, *, may_make_key: bool = True, clock: Callable[[], float] = time.time
) -> str | None:
    """Brings the first workspace about; returns the secret of its key where one had to be made, this once."""
    async with database.unit() as unit:
        done = await bootstrap_workspace(
            unit,
            name=settings.bootstrap_workspace,
            member=settings.bootstrap_member,
            key=settings.bootstrap_key.get_secret_value() if settings.bootstrap_key else "",
            may_make_key=may_make_key,
            now=clock(),
        )
    log.info("first_workspace_ready", workspace=settings.bootstrap_workspace, key=done.key.value)
    return done.secret or None


class Bootstrap:
    """`bootstrap` as a component; a key that has to be made is handed to `on_first_key`, and not made where nobody would see it."""

    def __init__(self, database: Database, settings: Settings, on_first_key: Callable[[str], None] | None) -> None:
        self._database, self._settings, self._on_first_key = database, settings, on_first_key

    async def start(self) -> None:
        secret = await bootstrap(self._database, self._settings, may_make_key=self._on_first_key is not None)
        if secret and self._on_first_key:
            self._on_first_key(secret)

    async def stop(self) -> None:
        return None


def build(settings: Settings, event_log: EventLog | None = None, *, on_first_key: Callable[[str], None] | None = None) -> Lifecycle:
    """The service. `on_first_key` is given the secret of the first key where none was set and none is there."""
    kit = Kit("accounts", "services.accounts", settings, event_log)
    billing = Billing(kit.database, invoice_after=settings.invoice_after_seconds)
    return kit.service(
        [(AccountsServicer(kit.database, settings), add_AccountsServiceServicer_to_server)],
        reactions(settings.platform_fee_percent),
        [Bootstrap(kit.database, settings, on_first_key), Loop("accounts-billing", billing.step, interval=60)],
    )


if __name__ == "__main__":
    command("accounts", "services.accounts", Settings(), build)
