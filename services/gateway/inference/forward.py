"""Everything that is no inference, to the control plane and back, as it is: bytes stream through, both ways."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import structlog
from multidict import CIMultiDict
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from yarl import URL

from libs.errors import Transient
from services.gateway.problems import Problems
from services.gateway.tracing import Tracing

# Of one connection alone (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_log = structlog.get_logger(__name__)
_CONNECT_SECONDS, _PATIENCE_SECONDS = 2.0, 5.0


class Forward:
    """An ASGI application and a lifecycle component. `url` is the control plane's: "http://gateway:8081" or "unix:/run/control"."""

    def __init__(self, url: str, problems: Problems) -> None:
        self._url = url
        self._away = Tracing(_refuse, problems)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Connects when it is used."""
        path = self._url.removeprefix("unix:")
        unix = path != self._url
        # A connection each: a kept one may be closed from the other side just when a request that must not be repeated is sent.
        connector: aiohttp.BaseConnector
        if unix:
            connector = aiohttp.UnixConnector(path, limit=0, force_close=True)
        else:
            connector = aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=1)
        self._base = "http://control" if unix else self._url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
        )

    async def stop(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async with await self._ask(scope, receive) as response:
                headers = [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in _HOP_BY_HOP]
                await send({"type": "http.response.start", "status": response.status, "headers": headers})
                begun = True
                async for part in response.content.iter_any():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except (aiohttp.ClientError, OSError) as error:
            if begun:
                # Breaking it off is the only way left to say so.
                raise
            _log.warning("control_plane_away", error=str(error))
            await self._away(scope, receive, send)
        except ClientDisconnect:
            return

    async def _ask(self, scope: Scope, receive: Receive) -> aiohttp.ClientResponse:
        """Waits a moment for a control plane that is between two of its processes; nothing has been sent by then."""
        assert self._session is not None
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return await self._session.request(
                    scope["method"], self._target(scope), headers=_headers(scope), data=_body(scope, receive), allow_redirects=False
                )
            except aiohttp.ClientConnectorError:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(0.1)

    def _target(self, scope: Scope) -> URL:
        query = scope["query_string"].decode("latin-1")
        return URL(self._base + scope["raw_path"].decode("latin-1") + (f"?{query}" if query else ""), encoded=True)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    raise Transient("the control plane cannot be reached; predictions go on, try again in a moment")


def _headers(scope: Scope) -> CIMultiDict[str]:
    return CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"] if name not in _HOP_BY_HOP)


def _body(scope: Scope, receive: Receive) -> AsyncIterator[bytes] | None:
    has_body = any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in scope["headers"])
    return _parts(receive) if has_body else None


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if body := message.get("body"):
            yield body
        if not message.get("more_body"):
            return
