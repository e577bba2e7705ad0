"""The one seam to the network: a request goes in, a response or a `TransportFailure` comes out. Only this file knows httpx.

Knows nothing of keys, retries or problem documents.
"""

import ipaddress
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

CHUNK = 1 << 20
_TAG = re.compile(r'(?:W/)?"(sha256:[0-9a-f]{64})"')
_FOR_ANYBODY = ("accept", "range", "user-agent")


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
    # Not at the platform: sent by a client of its own, which has neither cookies nor connections of others.
    elsewhere: bool = False


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
        """Follows to where the platform's files lie; the key stays here. What cannot be had there comes through the platform."""
        with ExitStack() as stack:
            first = stack.enter_context(self._open(request))
            response = first
            if _lies_elsewhere(request, first):
                found = self._elsewhere(stack, request, first)
                response = found if found is not None else stack.enter_context(self._open(_through(request)))
            yield Stream(response.status_code, _headers(response, first), lambda: _guarded(response.iter_bytes()))

    def _elsewhere(self, stack: ExitStack, request: Request, first: "httpx.Response") -> "httpx.Response | None":
        import httpx

        place = _elsewhere(request, first)
        if place is None:
            return None
        client = stack.enter_context(httpx.Client(transport=self._handler, **_options(place.url)))
        try:
            response = stack.enter_context(_sent(client, place))
        except TransportFailure:
            return None
        return response if response.status_code < 300 else None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    @contextmanager
    def _open(self, request: Request) -> "Iterator[httpx.Response]":
        import httpx

        if request.elsewhere:
            with httpx.Client(transport=self._handler, **_options(request.url)) as client, _sent(client, request) as response:
                yield response
            return
        if self._client is None:
            self._client = httpx.Client(transport=self._handler, **_options(self._base_url))
        with _sent(self._client, request) as response:
            yield response


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
        """As HttpxTransport.stream."""
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(self._open(request))
            response = first
            if _lies_elsewhere(request, first):
                found = await self._elsewhere(stack, request, first)
                response = found if found is not None else await stack.enter_async_context(self._open(_through(request)))
            yield AsyncStream(response.status_code, _headers(response, first), lambda: _guarded_async(response.aiter_bytes()))

    async def _elsewhere(self, stack: AsyncExitStack, request: Request, first: "httpx.Response") -> "httpx.Response | None":
        import httpx

        place = _elsewhere(request, first)
        if place is None:
            return None
        client = await stack.enter_async_context(httpx.AsyncClient(transport=self._handler, **_options(place.url)))
        try:
            response = await stack.enter_async_context(_sent_async(client, place))
        except TransportFailure:
            return None
        return response if response.status_code < 300 else None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    @asynccontextmanager
    async def _open(self, request: Request) -> "AsyncIterator[httpx.Response]":
        import httpx

        if request.elsewhere:
            own = httpx.AsyncClient(transport=self._handler, **_options(request.url))
            async with own as client, _sent_async(client, request) as response:
                yield response
            return
        if self._client is None:
            self._client = httpx.AsyncClient(transport=self._handler, **_options(self._base_url))
        async with _sent_async(self._client, request) as response:
            yield response


@contextmanager
def _sent(client: "httpx.Client", request: Request) -> "Iterator[httpx.Response]":
    import httpx

    body = request.body if isinstance(request.body, bytes) else _read(request.body)
    with _translated():
        timeout = httpx.Timeout(request.timeout, connect=10)
        built = client.build_request(request.method, request.url, headers=_with_length(request), content=body, timeout=timeout)
        response = client.send(built, stream=True)
    try:
        yield response
    finally:
        response.close()


@asynccontextmanager
async def _sent_async(client: "httpx.AsyncClient", request: Request) -> "AsyncIterator[httpx.Response]":
    import httpx

    body = request.body if isinstance(request.body, bytes) else _read_async(request.body)
    with _translated():
        timeout = httpx.Timeout(request.timeout, connect=10)
        built = client.build_request(request.method, request.url, headers=_with_length(request), content=body, timeout=timeout)
        response = await client.send(built, stream=True)
    try:
        yield response
    finally:
        await response.aclose()


def _lies_elsewhere(request: Request, response: "httpx.Response") -> bool:
    return response.status_code == 307 and request.method == "GET" and digest_of(response.headers.get("etag", "")) != ""


def _elsewhere(request: Request, response: "httpx.Response") -> Request | None:
    """The request for the file where it lies, without the key; None where that is no address, or TLS would be left."""
    place = response.headers.get("location", "")
    if not may_go(request.url, place):
        return None
    return Request("GET", place, {name: value for name, value in request.headers.items() if name in _FOR_ANYBODY}, timeout=request.timeout)


def may_go(url: str, place: str) -> bool:
    """Whether `place`, which the platform at `url` named, is an address; TLS is not left for one without."""
    schemes = ("https",) if url.startswith("https:") else ("https", "http")
    try:
        parts = urlsplit(place)
        return parts.scheme in schemes and bool(parts.hostname)
    except ValueError:
        return False


def _through(request: Request) -> Request:
    return replace(request, headers={**request.headers, "x-lepton-redirect": "no"})


def digest_of(tag: str) -> str:
    """ "sha256:…" of what an entity tag stands for; empty where it is none of the platform's."""
    found = _TAG.fullmatch(tag)
    return found[1] if found else ""


def _options(base_url: str) -> dict[str, Any]:
    """httpx follows no redirect: the key must not go to another host. Idle connections are dropped before servers drop them (5 s)."""
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


def _headers(response: "httpx.Response", first: "httpx.Response | None" = None) -> dict[str, str]:
    """`first` is the platform's answer, which knows trace and digest where the file came from elsewhere."""
    own = {} if first is None else {name: first.headers[name] for name in ("etag", "x-lepton-trace-id") if name in first.headers}
    return {name.lower(): value for name, value in response.headers.items()} | own


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
