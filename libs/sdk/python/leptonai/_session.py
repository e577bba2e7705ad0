"""How a call is made: key, idempotency, retries, errors; once for threads, once for event loops. Knows no resource.

A `Call` is one request with how to read its answer. A `Flow` is a generator that yields calls, pauses and the like: written once, run
by both sessions.
"""

import json
import math
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from leptonai._errors import APIError, ConnectionFailed, InvalidInput, LeptonError, Timeout, Unauthenticated, error_from_problem
from leptonai._tabular import to_json
from leptonai._transport import (
    AsyncHttpxTransport,
    AsyncStream,
    AsyncTransport,
    Content,
    HttpxTransport,
    Request,
    Response,
    Stream,
    Transport,
    TransportFailure,
    may_go,
)

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_URL = "http://127.0.0.1:8080"
RETRIED = (429, 502, 503, 504)
LONGEST_WAIT = 30.0
TRACE_HEADER = "x-lepton-trace-id"
USER_AGENT = "leptonai-python"
_HEADER_SAFE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. `path` is made by `path()`; `body` goes as JSON (bytes: as they are); `read` makes the result of the answer."""

    method: str
    path: str
    read: Callable[[Any], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    content: Content | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Something long that asks nobody, with its result; not done on an event loop."""

    do: Callable[[], Any]


@dataclass(frozen=True)
class Put:
    """Bytes to an address that the platform named, without the key; the result says whether they are there."""

    url: str
    headers: Mapping[str, str]
    content: Content | bytes
    timeout: float


Wanted = Call[Any] | Pause | Work | Put
Flow = Generator[Wanted, Any, T]


def path(*segments: str | int) -> str:
    """The path under /v1 with every segment quoted, so that no name can lead elsewhere."""
    for segment in segments:
        if segment in ("", ".", "..") or not isinstance(segment, str | int):
            raise InvalidInput(f"{segment!r} is not a name", "names are lower-case letters, digits and dashes, beginning with a letter")
    try:
        return "/v1/" + "/".join(quote(str(segment), safe="@") for segment in segments)
    except UnicodeEncodeError:
        raise InvalidInput(f"{segments!r} holds a character that cannot be sent") from None


def as_given(answer: Any) -> Any:
    """Reads an answer as it is."""
    return answer


class Settings:
    """Address, key and patience of a client; turns calls into requests and answers into results."""

    def __init__(self, api_key: str | None, base_url: str, timeout: float, retries: int) -> None:
        if not api_key:
            advice = 'pass one, la.Client("your_api_key"), or set LEPTON_API_KEY; `lepton up` prints a first one'
            raise Unauthenticated(f"there is no API key: {advice}", status=401, code="unauthenticated")
        if not isinstance(api_key, str) or not _HEADER_SAFE.fullmatch(api_key):
            raise InvalidInput("the API key holds a space, a line end or another character that keys never have", "copy it again")
        self.api_key = api_key
        self.base_url = _checked_url(base_url)
        self.timeout = timeout
        self.retries = retries
        self.last_trace_id = ""

    def request(self, call: Call[Any]) -> Request:
        """With key and, where asking twice could do it twice, an idempotency key that stays the same over retries."""
        url = self.base_url + call.path
        query = [(key, _as_query(value)) for key, value in call.query.items() if value not in (None, "")]
        headers = {"authorization": f"Bearer {self.api_key}", "accept": "application/json", "user-agent": USER_AGENT}
        if call.method == "POST" or call.content is not None:
            headers["idempotency-key"] = uuid.uuid4().hex
        body: bytes | Content = b""
        if call.content is not None:
            body = call.content
            headers["content-type"] = "application/octet-stream"
        elif call.body is not None:
            body = call.body if isinstance(call.body, bytes) else to_json(call.body)
            headers["content-type"] = "application/json"
        timeout = self.timeout if call.timeout is None else call.timeout
        return Request(call.method, url + ("?" + urlencode(query) if query else ""), {**headers, **call.headers}, body, timeout)

    def put(self, put: Put) -> Request | None:
        """None where the address is none that may be gone to."""
        if not may_go(self.base_url, put.url):
            return None
        return Request("PUT", put.url, {"user-agent": USER_AGENT, **put.headers}, put.content, put.timeout, elsewhere=True)

    def retry_after(self, request: Request, tries: int, outcome: Response | TransportFailure) -> float | None:
        """Seconds to wait before the same request goes out again; None where it must not, or not any more."""
        if tries >= self.retries or not _is_safe(request, outcome):
            return None
        asked = _asked_wait(outcome)
        if asked is not None:
            return asked if asked <= LONGEST_WAIT else None
        return random.uniform(0.5, 1.0) * min(0.2 * 2.0**tries, 5.0)

    def finish(self, call: Call[T], request: Request, outcome: Response | TransportFailure) -> T:
        """The call's result; raises LeptonError."""
        response = self.checked(request, outcome)
        if not response.body:
            return call.read({})
        try:
            answer = json.loads(response.body)
        except ValueError:
            raise self._stranger(response) from None
        return call.read(answer)

    def checked(self, request: Request, outcome: Response | TransportFailure) -> Response:
        """The response where it is a good one; raises LeptonError."""
        if isinstance(outcome, TransportFailure):
            raise self.failure(request, outcome)
        self.last_trace_id = outcome.headers.get(TRACE_HEADER, "")
        if outcome.status < 300:
            return outcome
        raise self._refusal(outcome)

    def failure(self, request: Request, failure: TransportFailure) -> LeptonError:
        """What to tell of a request that got no response."""
        if failure.kind == "timeout":
            what = f"{request.method} {urlsplit(request.url).path}"
            return Timeout(f"no answer within {request.timeout:g} s to {what} at {self.base_url}; give the client a longer timeout=")
        if failure.kind == "invalid":
            return InvalidInput(f"the request cannot be sent: {failure.reason}")
        return ConnectionFailed(self.base_url, failure.reason)

    def _refusal(self, response: Response) -> LeptonError:
        trace_id = response.headers.get(TRACE_HEADER, "")
        if response.status < 400:
            place = response.headers.get("location", "another address")
            return ConnectionFailed(self.base_url, f"it redirects to {place}", "give that address as base_url")
        try:
            problem = json.loads(response.body)
        except ValueError:
            problem = None
        if not isinstance(problem, Mapping):
            excerpt = " ".join(response.body[:200].decode("utf-8", "replace").split())
            problem = {"retryable": response.status in RETRIED}
            fallback = f"{self.base_url} answered {response.status}, not in Lepton's form: {excerpt or 'without a word'}"
            return error_from_problem(response.status, problem, trace_id=trace_id, fallback=fallback)
        return error_from_problem(response.status, problem, trace_id=trace_id)

    def _stranger(self, response: Response) -> LeptonError:
        kind = response.headers.get("content-type", "something else")
        return ConnectionFailed(self.base_url, f"it answered {kind} instead of JSON", "is this Lepton's address? set LEPTON_URL")


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        usable = usable and not (parts.query or parts.fragment or parts.username)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInput(f"base_url {url!r} is not an address", f"it looks like {DEFAULT_URL}")
    return url.rstrip("/").removesuffix("/v1")


def _as_query(value: Any) -> str:
    return "true" if value is True else "false" if value is False else str(value)


def _is_safe(request: Request, outcome: Response | TransportFailure) -> bool:
    """Whether sending it again can neither do it twice nor hide what happened."""
    repeatable = request.method == "GET" or "idempotency-key" in request.headers
    if isinstance(outcome, TransportFailure):
        return outcome.kind == "connect" or (outcome.kind == "broken" and repeatable)
    if outcome.status == 429:
        return True
    if outcome.status == 409:
        return repeatable and b'"in_progress"' in outcome.body
    return outcome.status in RETRIED and repeatable


def _is_there(outcome: Response | TransportFailure) -> bool:
    return isinstance(outcome, Response) and outcome.status < 300


def _asked_wait(outcome: Response | TransportFailure) -> float | None:
    value = outcome.headers.get("retry-after", "") if isinstance(outcome, Response) else ""
    try:
        seconds = float(value)
    except ValueError:
        return None
    return None if math.isnan(seconds) else max(seconds, 0.0)


class Session:
    """Runs calls and flows in the calling thread."""

    def __init__(self, settings: Settings, transport: Transport | None = None) -> None:
        self.settings = settings
        self.transport: Transport = transport or HttpxTransport(settings.base_url)

    def run(self, call: Call[T]) -> T:
        """Sends a call, again where that is safe; raises LeptonError."""
        request = self.settings.request(call)
        tries = 0
        while True:
            outcome = self._try(request)
            delay = self.settings.retry_after(request, tries, outcome)
            if delay is None:
                return self.settings.finish(call, request, outcome)
            time.sleep(delay)
            tries += 1

    def flow(self, flow: Flow[T]) -> T:
        """Runs a flow to its result; errors of its calls are raised inside it first."""
        step = _Step(flow)
        while not step.done:
            if isinstance(step.wanted, Pause):
                time.sleep(step.wanted.seconds)
                step.answer(None)
                continue
            if isinstance(step.wanted, Work):
                step.answer(step.wanted.do())
                continue
            if isinstance(step.wanted, Put):
                away = self.settings.put(step.wanted)
                step.answer(away is not None and _is_there(self._try(away)))
                continue
            try:
                answer = self.run(step.wanted)
            except LeptonError as error:
                step.fail(error)
            else:
                step.answer(answer)
        return step.result

    @contextmanager
    def stream(self, call: Call[Any]) -> Iterator[Stream]:
        """Opens a long answer; raises LeptonError. While it is read, TransportFailure says that it broke."""
        request = self.settings.request(call)
        tries = 0
        while True:
            failed: Response | TransportFailure
            opened = False
            try:
                with self.transport.stream(request) as stream:
                    if stream.status < 300:
                        self.settings.checked(request, Response(stream.status, stream.headers))
                        opened = True
                        yield stream
                        return
                    failed = Response(stream.status, stream.headers, b"".join(stream.chunks()))
            except TransportFailure as failure:
                if opened:
                    raise
                failed = failure
            delay = self.settings.retry_after(request, tries, failed)
            if delay is None:
                self.settings.checked(request, failed)
                raise AssertionError("a failed response was let through")
            time.sleep(delay)
            tries += 1

    def _try(self, request: Request) -> Response | TransportFailure:
        try:
            return self.transport.send(request)
        except TransportFailure as failure:
            return failure


class AsyncSession:
    """As Session, for an event loop."""

    def __init__(self, settings: Settings, transport: AsyncTransport | None = None) -> None:
        self.settings = settings
        self.transport: AsyncTransport = transport or AsyncHttpxTransport(settings.base_url)

    async def run(self, call: Call[T]) -> T:
        """As Session.run."""
        import asyncio  # 40 ms that `lepton` does not need

        request = self.settings.request(call)
        tries = 0
        while True:
            outcome = await self._try(request)
            delay = self.settings.retry_after(request, tries, outcome)
            if delay is None:
                return self.settings.finish(call, request, outcome)
            await asyncio.sleep(delay)
            tries += 1

    async def flow(self, flow: Flow[T]) -> T:
        """As Session.flow."""
        import asyncio

        step = _Step(flow)
        while not step.done:
            if isinstance(step.wanted, Pause):
                await asyncio.sleep(step.wanted.seconds)
                step.answer(None)
                continue
            if isinstance(step.wanted, Work):
                step.answer(await asyncio.to_thread(step.wanted.do))
                continue
            if isinstance(step.wanted, Put):
                away = self.settings.put(step.wanted)
                step.answer(away is not None and _is_there(await self._try(away)))
                continue
            try:
                answer = await self.run(step.wanted)
            except LeptonError as error:
                step.fail(error)
            else:
                step.answer(answer)
        return step.result

    @asynccontextmanager
    async def stream(self, call: Call[Any]) -> AsyncIterator[AsyncStream]:
        """As Session.stream."""
        import asyncio

        request = self.settings.request(call)
        tries = 0
        while True:
            failed: Response | TransportFailure
            opened = False
            try:
                async with self.transport.stream(request) as stream:
                    if stream.status < 300:
                        self.settings.checked(request, Response(stream.status, stream.headers))
                        opened = True
                        yield stream
                        return
                    failed = Response(stream.status, stream.headers, b"".join([chunk async for chunk in stream.chunks()]))
            except TransportFailure as failure:
                if opened:
                    raise
                failed = failure
            delay = self.settings.retry_after(request, tries, failed)
            if delay is None:
                self.settings.checked(request, failed)
                raise AssertionError("a failed response was let through")
            await asyncio.sleep(delay)
            tries += 1

    async def _try(self, request: Request) -> Response | TransportFailure:
        try:
            return await self.transport.send(request)
        except TransportFailure as failure:
            return failure


class _Step(Generic[T]):
    """Where a flow stands: what it wants next, or its result."""

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self.done = False
        self.wanted: Wanted = Pause(0)
        self.result: T
        self._go(lambda: next(flow))

    def answer(self, value: Any) -> None:
        self._go(lambda: self._flow.send(value))

    def fail(self, error: LeptonError) -> None:
        self._go(lambda: self._flow.throw(error))

    def _go(self, advance: Callable[[], Wanted]) -> None:
        try:
            self.wanted = advance()
        except StopIteration as stop:
            self.done = True
            self.result = stop.value


class Pages(Generic[R]):
    """A list that is fetched page by page as it is read: iterate, index, or `list(...)` it. Shown, it fetches the first page only.

    Each iteration asks again for pages that are not yet known; those that are stay as they were.
    """

    def __init__(self, session: Session, page: Callable[[str], Call[tuple[list[R], str]]]) -> None:
        self._session = session
        self._page = page
        self._items: list[R] = []
        self._token: str | None = ""

    def __iter__(self) -> Iterator[R]:
        at = 0
        while at < len(self._items) or self._fetch():
            if at < len(self._items):
                yield self._items[at]
                at += 1

    def __getitem__(self, index: int) -> R:
        while (index < 0 or index >= len(self._items)) and self._fetch():
            pass
        return self._items[index]

    def __len__(self) -> int:
        while self._fetch():
            pass
        return len(self._items)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def first(self, count: int) -> list[R]:
        """At most `count` of them, fetching no further."""
        while len(self._items) < count and self._fetch():
            pass
        return self._items[:count]

    def _fetch(self) -> bool:
        if self._token is None:
            return False
        items, token = self._session.run(self._page(self._token))
        self._items += items
        self._token = token if token and token != self._token else None
        return True

    def __repr__(self) -> str:
        more = ", …" if self._shown() and self._token is not None else ""
        return f"[{', '.join(map(repr, self._items))}{more}]"

    def _repr_html_(self) -> str:
        from leptonai._record import records_html

        return records_html(self._shown(), more=self._token is not None)

    def __rich__(self) -> Any:
        from leptonai._record import records_table

        return records_table(self._shown())

    def _shown(self) -> list[Any]:
        if not self._items:
            self._fetch()
        return list(self._items)


class AsyncPages(Generic[R]):
    """As Pages: `async for` over it, or `await pages.all()`."""

    def __init__(self, session: AsyncSession, page: Callable[[str], Call[tuple[list[R], str]]]) -> None:
        self._session = session
        self._page = page

    async def __aiter__(self) -> AsyncIterator[R]:
        token = ""
        while True:
            items, following = await self._session.run(self._page(token))
            for item in items:
                yield item
            if not following or following == token:
                return
            token = following

    async def all(self) -> list[R]:
        """Every item."""
        return [item async for item in self]


def page_of(segments: tuple[str | int, ...], key: str, kind: Any, **query: Any) -> Callable[[str], Call[tuple[list[Any], str]]]:
    """Page after page of a List RPC: `key` is the answer's list, `kind` the record class of its items."""

    def read(answer: Any) -> tuple[list[Any], str]:
        items = answer.get(key) if isinstance(answer, Mapping) else None
        token = answer.get("next_page_token") if isinstance(answer, Mapping) else ""
        return [kind.from_json(item) for item in items or []], token or ""

    return lambda token: Call("GET", path(*segments), read, query={**query, "page_token": token})


def until(look: Callable[[], Call[T]], good: Callable[[T], bool], timeout: float | None, what: str) -> Flow[T]:
    """Asks again, after 0.05 s at first and 1 s at last, until `good`. Raises Timeout after `timeout` seconds."""
    started = time.monotonic()
    delay = 0.05
    while True:
        found: T = yield look()
        if good(found):
            return found
        if timeout is not None and time.monotonic() - started + delay > timeout:
            raise Timeout(f"{what} within {timeout:g} s; it goes on on the platform, so looking again later is fine")
        yield Pause(delay)
        delay = min(delay * 1.2, 1.0)


def is_gone(error: APIError) -> bool:
    """The thing does not exist."""
    return error.status == 404
