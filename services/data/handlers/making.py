"""How a request becomes a version: what is checked before, the quota that is taken, and the wait for the outcome.

Awaits the network and child processes, therefore outside of units; every step is found again by its row.
"""

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from lepton.accounts.v1.accounts_service_pb2 import ReleaseQuotaRequest, ReserveQuotaRequest
from libs.db import Database, new_id
from libs.errors import AppError, Invalid, NotFound, Transient, Violation
from libs.rpc import Client
from libs.storage import ArtifactStore
from libs.telemetry import inject
from services.data import repository
from services.data.desk import Desk
from services.data.domain.states import State
from services.data.engine import process
from services.data.engine.limits import MIB, Limits
from services.data.handlers import datasets, versions
from services.data.handlers.versions import Key
from services.data.tables import Version

log = structlog.get_logger()

METRIC = "storage_bytes"
FIRST_LOOK_SECONDS = 0.02
LAST_LOOK_SECONDS = 0.1
# A caller that does not ask for its outcome by then is gone.
LATE_SECONDS = 30.0
# Less time than a caller waits for an answer: what takes longer is refused for that, and is no failure of ours to be tried again.
CHECK_LIMITS = {"memory_bytes": 256 * MIB, "cpu_seconds": 8, "wall_seconds": 8.0, "file_bytes": 64 * MIB, "threads": 1}


class Bench:
    """A component that runs short jobs of the engine for requests: checks and previews, some at once."""

    def __init__(self, work_dir: Path, store: ArtifactStore, limits: Limits, at_once: int) -> None:
        self._desk, self._store = Desk(work_dir, new_id("bench")), store
        self._limits = Limits(**{**limits.to_json(), **CHECK_LIMITS})
        self._slots = asyncio.Semaphore(at_once)

    async def start(self) -> None:
        await asyncio.to_thread(self._desk.open)

    async def stop(self) -> None:
        await asyncio.to_thread(self._desk.close)

    async def check(self, columns: list[dict[str, Any]], steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The columns after the steps; raises Invalid for the first step that is wrong."""
        return list((await self._run("check", {"columns": columns, "steps": steps}))["columns"])

    async def preview(self, digest: str, rows: int) -> list[dict[str, Any]]:
        """The first rows of a split."""
        return list((await self._run("preview", {"rows": rows}, digest))["rows"])

    async def _run(self, kind: str, job: Mapping[str, Any], digest: str = "") -> dict[str, Any]:
        async with self._slots:
            folder = self._desk.folder(kind)
            try:
                if digest:
                    source = folder / "split.parquet"
                    await self._store.fetch(digest, source)
                    job = {**job, "path": str(source)}
                return await process.run(kind, job, folder, self._limits)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, True)


async def size_of_upload(store: ArtifactStore, digest: str) -> int:
    """Raises Invalid where the store has no such bytes."""
    try:
        return await store.stat(digest)
    except NotFound:
        message = "there are no such bytes in the artifact store; upload them first"
        raise Invalid.of([Violation("content.digest", message)]) from None


async def reserve(accounts: Client, database: Database, version: Version) -> None:
    """Takes the quota for what the version is made of, or removes it again and raises what accounts says."""
    async with database.read() as session:
        amount = sum(file.size for file in await repository.files(session, [version]))
    request = ReserveQuotaRequest(workspace=version.workspace, metric=METRIC, reservation=version.reservation, amount=amount)
    try:
        await accounts.ReserveQuota(request)
    except AppError:
        await withdraw(accounts, database, Key.of(version), quietly=True)
        raise


async def withdraw(accounts: Client, database: Database, key: Key, *, quietly: bool = False) -> None:
    """Gives the quota back, then removes a version that nobody may see. In this order: while the row is there, nobody gets its number.

    `quietly`: where accounts is away, the reconciler does it later.
    """
    name = f"datasets/{key.workspace}/{key.dataset}@{key.number}"
    try:
        await accounts.ReleaseQuota(ReleaseQuotaRequest(workspace=key.workspace, reservation=name))
        async with database.unit() as unit:
            await versions.withdraw_version(unit, key, time.time())
    except Transient as error:
        if not quietly:
            raise
        log.warning("withdrawal_put_off", dataset=key.dataset, number=key.number, error=str(error))


async def outcome(database: Database, key: Key, until: float) -> Version | None:
    """The version once it is made or refused, or as it stands at `until` (time.time()); None where it is gone."""
    pause = FIRST_LOOK_SECONDS
    while True:
        async with database.read() as session:
            version = await repository.find_version(session, key.workspace, key.dataset, key.number)
        if version is None or datasets.is_heard(version):
            return version
        if (left := until - time.time()) <= 0:
            break
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.2, LAST_LOOK_SECONDS)
    async with database.unit() as unit:
        return await versions.stop_waiting(unit, key)


def is_refused(version: Version) -> bool:
    return version.state == State.REFUSED


def traceparent() -> str:
    """Of the current trace, for work that goes on later."""
    return inject().get("traceparent", "")
