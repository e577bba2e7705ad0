"""Puts a service together from its settings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from libs.db import Database, await_schema, migrate
from libs.events import Consumer, EventLog, Handler, Relay, open_event_log
from libs.lifecycle import Component, Lifecycle
from libs.rpc import Client, Server
from libs.rpc.server import DRAIN_SECONDS, Registration
from libs.service.settings import ServiceSettings


class Kit:
    """The parts of the service `name` in `package`: database, event log, signer and clients; `service` and `worker` assemble them.

    `event_log` is given where several services share one process.
    """

    def __init__(self, name: str, package: str, settings: ServiceSettings, event_log: EventLog | None = None) -> None:
        self.name, self.package, self.settings = name, package, settings
        self.database = Database(settings.database)
        self._owns_log = event_log is None
        self.event_log = event_log or open_event_log(settings.events)
        self.signer = settings.identity.signer(name)
        self._clients: list[Client] = []

    def client(self, stub: Callable[[Any], Any], peer: str) -> Client:
        """A client of the service `peer`, closed when this one stops."""
        client = Client(stub, getattr(self.settings.peers, peer), self.signer, tls=self.settings.tls)
        self._clients.append(client)
        return client

    def service(
        self,
        registrations: Sequence[Registration],
        handlers: Mapping[type[Message], Handler] | None = None,
        components: Sequence[Component] = (),
    ) -> Lifecycle:
        """All of it: database and schema, relay, consumer of `handlers`, `components` (reconcilers and the like), and last the server."""
        parts: list[Component] = [self._foundation(), Relay(self.database, self.event_log, name=self.name)]
        if handlers:
            parts.append(Consumer(self.name, self.database, self.event_log, handlers))
        server = Server(
            self.settings.listen,
            registrations,
            verifier=self.settings.identity.verifier(),
            tls=self.settings.tls,
            drain_seconds=max(DRAIN_SECONDS, self.settings.drain_seconds),
        )
        return Lifecycle([*parts, *components, server])

    def worker(self, components: Sequence[Component]) -> Lifecycle:
        """What a process beside the service has: the same database and outbox, no server."""
        return Lifecycle([self._foundation(), Relay(self.database, self.event_log, name=self.name), *components])

    def _foundation(self) -> Component:
        return Lifecycle([self.database, _Schema(self), *([self.event_log] if self._owns_log else []), _Clients(self._clients)])


class _Schema:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    async def start(self) -> None:
        bring = migrate if self._kit.settings.migrate_on_start else await_schema
        await bring(self._kit.database, self._kit.package)

    async def stop(self) -> None:
        return None


class _Clients:
    def __init__(self, clients: list[Client]) -> None:
        self._clients = clients

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
