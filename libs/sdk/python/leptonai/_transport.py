"""The one seam to the network: a request goes in, a response or a `TransportFailure` comes out. Only this file knows httpx.

Knows nothing of keys, retries or problem documents.
"""

import ipaddress
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

CHUNK = 1 << 20


@dataclass(frozen=True)
class Content:
    """A body that can be read again from its beginning, for retries. `size` in bytes."""

    open: Callable[[], BinaryIO]
    size: int


@dataclass(frozen=True)
class Request:
    """`url` is absolute; `timeout` are seconds without a byte, None waits for ever."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | Content = b""
    timeout: float | None = 60.0


@dataclass(frozen=True)
class Response:
    """Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class TransportFailure(Exception):
    """No response. `kind`: "connect" (nothing was sent), "broken" (it may have been done or not), "timeout", "invalid" (can't be sent)."""

    def __init__(self, kind: Literal["connect", "broken", "timeout", "invalid"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True)
class Stream:
    """A response whose body is read bit by bit."""

    status: int
    headers: Mapping[str, str]
    chunks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class AsyncStream:
    """As Stream."""

    status: int
    headers: Mapping[str, str]
    chunks: Callable[[], AsyncIterator[bytes]]


class Transport(Protocol):
    """What a `Client` sends through."""

    def send(self, request: Request) -> Response: ...
    def stream(self, request: Request) -> AbstractContextManager[Stream]: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """What an `AsyncClient` sends through."""

    async def send(self, request: Request) -> Response: ...
    def stream(self, request: Request) -> AbstractAsyncContextManager[AsyncStream]: ...
    async def close(self) -> None: ...


class HttpxTransport:
    """The real one. `handler` replaces the network in tests (`httpx.MockTransport`)."""

    def __init__(self, base_url: str, handler: "httpx.BaseTransport | None" = None) -> None:
        self._client: httpx.Client | None = None
        self._base_url = base_url
        self._handler = handler

    def send(self, request: Request) -> Response:
        with self._open(request) as response, _translated():
            return Response(response.status_code, _headers(response), response.read())

    @contextmanager
    def stream(self, request: Request) -> Iterator[Stream]:
        with self._open(request) as response:
            yield Stream(response.status_code, _headers(response), lambda: _guarded(response.iter_bytes()))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    @contextmanager
    def _open(self, request: Request) -> "Iterator[httpx.Response]":
        import httpx

        if self._client is None:
            self._client = httpx.Client(transport=self._handler, **_options(self._base_url))
        body = request.body if isinstance(request.body, bytes) else _read(request.body)
        with _translated():
            timeout = httpx.Timeout(request.timeout, connect=10)
            built = self._client.build_request(request.method, request.url, headers=_with_length(request), content=body, timeout=timeout)
            response = self._client.send(built, stream=True)
        try:
            yield response
        finally:
            response.close()


class AsyncHttpxTransport:
    """As HttpxTransport, for an event loop."""

    def __init__(self, base_url: str, handler: "httpx.AsyncBaseTransport | None" = None) -> None:
        self._client: httpx.AsyncClient | None = None
        self._base_url = base_url
        self._handler = handler

    async def send(self, request: Request) -> Response:
        async with self._open(request) as response:
            with _translated():
                return Response(response.status_code, _headers(response), await response.aread())

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncStream]:
        async with self._open(request) as response:
            yield AsyncStream(response.status_code, _headers(response), lambda: _guarded_async(response.aiter_bytes()))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    @asynccontextmanager
    async def _open(self, request: Request) -> "AsyncIterator[httpx.Response]":
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(transport=self._handler, **_options(self._base_url))
        body = request.body if isinstance(request.body, bytes) else _read_async(request.body)
        with _translated():
            timeout = httpx.Timeout(request.timeout, connect=10)
            built = self._client.build_request(request.method, request.url, headers=_with_length(request), content=body, timeout=timeout)
            response = await self._client.send(built, stream=True)
        try:
            yield response
        finally:
            await response.aclose()


def _options(base_url: str) -> dict[str, Any]:
    """Redirects are not followed: the key must not go to another host. Idle connections are dropped before servers drop them (5 s)."""
    import httpx

    return {
        "follow_redirects": False,
        "trust_env": not _is_local(base_url),  # a proxy cannot reach this machine's loopback
        "verify": base_url.startswith("https"),  # without TLS, reading certificates would only cost 50 ms
        "limits": httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3),
    }


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@contextmanager
def _translated() -> Iterator[None]:
    """httpx's exceptions as ours."""
    import httpx

    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise TransportFailure("connect", _reason(error)) from None
    except httpx.TimeoutException as error:
        raise TransportFailure("timeout", _reason(error)) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeEncodeError) as error:
        raise TransportFailure("invalid", _reason(error)) from None
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise TransportFailure("broken", _reason(error)) from None
    except RuntimeError as error:
        if "has been closed" not in str(error):
            raise
        raise TransportFailure("invalid", "this client was closed") from None


def _guarded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    with _translated():
        yield from chunks


async def _guarded_async(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    with _translated():
        async for chunk in chunks:
            yield chunk


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _headers(response: "httpx.Response") -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _with_length(request: Request) -> dict[str, str]:
    """A known length keeps httpx from sending a file in chunked encoding."""
    length = {} if isinstance(request.body, bytes) else {"content-length": str(request.body.size)}
    return {**request.headers, **length}


def _read(content: Content) -> Iterator[bytes]:
    with content.open() as file:
        while chunk := file.read(CHUNK):
            yield chunk


async def _read_async(content: Content) -> AsyncIterator[bytes]:
    with content.open() as file:
        while chunk := file.read(CHUNK):
            yield chunk
