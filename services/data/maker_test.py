"""Interruptions: of the worker at any line, of the service between any two steps. One version comes of it, or none."""

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from lepton.data.v1 import data_service_pb2 as pb
from lepton.data.v1 import dataset_pb2 as d
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.errors import AppError, Invalid, Transient
from libs.events.sqlite import SqliteEventLog
from libs.rpc import acting_for
from libs.storage import InMemoryArtifactStore, LocalArtifactStore
from libs.testing import database_environment
from services.data.domain.states import MAX_ATTEMPTS, State
from services.data.engine.process import EngineFailed
from services.data.handlers import versions
from services.data.handlers.versions import Key, LeaseLost
from services.data.scene import PRIVATE, Scene, scene, until
from services.data.tables import Dataset, File, Version

CSV = b"id,diagnosis\n1,M\n2,B\n3,B\n"
MADE: dict[str, Any] = {
    "kind": "table",
    "columns": [{"name": "id", "type": "integer", "nullable": False}],
    "rows": 3,
    "splits": [{"name": "all", "rows": 3, "file": "all.parquet", "size_bytes": 5}],
    "notices": [],
    "profile": {"rows": 3, "duplicate_rows": 0, "columns": []},
}


async def quick(kind: str, job: Any, folder: Path, limits: Any) -> dict[str, Any]:
    (folder / "all.parquet").write_bytes(b"bytes")
    return MADE


async def change(data: Scene, **values: Any) -> None:
    async with data.database.unit() as unit:
        await unit.session.execute(update(Version).values(**values))


async def test_a_worker_that_fails_is_followed_by_another_try(tmp_path: Path) -> None:
    tries = []

    async def flaky(*job: Any) -> dict[str, Any]:
        tries.append(job)
        if len(tries) == 1:
            raise EngineFailed("killed", meta={"log": ""})
        return await quick(*job)

    async with scene(tmp_path, engine=flaky) as data:
        assert (await data.upload("wdbc", CSV)).state == d.VERSION_STATE_READY
    assert len(tries) == 2


async def test_two_workspaces_datasets_of_one_name_are_made_at_once(tmp_path: Path) -> None:
    both = asyncio.Barrier(2)

    async def together(*job: Any) -> dict[str, Any]:
        await both.wait()
        return await quick(*job)

    async with scene(tmp_path, engine=together) as data:
        for version in await asyncio.gather(*(data.upload("wdbc", CSV, workspace=workspace) for workspace in ("acme", "other"))):
            assert version.state == d.VERSION_STATE_READY
        async with data.database.read() as session:
            assert set((await session.execute(select(Version.attempts))).scalars()) == {1}


async def test_what_always_fails_ends_with_words(tmp_path: Path) -> None:
    async def broken(*job: Any) -> dict[str, Any]:
        raise EngineFailed("killed", meta={"log": ""})

    async with scene(tmp_path, engine=broken) as data:
        version = await data.upload("wdbc", CSV, wait=0)
        for _ in range(MAX_ATTEMPTS):
            await asyncio.sleep(0.1)
            await change(data, not_before=0.0)
            data.maker.wake()
        failed = await data.settled("wdbc", version.number)
    assert failed.error.code == "process_failed"
    assert f"interrupted {MAX_ATTEMPTS} times" in failed.error.detail


class Away(InMemoryArtifactStore):
    """A store that cannot be read for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.away = 0, True

    async def fetch(self, digest: str, path: Path) -> None:
        self.asked += 1
        if self.away:
            raise Transient("the artifact store cannot be reached; try again")
        await super().fetch(digest, path)


async def test_a_store_that_is_away_refuses_no_version_however_long(tmp_path: Path) -> None:
    store = Away()
    async with scene(tmp_path, store=store) as data:
        version = await data.upload("wdbc", CSV, wait=0)
        for asked in range(2 * MAX_ATTEMPTS):
            await until(lambda least=asked: _asked(store, least))
            await change(data, not_before=0.0)
            data.maker.wake()
        store.away = False
        assert (await data.settled("wdbc", version.number)).state == d.VERSION_STATE_READY


async def _asked(store: Away, more_than: int) -> bool:
    return store.asked > more_than


async def test_a_lost_lease_writes_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path, works=False) as data:
        await data.upload("wdbc", CSV, wait=0)
        key, now = Key("acme", "wdbc", 1), time.time()
        async with data.database.unit() as unit:
            first = await versions.claim_version(unit, key, holder="a", now=now, lease_seconds=10)
        async with data.database.unit() as unit:
            assert await versions.claim_version(unit, key, holder="b", now=now, lease_seconds=10) is None
        async with data.database.unit() as unit:
            second = await versions.claim_version(unit, key, holder="b", now=now + 11, lease_seconds=10)
        assert first
        assert second
        for write in (
            lambda unit: versions.finish_version(unit, first[0], MADE, {"all": "sha256:1"}, now),
            lambda unit: versions.refuse_version(unit, first[0], Invalid("no")),
            lambda unit: versions.renew_lease(unit, first[0], now + 99),
            lambda unit: versions.put_back(unit, first[0], now=now, counts=True),
        ):
            with pytest.raises(LeaseLost):
                async with data.database.unit() as unit:
                    await write(unit)
        async with data.database.unit() as unit:
            await versions.finish_version(unit, second[0], MADE, {"all": "sha256:1"}, now)
        assert len(await data.events()) == 1


async def test_a_stopped_worker_gives_back_what_it_has(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless(*job: Any) -> dict[str, Any]:
        begun.set()
        await asyncio.sleep(3600)
        return MADE

    async with scene(tmp_path, engine=endless) as data:
        await data.upload("wdbc", CSV, wait=0)
        await begun.wait()
        await data.maker.stop()
        async with data.database.unit() as unit:
            claimed = await versions.claim_version(unit, Key("acme", "wdbc", 1), holder="b", now=time.time(), lease_seconds=10)
        assert claimed
        assert claimed[1].attempts == 1
    assert not list((tmp_path / "work").glob("maker-*"))


async def test_a_caller_that_goes_away_hears_by_the_version_or_not_at_all(tmp_path: Path) -> None:
    # In a file: a query that is cancelled takes its connection with it, and with that a database in memory.
    async with scene(tmp_path, url=f"sqlite+aiosqlite:///{tmp_path}/data.db", works=False) as data:
        upload = asyncio.create_task(data.upload("wdbc", CSV, wait=30))
        await until(lambda: _has(data, State.PROCESSING))
        upload.cancel()
        await change(data, awaited_until=time.time() - 60, state=State.PROCESSING)
        await data.reconciler.step()
        async with data.database.unit() as unit:
            claimed = await versions.claim_version(unit, Key("acme", "wdbc", 1), holder="a", now=time.time(), lease_seconds=10)
            assert claimed
            await versions.refuse_version(unit, claimed[0], Invalid("no", code="invalid_data"))
        assert (await data.get("wdbc", 1)).state == d.VERSION_STATE_FAILED
        await change(data, awaited_until=time.time() - 60, state=State.REFUSED)
        await data.reconciler.step()
        assert await data.count(Version) == 0
        assert data.accounts.held == {}


async def test_a_version_whose_quota_was_never_taken_is_removed(tmp_path: Path) -> None:
    async with scene(tmp_path, works=False) as data:
        data.accounts.away = Transient("away")
        with pytest.raises(Transient):
            await data.upload("wdbc", CSV)
        assert await data.count(Version) == 1
        with pytest.raises(AppError):
            await data.get("wdbc", 1)
        await change(data, create_time=time.time() - 1000)
        await data.reconciler.step()
        assert await data.count(Version) == 1
        data.accounts.away = None
        await data.reconciler.step()
        assert [await data.count(table) for table in (Dataset, Version, File)] == [0, 0, 0]


async def test_a_request_that_lost_its_answer_finds_its_version_again(tmp_path: Path) -> None:
    # In a file: a query that is cancelled takes its connection with it, and with that a database in memory.
    async with scene(tmp_path, url=f"sqlite+aiosqlite:///{tmp_path}/data.db", works=False) as data:
        data.accounts.away = Transient("away")
        with pytest.raises(Transient):
            await data.upload("wdbc", CSV, key="k1")
        data.accounts.away = None
        upload = asyncio.create_task(data.upload("wdbc", CSV, key="k1"))
        await until(lambda: _has(data, State.PROCESSING))
        upload.cancel()
        again = asyncio.create_task(data.upload("wdbc", CSV, key="k1"))
        await asyncio.sleep(0.1)
        await data.maker.start()
        assert (await again).number == 1
        assert await data.count(Version) == 1


async def _has(data: Scene, state: State) -> bool:
    async with data.database.read() as session:
        version = await session.get(Version, ("acme", "wdbc", 1))
    return version is not None and version.state == state


async def test_uploads_that_no_version_names_are_swept(tmp_path: Path) -> None:
    async with scene(tmp_path, engine=quick) as data:
        await data.upload("wdbc", CSV)
        left = await data.put(b"left behind")
        data.sweep._orphan_seconds = 0.0
        await data.sweep.sweep()
        kept = {digest async for digest, _ in data.store.list()}
        assert left.digest not in kept
        assert {split.file.digest for split in (await data.get("wdbc", 1)).splits} < kept


async def test_killed_workers_make_exactly_one_version(tmp_path: Path) -> None:
    """Worker processes are killed at random moments of an ingest and a transform, until both are made."""
    store = LocalArtifactStore(tmp_path / "store" / "datasets")
    url = f"sqlite+aiosqlite:///{tmp_path}/data.db"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "LEPTON_DATA_EVENTS__URL": f"sqlite://{tmp_path}/events.db",
        "LEPTON_DATA_STORAGE__URL": f"file://{tmp_path}/store",
        "LEPTON_DATA_IDENTITY__PRIVATE_KEY": PRIVATE,
        "LEPTON_DATA_WORK_DIR": str(tmp_path / "work"),
        "LEPTON_DATA_LEASE_SECONDS": "0.5",
    }
    content = b"a,b\n" + b"".join(b"%d,%d\n" % (number, number % 7) for number in range(200_000))
    chance = random.Random(7)

    async with scene(tmp_path, url=url, store=store, works=False) as data:
        environment |= database_environment("LEPTON_DATA_", data.database.settings)

        async def token(number: int) -> int:
            async with data.database.read() as session:
                version = await session.get(Version, ("acme", "wdbc", number))
            return version.lease_token if version else 0

        async def worked(number: int, *, killed: bool) -> None:
            """A worker that is killed a moment after it has claimed the version, or that may end its work."""
            before = await token(number)
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.data.main", "worker", env=environment)
            try:
                if killed:
                    await until(lambda: _claimed(token, number, before))
                    await asyncio.sleep(chance.uniform(0, 0.8))
                else:
                    await data.settled("wdbc", number)
                    # A killed one may have made it, and told nobody.
                    await until(lambda: _told(data))
            finally:
                os.kill(process.pid, signal.SIGKILL if killed else signal.SIGTERM)
                await process.wait()

        for number in (1, 2):
            if number == 1:
                await data.upload("wdbc", content, wait=0)
            else:
                with acting_for("acme"):
                    step = d.TransformStep(split=d.SplitRows(test=0.2, seed=1))
                    await data.client.CreateTransform(pb.CreateTransformRequest(name="wdbc", steps=[step]))
            for _ in range(3):
                if (await data.get("wdbc", number)).state == d.VERSION_STATE_PROCESSING:
                    await worked(number, killed=True)
                    # Being killed on purpose is no sign of a file that kills.
                    await change(data, attempts=0)
            await worked(number, killed=False)
            assert (await data.get("wdbc", number)).state == d.VERSION_STATE_READY
            assert await data.count(File) == {1: 2, 2: 4}[number]

    log = SqliteEventLog(f"{tmp_path}/events.db", retention_seconds=3600)
    await log.start()
    subscription = log.subscribe("test", ["lepton.data.dataset.v1"])
    # Whoever carried it and was killed before that was noted has it carried again, under the same id.
    received = list({one.event.id: one.event.message() for one in await subscription.poll(10, 1)}.values())
    await log.stop()
    assert [(type(event), event.version.number) for event in received] == [(DatasetVersionReady, 1), (DatasetVersionReady, 2)]
    assert not list((tmp_path / "work").glob("maker-*/*-*"))


async def _told(data: Scene) -> bool:
    return not await data.events()


async def _claimed(token: Any, number: int, before: int) -> bool:
    return await token(number) > before
