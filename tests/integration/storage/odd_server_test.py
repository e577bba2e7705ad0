"""Servers that are full, lie, break off or are something else: what the adapter makes of it. Listings of any length go by the page."""

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from libs.errors import AppError, NotFound, Transient
from libs.storage import ArtifactStore, StorageSettings, Stored, digest_of, open_store
from libs.storage.s3_bucket import name_of

DATA = bytes(range(256)) * 16384
DIGEST = digest_of(DATA)
Answer = tuple[int, bytes, dict[str, str]]


def error(status: int, code: str) -> Answer:
    words = f"<Error><Code>{code}</Code><Message>the secret is b</Message></Error>"
    return status, words.encode(), {"content-type": "application/xml"}


class OddServer:
    """A bucket that is there and has no objects, until `answers` says otherwise. An answer may promise more than it sends."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], Answer]] = {}
        self.asked: list[str] = []
        odd = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def _serve(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                parts = urlsplit(self.path)
                odd.asked.append(f"{self.command} {self.path}")
                is_object = parts.path.count("/") > 1
                kind = f"{self.command} {'object' if is_object else 'bucket'}"
                status, body, headers = odd.answers.get(kind, odd.usual)(self)
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.send_header("connection", "close")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                self.close_connection = True

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.settings = StorageSettings(
            url=f"s3+http://127.0.0.1:{self._server.server_address[1]}", access_key="a", secret_key=SecretStr("b"), read_seconds=2
        )
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def usual(self, request: BaseHTTPRequestHandler) -> Answer:
        if request.command == "HEAD":
            return 200, b"", {}
        if "uploads=" in request.path:
            return 200, b"<ListMultipartUploadsResult><Bucket>n</Bucket></ListMultipartUploadsResult>", {"content-type": "application/xml"}
        if request.command == "GET" and "list-type" in request.path:
            return (
                200,
                b"<ListBucketResult><Name>n</Name><IsTruncated>false</IsTruncated></ListBucketResult>",
                {"content-type": "application/xml"},
            )
        return error(501, "NotImplemented")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def odd() -> Iterator[OddServer]:
    server = OddServer()
    yield server
    server.close()


@pytest.fixture
def store(odd: OddServer) -> ArtifactStore:
    return open_store(odd.settings, "tests")


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (error(507, "XMinioStorageFull"), "storage_full", "is full"),
        (error(400, "QuotaExceeded"), "storage_full", "is full"),
        (error(403, "RequestTimeTooSkewed"), "unavailable", "set the clocks"),
        (error(400, "AuthorizationHeaderMalformed"), "unavailable", "another region"),
        (error(503, "SlowDown"), "unavailable", "answered SlowDown"),
        (error(400, "SomethingNew"), "unavailable", "answered SomethingNew"),
        ((502, b"<html>the secret is b</html>", {"content-type": "text/html"}), "unavailable", "does not speak S3"),
        ((599, b"\xff\x00", {"content-type": "application/xml"}), "unavailable", "does not speak S3"),
    ],
)
async def test_refusals_in_words(odd: OddServer, store: ArtifactStore, answer: Answer, code: str, words: str) -> None:
    odd.answers["PUT object"] = lambda request: answer
    with pytest.raises(AppError, match=words) as refused:
        await store.put(stream(b"x"))
    assert refused.value.code == code
    assert "the secret" not in str(refused.value)


async def test_a_web_server_is_no_store(odd: OddServer, store: ArtifactStore) -> None:
    odd.answers["HEAD bucket"] = odd.answers["GET bucket"] = odd.answers["GET object"] = lambda request: (
        200,
        b"<html>welcome</html>",
        {"content-type": "text/html"},
    )
    with pytest.raises(AppError):
        assert [digest async for digest, _ in store.list()]
    with pytest.raises(AppError, match="is damaged"):
        assert [chunk async for chunk in store.open(DIGEST)]


async def test_an_answer_that_breaks_off_is_gone_on_with(odd: OddServer, store: ArtifactStore) -> None:
    asked = []

    def answer(request: BaseHTTPRequestHandler) -> Answer:
        found = request.headers.get("range", "")
        asked.append(found)
        first = int(found.removeprefix("bytes=").split("-")[0]) if found else 0
        headers = {"content-length": str(len(DATA) - first), "content-range": f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"}
        return 206 if found else 200, DATA[first : first + 1_500_000], headers

    odd.answers["GET object"] = answer
    assert b"".join([chunk async for chunk in store.open(DIGEST)]) == DATA
    assert asked == ["", *(f"bytes={start}-{len(DATA) - 1}" for start in (1 << 20, 2 << 20, 3 << 20))]


async def test_one_that_gives_no_byte_is_given_up(odd: OddServer, store: ArtifactStore, tmp_path: Path) -> None:
    headers = {"content-length": str(len(DATA)), "content-range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}
    odd.answers["GET object"] = lambda request: (206, b"", headers)
    with pytest.raises(Transient, match="broke the connection"):
        await store.fetch(DIGEST, tmp_path / "file")
    assert len([line for line in odd.asked if line.startswith(f"GET /lepton-tests/{name_of(DIGEST)}")]) == 3
    assert os.listdir(tmp_path) == []


async def test_a_range_that_was_not_asked_for_is_not_taken(odd: OddServer, store: ArtifactStore) -> None:
    odd.answers["GET object"] = lambda request: (200, DATA, {})
    with pytest.raises(Transient, match="another range"):
        assert [chunk async for chunk in store.open(DIGEST, offset=5, length=5)]
    odd.answers["GET object"] = lambda request: (206, DATA[:5], {"content-range": f"bytes 0-4/{len(DATA)}"})
    with pytest.raises(Transient, match="another range"):
        assert [chunk async for chunk in store.open(DIGEST, offset=5, length=5)]


async def test_an_upload_that_is_answered_200_and_fails(odd: OddServer, store: ArtifactStore) -> None:
    def post(request: BaseHTTPRequestHandler) -> Answer:
        query = parse_qs(urlsplit(request.path).query, keep_blank_values=True)
        if "uploads" in query:
            found = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            return 200, found, {"content-type": "application/xml"}
        return 200, error(200, "InternalError")[1], {"content-type": "application/xml"}

    odd.answers["POST object"] = post
    odd.answers["PUT object"] = lambda request: (200, b"", {"etag": '"e"'})
    odd.answers["HEAD object"] = lambda request: (404, b"", {})
    with pytest.raises(Transient, match="did not keep"):
        await store.put(stream(bytes(20 << 20)))


async def test_an_upload_that_is_done_and_whose_answer_is_lost(odd: OddServer, store: ArtifactStore) -> None:
    completed = []

    def post(request: BaseHTTPRequestHandler) -> Answer:
        if "uploads" in parse_qs(urlsplit(request.path).query, keep_blank_values=True):
            found = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            return 200, found, {"content-type": "application/xml"}
        completed.append(request.path)
        if len(completed) % 2:
            raise ConnectionError("the answer is lost")
        return error(404, "NoSuchUpload")

    def put(request: BaseHTTPRequestHandler) -> Answer:
        copied = b"<CopyPartResult><ETag>e</ETag><LastModified>2024-01-01T00:00:00.000Z</LastModified></CopyPartResult>"
        return 200, copied, {"etag": '"e"', "content-type": "application/xml"}

    odd.answers["POST object"], odd.answers["PUT object"] = post, put
    odd.answers["HEAD object"] = lambda request: (200, b"", {"content-length": str(20 << 20), "etag": '"e"'})
    odd.answers["DELETE object"] = lambda request: (204, b"", {})
    assert await store.put(stream(bytes(20 << 20))) == Stored(digest_of(bytes(20 << 20)), 20 << 20)
    assert len(completed) == 4, "that of the upload and that of the copy, each asked twice"


async def test_a_bucket_that_must_not_be_made(odd: OddServer, store: ArtifactStore) -> None:
    odd.answers["HEAD bucket"] = lambda request: (404, b"", {})
    odd.answers["PUT bucket"] = lambda request: error(403, "AccessDenied")
    with pytest.raises(Transient, match="has no bucket lepton-tests and refuses this key to make it; make it there"):
        await store.put(stream(b"x"))


async def test_what_has_no_age_is_not_discarded(odd: OddServer, store: ArtifactStore) -> None:
    odd.answers["HEAD object"] = lambda request: (200, b"", {"content-length": "0"})
    await store.discard(DIGEST, idle_seconds=1)
    assert not [line for line in odd.asked if line.startswith("DELETE")]
    odd.answers["HEAD object"] = lambda request: (404, b"", {})
    with pytest.raises(NotFound):
        await store.stat(DIGEST)


@pytest.mark.slow
async def test_a_hundred_thousand_objects_are_listed_by_the_page(odd: OddServer, store: ArtifactStore) -> None:
    pages = []

    def page(request: BaseHTTPRequestHandler) -> Answer:
        query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        if "list-type" not in query or query.get("prefix"):
            return odd.usual(request)
        number = int(query.get("continuation-token", 0))
        pages.append(number)
        keys = "".join(
            f"<Contents><Key>{item // 256 % 256:02x}/{item:062x}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            "<ETag>e</ETag><Size>1</Size><StorageClass>S</StorageClass></Contents>"
            for item in range(number * 1000, number * 1000 + 1000)
        )
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{number + 1}</NextContinuationToken>"
        tail = more if number < 99 else "<IsTruncated>false</IsTruncated>"
        return 200, f"<ListBucketResult><Name>n</Name>{tail}{keys}</ListBucketResult>".encode(), {"content-type": "application/xml"}

    odd.answers["GET bucket"] = page
    listing = store.list()
    await anext(listing)
    assert pages == [0], "the first is there before the second page is asked for"
    count = 1
    async for digest, idle in listing:
        count += 1
        assert idle > 1e6 and len(digest) == 71
        assert len(pages) == (count + 999) // 1000
    assert (count, len(pages)) == (100_000, 100)
