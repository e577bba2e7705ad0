"""Predictions are reserved of a workspace's quota in blocks, so that no request needs a call of its own.

Accounts counts what is recorded; a block only bridges the moment until it has. So a block is given back some seconds after its last use.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from lepton.accounts.v1 import accounts_service_pb2
from libs.errors import QuotaExceeded, Transient
from libs.lifecycle import Loop
from libs.rpc import Call, Client, acting

METRIC = "predictions"
# By then what was used has reached accounts.
SETTLE_SECONDS = 10.0
# A slow answer of accounts is waited for so long; then, and while accounts cannot be reached, blocks are given on trust, for a time. What
# is used of them is recorded and billed as anything else.
PATIENCE_SECONDS = 0.5
TRUST_SECONDS = 300.0
_log = structlog.get_logger(__name__)


@dataclass
class _Block:
    """`reservation` is empty where it was given on trust."""

    reservation: str
    left: int
    used_at: float


@dataclass
class _Allowance:
    """What a workspace may still use: a block in use, and used ones that wait to be given back."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    block: _Block | None = None
    settling: list[_Block] = field(default_factory=list)


class PredictionQuota:
    """A lifecycle component. `instance` tells the reservations of gateways, and of their lives, apart."""

    def __init__(self, accounts: Client, instance: str, block: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts = accounts
        self._instance = instance
        self._size = block
        self._clock = clock
        self._count = 0
        self._away_since: float | None = None
        self._allowances: dict[str, _Allowance] = {}
        self._sweeper = Loop("prediction-quota", self.settle, interval=1.0)

    async def admit(self, workspace: str) -> None:
        """Before any work: raises QuotaExceeded, in the words of accounts, when not even one row is left."""
        allowance = self._allowances.setdefault(workspace, _Allowance())
        if allowance.block is not None and allowance.block.left > 0:
            return
        async with allowance.lock:
            if allowance.block is None or allowance.block.left <= 0:
                await self._renew(workspace, allowance, 1)

    async def take(self, workspace: str, rows: int) -> None:
        """Uses up `rows`; raises QuotaExceeded and takes nothing when not all of them are left."""
        allowance = self._allowances.setdefault(workspace, _Allowance())
        block = allowance.block
        if block is not None and block.left >= rows and not allowance.lock.locked():
            block.left -= rows
            block.used_at = self._clock()
            return
        async with allowance.lock:
            block = allowance.block
            if block is None or block.left < rows:
                missing = rows - (block.left if block else 0)
                await self._renew(workspace, allowance, missing)
                rows = missing
            assert allowance.block is not None
            allowance.block.left -= rows
            allowance.block.used_at = self._clock()

    async def settle(self) -> None:
        """Gives back blocks that have not been used for a while."""
        old = self._clock() - SETTLE_SECONDS
        for workspace, allowance in list(self._allowances.items()):
            if allowance.lock.locked():
                continue
            async with allowance.lock:
                if allowance.block is not None and allowance.block.used_at <= old:
                    allowance.settling.append(allowance.block)
                    allowance.block = None
                await self._give_back(workspace, allowance, lambda block: block.used_at <= old)
                if allowance.block is None and not allowance.settling:
                    self._allowances.pop(workspace, None)

    async def start(self) -> None:
        """Begins to give back."""
        await self._sweeper.start()

    async def stop(self) -> None:
        """Gives everything back."""
        await self._sweeper.stop()
        for workspace, allowance in self._allowances.items():
            if allowance.block is not None:
                allowance.settling.append(allowance.block)
            try:
                await self._give_back(workspace, allowance, lambda _block: True)
            except Transient:
                return
        self._allowances.clear()

    async def _renew(self, workspace: str, allowance: _Allowance, at_least: int) -> None:
        """A new block with at least so many; the present one, if any, has been counted on in full by the caller."""
        try:
            block = await self._reserve(workspace, at_least)
        except QuotaExceeded:
            if not allowance.settling:
                raise
            # What these bridged has mostly arrived; counted twice it would refuse what the plan allows.
            await self._give_back(workspace, allowance, lambda _block: True)
            block = await self._reserve(workspace, at_least)
        if allowance.block is not None:
            allowance.block.left, allowance.block.used_at = 0, self._clock()
            allowance.settling.append(allowance.block)
        allowance.block = block

    async def _reserve(self, workspace: str, at_least: int) -> _Block:
        self._count += 1
        reservation = f"gateway/{self._instance}/{self._count}"
        amount = max(self._size, at_least)
        request = accounts_service_pb2.ReserveQuotaRequest(
            workspace=workspace, metric=METRIC, reservation=reservation, amount=amount, at_least=at_least
        )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                with acting(Call()):
                    answer = await self._accounts.ReserveQuota(request)
        except (Transient, TimeoutError) as error:
            return self._trusted(amount, error)
        self._away_since = None
        return _Block(reservation, answer.granted, self._clock())

    def _trusted(self, amount: int, error: Exception) -> _Block:
        now = self._clock()
        if self._away_since is None:
            self._away_since = now
            _log.warning("quota_on_trust", error=str(error) or "accounts did not answer in time")
        if now - self._away_since > TRUST_SECONDS:
            raise Transient("how many predictions are left cannot be asked; try again in a moment") from error
        return _Block("", amount, now)

    async def _give_back(self, workspace: str, allowance: _Allowance, ready: Callable[[_Block], bool]) -> None:
        for block in [block for block in allowance.settling if ready(block)]:
            if not block.reservation:
                allowance.settling.remove(block)
                continue
            request = accounts_service_pb2.ReleaseQuotaRequest(workspace=workspace, reservation=block.reservation, metric=METRIC)
            try:
                # Predictions wait for the lock that is held meanwhile.
                async with asyncio.timeout(PATIENCE_SECONDS):
                    with acting(Call()):
                        await self._accounts.ReleaseQuota(request)
            except TimeoutError:
                raise Transient("accounts did not answer in time") from None
            allowance.settling.remove(block)
