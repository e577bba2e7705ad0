"""Speaks for one node: says what it has, and that it lives."""

import asyncio

from lepton.compute.v1.compute_service_pb2 import RegisterNodeRequest
from libs.lifecycle import Loop
from libs.rpc import Client
from services.compute import hardware
from services.compute.settings import Settings


class NodeAgent:
    """A component; ready once the node is registered."""

    def __init__(self, compute: Client, settings: Settings) -> None:
        self._compute, self._settings = compute, settings
        self._request = RegisterNodeRequest()
        self._loop = Loop("node-agent", self._register, interval=settings.node_lease_seconds / 3)

    async def start(self) -> None:
        node = await asyncio.to_thread(hardware.detect, self._settings.node_name, self._settings.node_pool)
        self._request = RegisterNodeRequest(node=node)
        await self._register()
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    async def _register(self) -> None:
        await self._compute.RegisterNode(self._request)
