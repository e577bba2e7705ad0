"""The start makes the first workspace whatever was there; the loop bills without being asked."""

from pathlib import Path

import pytest

from libs.db import Database
from libs.errors import Conflict, Invalid
from libs.events import EventLogSettings
from libs.rpc import generate_key
from libs.service import IdentitySettings
from libs.testing import FakeClock, database_settings, migrated_database
from services.accounts import handlers, repository
from services.accounts.billing import Billing
from services.accounts.domain import secrets
from services.accounts.domain.roles import Role
from services.accounts.main import bootstrap, build
from services.accounts.settings import Settings


async def who(database: Database, secret: str) -> handlers.keys.Caller:
    async with database.read() as session:
        return await handlers.authenticate(session, key_sha256=secrets.digest(secret))


async def test_a_first_key_is_made_and_shown_once() -> None:
    async with migrated_database("services.accounts") as database:
        assert await bootstrap(database, Settings(), may_make_key=False) is None
        secret = await bootstrap(database, Settings())
        assert secret and (await who(database, secret)).role == Role.OPERATOR
        assert await bootstrap(database, Settings()) is None


async def test_a_given_key_works_after_every_start(clock: FakeClock) -> None:
    given = Settings(bootstrap_key="your_api_key")
    async with migrated_database("services.accounts") as database:
        for _ in range(2):
            assert await bootstrap(database, given) is None
        caller = await who(database, "your_api_key")
        async with database.unit() as unit:
            await handlers.delete_api_key(unit, workspace="default", role=Role.OPERATOR, id=caller.api_key_id, now=clock())
        await bootstrap(database, Settings(), may_make_key=False)
        with pytest.raises(Exception, match="unknown or was revoked"):
            await who(database, "your_api_key")
        await bootstrap(database, given)
        assert await who(database, "your_api_key") == caller
        await bootstrap(database, Settings(bootstrap_key="another", bootstrap_member="Root@Host"))
        assert (await who(database, "another")).member == "root@host"


@pytest.mark.parametrize("key", ["with space", "é", "x" * 256, "new\nline"])
async def test_a_key_that_cannot_travel_is_refused(key: str) -> None:
    async with migrated_database("services.accounts") as database:
        with pytest.raises(Invalid, match="visible ASCII"):
            await bootstrap(database, Settings(bootstrap_key=key))


async def test_there_is_one_first_workspace(database: Database) -> None:
    with pytest.raises(Conflict, match="the first workspace is 'default'"):
        await bootstrap(database, Settings(bootstrap_workspace="another"))


async def test_past_months_are_issued_without_asking(database: Database, clock: FakeClock) -> None:
    billing = Billing(database, invoice_after=3600, clock=clock)
    assert not await billing.step()
    clock.now = 1_790_812_800 + 3599  # 2026-10-01, and an hour but a second
    await billing.step()
    async with database.read() as session:
        assert not await repository.invoices(session, "default")
        assert set(await repository.open_periods(session, "default")) == {"2026-09", "2026-10"}
    clock.advance(1)
    for _ in range(2):
        await billing.step()
    async with database.read() as session:
        [invoice] = await repository.invoices(session, "default")
    assert (invoice.number, invoice.period, invoice.total) == ("INV-2026-09-000001", "2026-09", 20_000_000)


async def test_storage_is_billed_by_the_month(database: Database, clock: FakeClock) -> None:
    september, october, november = 1_788_220_800, 1_790_812_800, 1_793_491_200
    clock.now = september + (october - september) / 2
    async with database.unit() as unit:
        name, size = "datasets/default/iris@1", 4 << 30
        await handlers.reserve_quota(unit, workspace="default", metric="storage_bytes", reservation=name, amount=size, now=clock())
    billing = Billing(database, invoice_after=0, clock=clock)
    clock.now = november
    for _ in range(2):
        await billing.step()
    async with database.read() as session:
        lines = {
            period: {line.metric: line for line in await repository.lines(session, "default", period=period)}
            for period in ("2026-09", "2026-10", "2026-11")
        }
    stored = {period: found.get("storage_gib_months") for period, found in lines.items()}
    assert [(line.resource, line.quantity, line.amount) for line in stored.values() if line] == [
        ("datasets/iris@1", 2_000_000, 50_000),
        ("datasets/iris@1", 4_000_000, 100_000),
    ]


async def test_it_starts_and_stops_whole(tmp_path: Path) -> None:
    shown: list[str] = []
    settings = Settings(
        listen=f"unix:{tmp_path}/accounts",
        database=await database_settings(f"sqlite+aiosqlite:///{tmp_path}/accounts.db"),
        events=EventLogSettings(url=f"sqlite:///{tmp_path}/events.db"),
        identity=IdentitySettings(private_key=generate_key()[0]),
    )
    for _ in range(2):
        service = build(settings, on_first_key=shown.append)
        await service.start()
        await service.stop()
    assert len(shown) == 1
