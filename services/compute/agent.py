"""Speaks for one node: says what it has, and that it lives."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from lepton.compute.v1.compute_service_pb2 import RegisterNodeRequest
from libs.errors import Transient
from libs.lifecycle import Loop
from libs.rpc import Client
from services.compute import hardware
from services.compute.settings import Settings

log = structlog.get_logger()

# For so long a start waits for a compute service that is not there yet.
START_SECONDS, AGAIN_SECONDS = 60.0, 0.5


async def at_last(register: Callable[[], Awaitable[None]]) -> None:
    """The first registration: services of a platform start in any order."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return await register()
        except Transient as error:
            if time.monotonic() >= end:
                raise
            log.info("compute_awaited", error=str(error))
            await asyncio.sleep(AGAIN_SECONDS)


class NodeAgent:
    """A component; ready once the node is registered."""

    def __init__(self, compute: Client, settings: Settings) -> None:
        self._compute, self._settings = compute, settings
        self._request = RegisterNodeRequest()
        self._loop = Loop("node-agent", self._register, interval=settings.node_lease_seconds / 3)

    async def start(self) -> None:
        node = await asyncio.to_thread(hardware.detect, self._settings.node_name, self._settings.node_pool)
        self._request = RegisterNodeRequest(node=node)
        await at_last(self._register)
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    async def _register(self) -> None:
        await self._compute.RegisterNode(self._request)
