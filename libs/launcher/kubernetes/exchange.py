"""Where couriers fetch the files of their launch and bring home what it writes. Trusts a courier no further than its own launch's folder.

Over TLS, in lines of JSON of at most 64 KiB, some with bytes after them:

    courier → exchange   {"id", "token", "instance", "purpose": "fetch" | "mirror" | "orders"}, answered by {} or {"refused": words}
    fetch                {"told", "size"} and bytes: what a pod of a group has to do
                         {"root", "path"} is a folder, with "size" a file and its bytes; {"end": true}
    mirror  courier →    {"do": "put", "path", "size"} and bytes
                         {"do": "append", "path", "offset", "size"} and bytes, answered by {"size"}: what there is, whatever the offset
                         {"do": "delete", "path"}
                         {"do": "done"}: it was the last round
    orders  exchange →   {} every 5 s, or {"stop": grace seconds}, or {"last": true}: the program has ended; each answered by {}
"""

import asyncio
import hmac
import json
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from libs.launcher.kubernetes.certificate import make_certificate
from libs.launcher.kubernetes.landing import INCOMING, Landing, Limits, Unwelcome

log = structlog.get_logger()

NAME = "lepton-exchange"
MAX_LINE = 1 << 16
CHUNK = 1 << 20
HELLO_SECONDS, IDLE_SECONDS = 10.0, 60.0
BEAT_SECONDS, CLOSE_SECONDS = 5.0, 1.0
MAX_CONNECTIONS, MAX_OF_ONE = 2000, 8


@dataclass(eq=False)
class Shipment:
    """One launch's traffic. `heard` is the time.monotonic() of the last sign of its courier; `changed` is called after each change.

    `told` are files that only the launch's own pod gets, where its Secret is shared with others.
    """

    id: str
    token: str = field(repr=False)
    roots: Sequence[Path]
    landing: Landing
    changed: Callable[[], None]
    told: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    instance: str = ""
    heard: float | None = None
    fetched: bool = False
    done: bool = False
    # Why it may not go on, in words for whoever's program it is.
    refusal: str = ""
    stop: float | None = None
    last: bool = False
    ordered: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    connections: set["asyncio.Task[None]"] = field(default_factory=set)

    def order_stop(self, grace: float) -> None:
        """Has the program ended, as soon as its courier hears."""
        self.stop = grace if self.stop is None else min(grace, self.stop)
        self.ordered.set()

    def order_last(self) -> None:
        """Has the courier carry home what is left; for pods that do not end when their program has."""
        self.last = True
        self.ordered.set()

    @property
    def orders(self) -> dict[str, Any]:
        """All that it has to hear once."""
        return ({} if self.stop is None else {"stop": self.stop}) | ({"last": True} if self.last else {})

    def refuse(self, words: str) -> None:
        self.refusal = self.refusal or words
        self.order_stop(0)
        self.changed()


class Exchange:
    """A component. `offer` a launch, then `withdraw` it: what its courier sends after that is refused."""

    def __init__(self, host: str, port: int, limits: Limits) -> None:
        self._host, self._port, self._limits = host, port, limits
        self._shipments: dict[str, Shipment] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.certificate = ""

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        context, self.certificate = await asyncio.to_thread(make_certificate, NAME)
        listening = _listen(self._host, self._port)
        self._server = await asyncio.start_server(
            self._connected, sock=listening, ssl=context, limit=MAX_LINE, ssl_handshake_timeout=HELLO_SECONDS
        )

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def offer(
        self, id: str, *, folder: Path | None, inputs: Sequence[Path], journals: Sequence[str], changed: Callable[[], None]
    ) -> Shipment:
        """The launch's files, for whoever has the token. Without a folder nothing comes back."""
        roots = [*([folder] if folder else []), *inputs]
        landing = Landing(folder or Path("/nonexistent"), journals, self._limits)
        shipment = self._shipments[id] = Shipment(id, secrets.token_urlsafe(32), roots, landing, changed)
        return shipment

    def hand_over(self, shipment: Shipment, *, group: str, token: str, instance: str) -> None:
        """Its courier is that instance of the group, and proves itself by the group's token."""
        self._shipments.pop(shipment.id, None)
        shipment.id, shipment.token, shipment.instance = f"{group}/{instance}", token, instance
        self._shipments[shipment.id] = shipment

    async def withdraw(self, shipment: Shipment) -> None:
        """Nothing is written into the launch's folder any more."""
        self._shipments.pop(shipment.id, None)
        for task in shipment.connections:
            task.cancel()
        await asyncio.gather(*shipment.connections, return_exceptions=True)
        await asyncio.to_thread(shipment.landing.clear)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        connection = _Connection(reader, writer)
        try:
            await self._serve(connection, task)
        except Unwelcome as unwelcome:
            await connection.refuse(str(unwelcome))
        except (OSError, TimeoutError, EOFError, ValueError, KeyError, TypeError, ssl.SSLError) as error:
            log.info("courier_hung_up", error=type(error).__name__)
        except asyncio.CancelledError:
            pass  # Its launch is withdrawn, or this process ends.
        except Exception:
            log.exception("courier_not_served")
        finally:
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await writer.wait_closed()
            self._connections.discard(task)

    async def _serve(self, connection: "_Connection", task: "asyncio.Task[None]") -> None:
        hello = await connection.read(HELLO_SECONDS)
        shipment = self._known(hello)
        if len(shipment.connections) >= MAX_OF_ONE:
            raise Unwelcome("it is connected too often")
        shipment.connections.add(task)
        try:
            await connection.write({})
            shipment.heard = time.monotonic()
            await {"fetch": _fetch, "mirror": _mirror, "orders": _give_orders}[hello["purpose"]](connection, shipment)
        finally:
            shipment.connections.discard(task)

    def _known(self, hello: dict[str, Any]) -> Shipment:
        """Raises Unwelcome for a token that is not of the launch, and for a second pod of one launch."""
        id, instance = str(hello["id"]), str(hello["instance"])[:100]
        shipment = self._shipments.get(id) or self._shipments.get(f"{id}/{instance}")
        if not hmac.compare_digest(str(hello["token"]).encode(), (shipment.token if shipment else secrets.token_urlsafe(32)).encode()):
            raise Unwelcome("its owner knows of no such launch")
        assert shipment
        shipment.instance = shipment.instance or instance
        if shipment.instance != instance:
            raise Unwelcome("another pod runs it")
        if shipment.refusal and hello["purpose"] == "mirror":
            # Its courier was in the middle of a file, and has not heard why it was hung up on.
            raise Unwelcome(shipment.refusal)
        return shipment


def _listen(host: str, port: int) -> socket.socket:
    """Without a host on every address, of both families where there are two."""
    if host or not socket.has_dualstack_ipv6():
        return socket.create_server((host, port))
    return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, seconds: float | None) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            line = await self._reader.readuntil(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("no object")
        return message

    async def write(self, message: dict[str, Any]) -> None:
        await self.send(json.dumps(message).encode() + b"\n")

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(IDLE_SECONDS):
            await self._writer.drain()

    async def take(self, size: int, use: Callable[[bytes], object]) -> None:
        """Gives the next `size` bytes to `use`, which may block."""
        while size:
            async with asyncio.timeout(IDLE_SECONDS):
                piece = await self._reader.read(min(size, CHUNK))
            if not piece:
                raise EOFError
            size -= len(piece)
            await asyncio.to_thread(use, piece)

    async def refuse(self, words: str) -> None:
        try:
            await self.write({"refused": words})
        except (OSError, TimeoutError):
            pass


async def _fetch(connection: _Connection, shipment: Shipment) -> None:
    for name, content in shipment.told.items():
        await connection.write({"told": name, "size": len(content)})
        await connection.send(content)
    for number, root in enumerate(shipment.roots):
        for path, size in await asyncio.to_thread(_tree, root):
            await connection.write({"root": number, "path": path} | ({} if size is None else {"size": size}))
            if size:
                await _send_file(connection, root / path, size)
            shipment.heard = time.monotonic()
    await connection.write({"end": True})
    shipment.fetched = True
    shipment.changed()


def _tree(root: Path) -> list[tuple[str, int | None]]:
    """Folders, and plain files with their sizes. No links: what they mean here they would not mean there."""
    found: list[tuple[str, int | None]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != INCOMING]
        relative = os.path.relpath(folder, root)
        found.append((relative, None))
        for name in files:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                found.append((os.path.normpath(os.path.join(relative, name)), path.stat().st_size))
    return found


async def _send_file(connection: _Connection, path: Path, size: int) -> None:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while size:
            piece = await asyncio.to_thread(file.read, min(size, CHUNK))
            if not piece:
                raise EOFError
            size -= len(piece)
            await connection.send(piece)
    finally:
        file.close()


async def _mirror(connection: _Connection, shipment: Shipment) -> None:
    acts: dict[str, Callable[[_Connection, Shipment, dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]]
    acts = {"put": _put, "append": _append, "delete": _delete, "done": _done}
    while True:
        message = await connection.read(None)
        shipment.heard = time.monotonic()
        try:
            # A courier that was killed may have left a connection whose last message is still being written.
            async with shipment.lock:
                answer = await acts[message["do"]](connection, shipment, message)
        except Unwelcome as unwelcome:
            shipment.refuse(str(unwelcome))
            raise
        await connection.write(answer)


async def _put(connection: _Connection, shipment: Shipment, message: dict[str, Any]) -> dict[str, Any]:
    path, size = str(message["path"]), _size(message["size"])
    shipment.landing.admit(path, size)
    incoming = shipment.landing.incoming(path)
    file = await asyncio.to_thread(incoming.__enter__)
    try:
        await connection.take(size, file.write)
    except BaseException as error:
        incoming.__exit__(type(error), error, None)
        raise
    await asyncio.to_thread(incoming.__exit__, None, None, None)
    return {}


async def _append(connection: _Connection, shipment: Shipment, message: dict[str, Any]) -> dict[str, Any]:
    path, offset, size = str(message["path"]), _size(message["offset"]), _size(message["size"])
    shipment.landing.admit(path, offset + size)
    journal = shipment.landing.journal(path)
    file = await asyncio.to_thread(journal.__enter__)
    try:
        have = os.fstat(file.fileno()).st_size
        await connection.take(size, file.write if have == offset else len)
    finally:
        journal.__exit__(None, None, None)
    return {"size": have + size if have == offset else have}


async def _delete(_: _Connection, shipment: Shipment, message: dict[str, Any]) -> dict[str, Any]:
    await asyncio.to_thread(shipment.landing.delete, str(message["path"]))
    return {}


async def _done(_: _Connection, shipment: Shipment, __: dict[str, Any]) -> dict[str, Any]:
    shipment.done = True
    shipment.changed()
    return {}


async def _give_orders(connection: _Connection, shipment: Shipment) -> None:
    told: dict[str, Any] = {}
    while True:
        shipment.ordered.clear()
        orders = shipment.orders
        await connection.write({key: value for key, value in orders.items() if told.get(key) != value})
        told = orders
        await connection.read(IDLE_SECONDS)
        shipment.heard = time.monotonic()
        if shipment.orders == told:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await shipment.ordered.wait()
            except TimeoutError:
                continue


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError("no size")
    return value
