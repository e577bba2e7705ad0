"""Keys, retries, errors, lists, files: what every call has in common."""

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_platform import KEY, TRACE, FakePlatform, ok, problem

import leptonai as la
from leptonai._transport import HttpxTransport, Request


def test_key_and_address_come_from_the_environment(platform: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_API_KEY", KEY)
    monkeypatch.setenv("LEPTON_URL", platform.url + "/")
    client = la.Client()
    assert client.account.me().workspace == la.Workspace(name="acme", plan="trial", role="owner")
    assert KEY not in repr(client)


def test_no_key_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEPTON_API_KEY", raising=False)
    with pytest.raises(la.Unauthenticated, match="LEPTON_API_KEY"):
        la.Client()


@pytest.mark.parametrize("key", ["a\nb", "a b", "ké", "a\x00b"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(la.InvalidInput, match="key"):
        la.Client(key)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "http://x:99999", "http://x/?a=1", "http://[", 7])
def test_an_address_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(la.InvalidInput, match="base_url"):
        la.Client("k", url)


def test_unknown_fields_stay_in_raw_and_missing_ones_take_defaults(client: la.Client) -> None:
    me = client.account.me()
    assert me.raw["surprise"] == 7
    assert me.quotas[0].remaining == 2
    assert la.TrainingJob.from_json({"id": 5, "metrics": [], "progress": "x", "attempts": "many", "create_time": "?"}).attempts == 0
    assert la.Dataset.from_json(None) == la.Dataset()


def test_lists_fetch_page_after_page(client: la.Client, platform: FakePlatform) -> None:
    platform.datasets = {f"d{n}": [{}] for n in range(5)}
    pages = client.datasets.list()
    assert pages.first(1)[0].name == "d0"
    assert len(platform.requests) == 1
    assert [dataset.name for dataset in pages] == ["d0", "d1", "d2", "d3", "d4"]
    assert (pages[-1].name, len(pages), bool(pages)) == ("d4", 5, True)
    assert len(platform.requests) == 3


def test_an_empty_page_with_a_token_is_not_the_end(client: la.Client, platform: FakePlatform) -> None:
    page = {"datasets": [], "next_page_token": "x"}
    platform.script["GET /v1/datasets"] = [ok(page), ok({"datasets": [{"name": "d"}], "next_page_token": ""})]
    assert [dataset.name for dataset in client.datasets.list()] == ["d"]


def test_errors_repeat_what_the_platform_advises(client: la.Client) -> None:
    with pytest.raises(la.InvalidData) as caught:
        client.training_jobs.create(dataset="d", output_model="m", learning_rate=-1)
    error = caught.value
    assert (error.status, error.code, error.trace_id, error.retryable) == (422, "invalid_spec", TRACE, False)
    assert error.errors[0].suggestions == ("0.001",)
    assert str(error) == (
        "training.learning_rate: -1 is not a learning rate: use a number above 0\n"
        "  - training.learning_rate: -1 is not a learning rate: use a number above 0 (accepted: 0.001)\n"
        f"  trace {TRACE}"
    )


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", la.BadRequest),
        (401, "unauthenticated", la.Unauthenticated),
        (403, "forbidden", la.Forbidden),
        (403, "quota_exceeded", la.QuotaExceeded),
        (404, "not_found", la.NotFound),
        (409, "conflict", la.Conflict),
        (413, "too_large", la.InvalidData),
        (418, "teapot", la.APIError),
        (500, "internal", la.APIError),
        (507, "storage_full", la.Unavailable),
    ],
)
def test_each_status_has_its_exception(client: la.Client, platform: FakePlatform, status: int, code: str, kind: type) -> None:
    platform.script["GET /v1/me"] = [problem(status, code, "no", limit=5, used=5, plans=["pro"])]
    with pytest.raises(la.APIError) as caught:
        client.account.me()
    assert type(caught.value) is kind
    if isinstance(caught.value, la.QuotaExceeded):
        assert (caught.value.limit, caught.value.used, caught.value.plans) == (5, 5, ("pro",))


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"[1]", b"\xff\xfe", b'{"detail": 7, "errors": {"a": 1}, "code": []}'])
def test_an_error_in_no_known_form_is_still_an_error(client: la.Client, platform: FakePlatform, body: bytes) -> None:
    platform.script["GET /v1/me"] = [(500, body, {})]
    with pytest.raises(la.APIError) as caught:
        client.account.me()
    assert caught.value.status == 500
    assert str(caught.value)


def test_something_else_at_the_address_is_told(client: la.Client, platform: FakePlatform) -> None:
    platform.script["GET /v1/me"] = [(200, b"<html>", {"content-type": "text/html"}), (302, b"", {"location": "http://elsewhere"})]
    with pytest.raises(la.ConnectionFailed, match="text/html"):
        client.account.me()
    with pytest.raises(la.ConnectionFailed, match="elsewhere"):
        client.account.me()
    assert len(platform.requests) == 2  # the key did not follow


def test_nobody_there_says_the_address_and_the_command() -> None:
    with pytest.raises(la.ConnectionFailed, match=r"http://127\.0\.0\.1:9 .*lepton up"):
        la.Client("k", "http://127.0.0.1:9", retries=0).account.me()


def test_no_answer_in_time_is_a_timeout(platform: FakePlatform) -> None:
    import time

    platform.script["GET /v1/me"] = [lambda request: time.sleep(0.5) or ok({})]
    with pytest.raises(la.Timeout, match=r"0\.1 s"):
        la.Client(KEY, platform.url, timeout=0.1).account.me()


def test_safe_requests_are_sent_again_with_the_same_idempotency_key(client: la.Client, platform: FakePlatform) -> None:
    away = problem(503, "unavailable", "away", retryable=True, headers={"retry-after": "0"})
    platform.script["GET /v1/me"] = [None, away, problem(429, "rate_limited", "slow", headers={"retry-after": "0.01"})]
    assert client.account.me().role == "owner"
    platform.script["POST /v1/training-jobs"] = [None, away, problem(409, "in_progress", "busy", headers={"retry-after": "0"})]
    client.training_jobs.create(dataset="d", output_model="m")
    keys = {request["headers"]["idempotency-key"] for request in platform.asked("POST", "/v1/training-jobs")}
    assert (len(platform.asked("POST", "/v1/training-jobs")), len(keys)) == (4, 1)
    client.training_jobs.create(dataset="d", output_model="m")
    assert len({request["headers"]["idempotency-key"] for request in platform.asked("POST", "/v1/training-jobs")}) == 2


def test_an_upload_is_sent_again_from_its_beginning(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"x\n1\n")
    platform.script["PUT /v1/datasets/d/content"] = [None, problem(503, "unavailable", "away", headers={"retry-after": "0"})]
    assert client.datasets.upload("d", tmp_path / "d.csv").ref == "d@1"
    assert [request["body"] for request in platform.requests] == [b"x\n1\n"] * 3
    assert len({request["headers"]["idempotency-key"] for request in platform.requests}) == 1


def test_unsafe_requests_are_not_sent_again(client: la.Client, platform: FakePlatform) -> None:
    platform.script["DELETE /v1/datasets/d"] = [None]
    platform.script["PATCH /v1/datasets/d"] = [problem(503, "unavailable", "away")]
    with pytest.raises(la.ConnectionFailed):
        client.datasets.delete("d")
    with pytest.raises(la.Unavailable):
        client.datasets.update("d", description="x")
    assert len(platform.requests) == 2


def test_retries_are_bounded_also_by_what_the_platform_asks(platform: FakePlatform) -> None:
    away = problem(503, "unavailable", "away", headers={"retry-after": "0"})
    platform.script["GET /v1/me"] = [away] * 10
    with pytest.raises(la.Unavailable):
        la.Client(KEY, platform.url, retries=3).account.me()
    assert len(platform.requests) == 4
    platform.script["GET /v1/me"] = [problem(429, "rate_limited", "much later", headers={"retry-after": "3600"})]
    with pytest.raises(la.RateLimited):
        la.Client(KEY, platform.url).account.me()
    assert len(platform.requests) == 5


@pytest.mark.parametrize("name", ["", ".", "..", None, 7.5])
def test_a_name_cannot_lead_elsewhere(client: la.Client, platform: FakePlatform, name: Any) -> None:
    with pytest.raises(la.InvalidInput):
        client.datasets.get(name)
    assert not platform.requests


def test_names_are_quoted(client: la.Client, platform: FakePlatform) -> None:
    with pytest.raises(la.NotFound):
        client.datasets.get("../me?x#y\n")
    assert platform.requests[0]["path"] == "/v1/datasets/../me?x#y\n"
    with pytest.raises(la.InvalidInput):
        client.datasets.get("\ud800")


@pytest.mark.parametrize("ref", ["a@", "a@0", "a@-1", "a@x", "@1", "a@1@2", "a@٣", "a@99999999999"])
def test_a_version_is_a_name_and_a_number(client: la.Client, ref: str) -> None:
    with pytest.raises(la.InvalidInput, match="version"):
        client.datasets.version(ref)


def test_upload_of_bytes_a_path_a_frame_and_a_folder(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    (tmp_path / "a b.csv").write_text("x,y\n1,2\n")
    assert client.datasets.upload("d", b"x,y\n1,2\n").ref == "d@1"
    assert client.datasets.upload("d", tmp_path / "a b.csv").ref == "d@2"
    assert platform.requests[1]["query"]["filename"] == "a b.csv"
    assert client.datasets.upload("d", pandas.DataFrame({"x": [0.1, None], 2: ["a", "b"]})).rows == 2
    assert platform.tables["d@3"] == [{"x": 0.1, "2": "a"}, {"x": None, "2": "b"}]
    for label in ("cat", "dog"):
        (tmp_path / "p" / label).mkdir(parents=True)
        (tmp_path / "p" / label / "1.png").write_bytes(b"\x89PNG")
    platform.script["PUT /v1/datasets/p/content"] = [(201, {"dataset": "p", "number": 1, "state": "ready"}, {})] * 2
    client.datasets.upload("p", tmp_path / "p")
    client.datasets.upload("p", tmp_path / "p")
    first, second = (request["body"] for request in platform.asked("PUT", "/v1/datasets/p/content"))
    assert first == second
    import io
    import zipfile

    assert zipfile.ZipFile(io.BytesIO(first)).namelist() == ["cat/1.png", "dog/1.png"]


def test_a_model_of_one_s_own_is_packed_without_litter(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class Model: ...")
    for litter in (".git/config", "__pycache__/model.pyc", "part/__pycache__/x.pyc"):
        (tmp_path / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / litter).write_bytes(b"x")
    version = client.models.push("mine", tmp_path, signature={"inputs": [], "outputs": []})
    assert (version.ref, version.source) == ("mine@1", "uploaded")
    (sent,) = platform.asked("PUT", "/v1/models/mine/content")
    with zipfile.ZipFile(io.BytesIO(sent["body"])) as archive:
        assert archive.namelist() == ["model.py", "signature.json"]
    assert sent["headers"]["idempotency-key"]
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    assert client.models.push("mine", tmp_path / "net.onnx").number == 2
    with zipfile.ZipFile(io.BytesIO(platform.asked("PUT", "/v1/models/mine/content")[1]["body"])) as archive:
        assert archive.namelist() == ["model.onnx"]
    with pytest.raises(la.InvalidInput, match=r"model\.py"):
        client.models.push("mine", tmp_path / "part")


def test_an_onnx_file_goes_with_the_names_of_its_numbers(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    client.models.push("mine", tmp_path / "net.onnx", features=("x", "y"), classes=["no", "yes"])
    with zipfile.ZipFile(io.BytesIO(platform.asked("PUT", "/v1/models/mine/content")[0]["body"])) as archive:
        assert archive.namelist() == ["model.onnx", "names.json"]
        assert json.loads(archive.read("names.json")) == {"features": ["x", "y"], "classes": ["no", "yes"]}
    (tmp_path / "model.py").write_text("class Model: ...")
    with pytest.raises(la.InvalidInput, match="classes are of ONNX files"):
        client.models.push("mine", tmp_path, classes=["no", "yes"])
    with pytest.raises(la.InvalidInput, match="leave the signature out"):
        client.models.push("mine", tmp_path / "net.onnx", signature={"inputs": []})


def test_what_cannot_be_uploaded_is_said_before_anything_is_sent(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "loose.png").write_bytes(b"")
    for source in (tmp_path / "none.csv", tmp_path, 7, "a\0b"):
        with pytest.raises(la.InvalidInput):
            client.datasets.upload("d", source)
    with pytest.raises(la.InvalidInput, match="twice"):
        pandas = pytest.importorskip("pandas")
        client.datasets.upload("d", pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    assert not platform.requests


def test_a_file_that_cannot_be_read_names_the_line(client: la.Client) -> None:
    with pytest.raises(la.InvalidData, match="line 1"):
        client.datasets.upload("d", b"\xff\xfe\x00")


def test_upload_waits_for_a_version_that_is_still_processing(client: la.Client, platform: FakePlatform) -> None:
    version = {"dataset": "d", "number": 1, "state": "processing"}
    platform.script["PUT /v1/datasets/d/content"] = [(202, version, {}), (202, version, {}), (202, version, {})]
    failed = {**version, "state": "failed", "error": {"code": "invalid_data", "detail": "line 3 has 2 fields", "errors": []}}
    platform.script["GET /v1/datasets/d/versions/1"] = [ok(version), ok({**version, "state": "ready"}), ok(failed)]
    assert client.datasets.upload("d", b"x").state == "ready"
    with pytest.raises(la.InvalidData, match="line 3"):
        client.datasets.upload("d", b"x")
    assert client.datasets.upload("d", b"x", wait=0).state == "processing"


def test_transform_sends_steps(client: la.Client, platform: FakePlatform) -> None:
    client.datasets.upload("d", b"x\n1\n")
    steps = [la.steps.dedupe(), la.steps.impute("median"), la.steps.cast("x", "double", lenient=True), la.steps.split(test=0.2, seed=7)]
    version = client.datasets.transform("d@1", [*steps, {"rename": {"column": "x", "to": "y"}}])
    assert version.ref == "d@2"
    assert json.loads(platform.requests[-1]["body"]) == {
        "version": 1,
        "steps": [
            {"dedupe": {}},
            {"impute": {"strategy": "median"}},
            {"cast": {"column": "x", "type": "double", "lenient": True}},
            {"split": {"test": 0.2, "seed": 7}},
            {"rename": {"column": "x", "to": "y"}},
        ],
    }
    with pytest.raises(la.InvalidInput):
        client.datasets.transform("d", [])


def test_download_appears_whole_or_not_at_all(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    client.datasets.upload("d", b"x\n1\n")
    place = client.datasets.download("d", tmp_path)
    assert (place.name, place.stat().st_size) == ("d-1.parquet", 3_000_004)
    platform.script["GET /v1/datasets/d/versions/1/content"] = [(200, [b"PAR1", b"<break>"], {})]
    with pytest.raises(la.ConnectionFailed):
        client.datasets.download("d@1", tmp_path / "half.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["d-1.parquet"]


FILE = "GET /v1/datasets/d/versions/1/content"
DATA = b"PAR1" + bytes(1000)


class TestFilesThatLieElsewhere:
    @pytest.fixture
    def store(self) -> Iterator[FakePlatform]:
        fake = FakePlatform()
        yield fake
        fake.close()

    @pytest.fixture(params=["sync", "async"])
    def download(self, request: pytest.FixtureRequest, client: la.Client, platform: FakePlatform) -> Callable[[Path], Path]:
        async def run(place: Path) -> Path:
            async with la.AsyncClient(KEY, platform.url, timeout=5) as other:
                return await other.datasets.download("d@1", place)

        if request.param == "sync":
            return lambda place: client.datasets.download("d@1", place)
        return lambda place: asyncio.run(run(place))

    def redirect(self, url: str, data: bytes = DATA) -> tuple[int, None, dict[str, str]]:
        return 307, None, {"location": f"{url}/bucket/file?signature=s", "etag": f'"sha256:{hashlib.sha256(data).hexdigest()}"'}

    def test_are_fetched_without_the_key(
        self, download: Callable[[Path], Path], platform: FakePlatform, store: FakePlatform, tmp_path: Path
    ) -> None:
        platform.script[FILE] = [self.redirect(store.url)]
        store.script["GET /bucket/file"] = [(200, DATA, {"etag": '"of the store"'})]
        assert download(tmp_path / "file").read_bytes() == DATA
        (asked,) = store.requests
        assert asked["query"] == {"signature": "s"}
        assert not {"authorization", "cookie", "idempotency-key"} & set(asked["headers"])
        assert KEY not in str(asked)

    def test_are_checked(self, download: Callable[[Path], Path], platform: FakePlatform, store: FakePlatform, tmp_path: Path) -> None:
        platform.script[FILE] = [self.redirect(store.url)]
        store.script["GET /bucket/file"] = [(200, DATA[:-1] + b"x", {})]
        with pytest.raises(la.LeptonError, match="damaged"):
            download(tmp_path / "file")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("refusal", [(403, None, {}), (503, None, {}), (307, None, {"location": "http://127.0.0.1:9"}), None])
    def test_come_through_the_platform_where_the_store_refuses(
        self, download: Callable[[Path], Path], platform: FakePlatform, store: FakePlatform, tmp_path: Path, refusal: Any
    ) -> None:
        platform.script[FILE] = [self.redirect(store.url), (200, DATA, {})]
        store.script["GET /bucket/file"] = [refusal]
        assert download(tmp_path / "file").read_bytes() == DATA
        assert [request["headers"].get("x-lepton-redirect") for request in platform.asked("GET", FILE[4:])] == [None, "no"]

    def test_come_through_the_platform_where_nobody_is(
        self, download: Callable[[Path], Path], platform: FakePlatform, tmp_path: Path
    ) -> None:
        for place in ("http://127.0.0.1:9", "file:///etc", "ftp://127.0.0.1:9", "http://[", ""):
            platform.script[FILE] = [self.redirect(place), (200, DATA, {})]
            assert download(tmp_path / "file").read_bytes() == DATA

    def test_what_breaks_there_is_no_file(
        self, download: Callable[[Path], Path], platform: FakePlatform, store: FakePlatform, tmp_path: Path
    ) -> None:
        platform.script[FILE] = [self.redirect(store.url)]
        store.script["GET /bucket/file"] = [(200, [b"PAR1", b"<break>"], {})]
        with pytest.raises(la.ConnectionFailed):
            download(tmp_path / "file")
        assert list(tmp_path.iterdir()) == []

    def test_other_redirects_are_not_followed(
        self, download: Callable[[Path], Path], platform: FakePlatform, store: FakePlatform, tmp_path: Path
    ) -> None:
        for answer in ((307, None, {"location": store.url}), (302, None, self.redirect(store.url)[2])):
            platform.script[FILE] = [answer]
            with pytest.raises(la.ConnectionFailed, match="redirects"):
                download(tmp_path / "file")
        assert store.requests == []

    def test_tls_is_not_left(self) -> None:
        asked = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(str(request.url))
            if "x-lepton-redirect" in request.headers:
                return httpx.Response(200, content=DATA)
            status, _, headers = self.redirect("http://store.example")
            return httpx.Response(status, headers=headers)

        transport = HttpxTransport("https://platform.example", httpx.MockTransport(answer))
        with transport.stream(Request("GET", "https://platform.example/file", {"authorization": "Bearer k"})) as stream:
            assert b"".join(stream.chunks()) == DATA
        assert asked == ["https://platform.example/file"] * 2


NAMED = "PUT /v1/datasets/d/content"
VERSION = {"dataset": "d", "number": 1, "state": "ready"}


class TestLargeUploads:
    """They go to where the platform says; what cannot be sent there goes through the platform."""

    DATA = b"a,b\n" + b"1,2\n" * (3 << 20)

    @pytest.fixture
    def store(self) -> Iterator[FakePlatform]:
        fake = FakePlatform()
        yield fake
        fake.close()

    @pytest.fixture(params=["sync", "async", "file"])
    def upload(self, request: pytest.FixtureRequest, client: la.Client, platform: FakePlatform, tmp_path: Path) -> Callable[[], Any]:
        async def run() -> Any:
            async with la.AsyncClient(KEY, platform.url, timeout=5) as other:
                return await other.datasets.upload("d", self.DATA)

        if request.param == "async":
            return lambda: asyncio.run(run())
        file = tmp_path / "data.csv"
        file.write_bytes(self.DATA)
        return lambda: client.datasets.upload("d", file if request.param == "file" else self.DATA)

    def announce(self, url: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        return 201, {"upload": "token", "url": f"{url}/incoming/x?signature=s", "headers": {"x-amz-checksum-sha256": "abc"}}, {}

    def through(self, platform: FakePlatform) -> list[bytes]:
        return [request["body"] for request in platform.asked("PUT", NAMED[4:])]

    def test_go_there_without_the_key(self, upload: Callable[[], Any], platform: FakePlatform, store: FakePlatform) -> None:
        platform.script["POST /v1/uploads"] = [self.announce(store.url)]
        store.script["PUT /incoming/x"] = [(200, None, {"set-cookie": "a=b"})]
        platform.script[NAMED] = [(503, None, {"retry-after": "0"}), (201, VERSION, {})]
        assert upload().ref == "d@1"
        (announced,) = platform.asked("POST", "/v1/uploads")
        assert json.loads(announced["body"]) == {"sha256": hashlib.sha256(self.DATA).hexdigest(), "size_bytes": len(self.DATA)}
        (sent,) = store.requests
        assert (sent["body"], sent["query"]) == (self.DATA, {"signature": "s"})
        assert (sent["headers"]["x-amz-checksum-sha256"], sent["headers"]["content-length"]) == ("abc", str(len(self.DATA)))
        assert not {"authorization", "cookie", "idempotency-key", "content-type", "transfer-encoding"} & set(sent["headers"])
        assert KEY not in str(sent["headers"])
        first, second = platform.asked("PUT", NAMED[4:])
        assert (first["query"]["upload"], first["query"]["filename"], first["body"]) == ("token", "data.csv", b"")
        assert first["headers"]["idempotency-key"] == second["headers"]["idempotency-key"]
        assert "cookie" not in second["headers"]

    @pytest.mark.parametrize("refusal", [(400, None, {}), (503, None, {}), (307, None, {"location": "http://127.0.0.1:9"}), None])
    def test_go_through_the_platform_where_the_store_refuses(
        self, upload: Callable[[], Any], platform: FakePlatform, store: FakePlatform, refusal: Any
    ) -> None:
        platform.script["POST /v1/uploads"] = [self.announce(store.url)]
        store.script["PUT /incoming/x"] = [refusal]
        assert upload().ref == "d@1"
        assert self.through(platform) == [self.DATA]
        assert "upload" not in platform.asked("PUT", NAMED[4:])[0]["query"]

    def test_go_through_the_platform_where_nobody_is(self, client: la.Client, platform: FakePlatform) -> None:
        answers = [self.announce(place) for place in ("http://127.0.0.1:9", "file:///etc", "ftp://127.0.0.1:9", "http://[", "", "http://")]
        for answer in (*answers, (201, {}, {}), (201, ["what"], {})):
            platform.script["POST /v1/uploads"] = [answer]
            client.datasets.upload("d", self.DATA)
        assert self.through(platform) == [self.DATA] * 8

    @pytest.mark.parametrize("status, code", [(404, "not_found"), (405, "method_not_allowed"), (501, "unimplemented")])
    def test_go_through_the_platform_where_that_is_not_offered(
        self, upload: Callable[[], Any], platform: FakePlatform, status: int, code: str
    ) -> None:
        platform.script["POST /v1/uploads"] = [problem(status, code, "not here")]
        assert upload().ref == "d@1"
        assert self.through(platform) == [self.DATA]

    def test_what_is_not_known_any_more_is_sent_again_under_the_same_key(
        self, upload: Callable[[], Any], platform: FakePlatform, store: FakePlatform
    ) -> None:
        platform.script["POST /v1/uploads"] = [self.announce(store.url)]
        store.script["PUT /incoming/x"] = [(200, None, {})]
        platform.script[NAMED] = [problem(404, "not_found", "there is no such upload")]
        assert upload().ref == "d@1"
        named, sent = platform.asked("PUT", NAMED[4:])
        assert (named["body"], sent["body"]) == (b"", self.DATA)
        for name in ("idempotency-key", "content-type"):
            assert named["headers"][name] == sent["headers"][name]

    def test_what_has_no_room_is_not_sent(self, upload: Callable[[], Any], platform: FakePlatform, store: FakePlatform) -> None:
        platform.script["POST /v1/uploads"] = [problem(403, "quota_exceeded", "no room")]
        with pytest.raises(la.QuotaExceeded, match="no room"):
            upload()
        assert (self.through(platform), store.requests) == ([], [])

    def test_small_ones_go_the_short_way(self, client: la.Client, platform: FakePlatform) -> None:
        client.datasets.upload("d", b"a,b\n1,2\n")
        assert platform.asked("POST", "/v1/uploads") == []

    def test_tls_is_not_left(self) -> None:
        asked = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append((request.method, request.url.host, "upload" in request.url.params))
            if request.method == "POST":
                return httpx.Response(201, json=self.announce("http://store.example")[1])
            return httpx.Response(201, json=VERSION)

        url = "https://platform.example"
        with la.Client(KEY, url, transport=HttpxTransport(url, httpx.MockTransport(answer))) as client:
            client.datasets.upload("d", self.DATA)
        assert asked == [("POST", "platform.example", False), ("PUT", "platform.example", False)]


def test_model_files_are_checked_and_stay_in_their_folder(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    platform.files = {"a/w.bin": b"weights"}
    good = {"path": "a/w.bin", "digest": "sha256:" + hashlib.sha256(b"weights").hexdigest()}
    platform.models["m"] = [{"model": "m", "number": 1, "files": [good]}]
    assert client.models.download("m", tmp_path)[0].read_bytes() == b"weights"
    platform.models["m"][0]["files"] = [{**good, "digest": "sha256:" + "0" * 64}]
    with pytest.raises(la.LeptonError, match="damaged"):
        client.models.download("m", tmp_path / "other")
    for path in ("../x", "/etc/x", "a/../../x", "c:x", "a\\b", ""):
        platform.models["m"][0]["files"] = [{"path": path, "digest": ""}]
        with pytest.raises(la.LeptonError, match="outside"):
            client.models.download("m", tmp_path)


def test_what_is_shown_is_escaped(client: la.Client) -> None:
    evil = la.Dataset.from_json({"name": "<script>alert(1)</script>", "description": "\x1b[31m[bold]x"})
    assert "<script>" not in evil._repr_html_()
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as shown:
        console.print(evil)
    assert "\x1b" not in shown.get()
    assert "[bold]x" in shown.get()


def test_secrets_are_not_displayed() -> None:
    key = la.NewApiKey.from_json({"api_key": {"name": "ci"}, "secret": "lk-secret"})
    assert key.secret == "lk-secret"
    assert "lk-secret" not in repr(key) + key._repr_html_()


def test_money_is_exact() -> None:
    assert str(la.Money(currency="USD", micros=2_000)) == "0.002 USD"
    assert str(la.Money(currency="USD", micros=12_500_000)) == "12.50 USD"


def test_prices(client: la.Client, platform: FakePlatform) -> None:
    platform.script["POST /v1/listings"] = [ok({"slug": "s"})] * 2
    client.listings.create("s", endpoint="e", title="t", card="c", price="0.002")
    assert json.loads(platform.requests[0]["body"])["price"] == {"per_row": {"currency": "USD", "micros": 2000}}
    for price in ("x", float("nan"), 0.0000001, True, None):
        with pytest.raises(la.InvalidInput, match="price"):
            client.listings.create("s", endpoint="e", title="t", card="c", price=price)


def test_last_trace_id_and_trace_tree(client: la.Client) -> None:
    trace = client.traces.get("abc")
    assert client.last_trace_id == TRACE
    assert [(depth, span.name) for depth, span in trace.tree()] == [
        (0, "POST /v1/training-jobs"),
        (1, "CreateTrainingJob"),
        (2, "train"),
        (0, "orphan"),
    ]
    loop = la.Trace.from_json({"spans": [{"span_id": "a", "parent_id": "b"}, {"span_id": "b", "parent_id": "a"}]})
    assert len(loop.tree()) == 2


def test_the_same_from_an_event_loop(platform: FakePlatform, tmp_path: Path) -> None:
    async def go() -> None:
        async with la.AsyncClient(KEY, platform.url) as client:
            assert (await client.account.me()).role == "owner"
            assert (await client.datasets.upload("d", b"x\n1\n")).ref == "d@1"
            assert [dataset.name async for dataset in client.datasets.list()] == ["d"]
            assert (await client.datasets.download("d", tmp_path)).exists()
            with pytest.raises(la.InvalidData):
                await client.training_jobs.create(dataset="d", output_model="m", learning_rate=-1)
            job = await client.training_jobs.create(dataset="d@1", output_model="m", features=["x"])
            assert (await client.training_jobs.wait(job)).model_version == "m@1"
            await client.endpoints.create("m", "m@1")
            assert (await client.endpoints.wait_ready("m")).state == "ready"
            assert await client.endpoints.predict("m", [{"x": 1}] * 3, chunk_rows=2) == [1.0] * 3
            platform.script["GET /v1/me"] = [None]
            assert (await client.account.me()).role == "owner"
        with pytest.raises(la.ConnectionFailed, match="lepton up"):
            await la.AsyncClient("k", "http://127.0.0.1:9", retries=0).account.me()

    asyncio.run(go())


def test_endpoints_scale_and_roll_out(client: la.Client, platform: FakePlatform) -> None:
    client.endpoints.create("e", "m@1", min_replicas=0, max_replicas=3, scaling={"idle_seconds": 60})
    client.endpoints.update("e", model="m@2", rollout={"shadow": True})
    client.endpoints.update("e", traffic={1: 90, 2: 10})
    bodies = [
        json.loads(platform.asked(method, path)[-1]["body"]) for method, path in [("POST", "/v1/endpoints"), ("PATCH", "/v1/endpoints/e")]
    ]
    assert bodies[0]["scaling"] == {"min_replicas": 0, "max_replicas": 3, "idle_seconds": 60}
    assert bodies[1] == {"traffic": [{"revision": 1, "percent": 90}, {"revision": 2, "percent": 10}]}
    seen = {"revisions": [{"number": 2, "model": "m@2", "state": "canary", "percent": 10}]}
    platform.script["GET /v1/endpoints/e/revisions"] = [(200, seen, {})]
    assert [(each.number, each.percent) for each in client.endpoints.revisions("e")] == [(2, 10)]
    decided = {"replicas": 2, "decisions": [{"from_replicas": 1, "to_replicas": 2, "why": "9.0 requests in hand"}]}
    platform.script["GET /v1/endpoints/e/scaling"] = [(200, decided, {})]
    assert client.endpoints.scaling("e").decisions[0].to_replicas == 2
    with pytest.raises(la.InvalidInput, match="nothing to change"):
        client.endpoints.update("e")


def test_both_clients_have_the_same_calls(client: la.Client) -> None:
    async_client = la.AsyncClient("k")
    for noun in ("datasets", "training_jobs", "models", "endpoints", "listings", "account", "compute", "traces"):
        have, has = ({name for name in dir(getattr(side, noun)) if name[0] != "_"} for side in (client, async_client))
        assert have - has <= {"to_pandas"}
        assert has <= have


def test_a_batch_prediction_answers_the_version_that_it_made(client: la.Client, platform: FakePlatform) -> None:
    made = client.batch_predict("m@1", "d@1", "answers", columns=["x"], probabilities=False, progress=True, timeout=20)
    assert (made.ref, made.rows) == ("answers@1", 4)
    (asked,) = platform.asked("POST", "/v1/batch-predictions")
    body = {"model": "m@1", "dataset": "d@1", "output": "answers", "columns": ["x"], "probabilities": False}
    assert json.loads(asked["body"]) == body
    assert asked["headers"]["idempotency-key"]
    (batch,) = client.batch_predictions.list()
    assert (batch.version, batch.ended, batch.rows_done) == ("answers@1", True, 4)


def test_one_that_was_cancelled_is_a_failure(client: la.Client) -> None:
    made = client.batch_predictions.create("m@1", "d@1", "answers")
    assert client.batch_predictions.cancel(made).state == "cancelled"
    with pytest.raises(la.JobFailed, match="batch prediction bp-1 was cancelled"):
        client.batch_predictions.wait(made)


async def test_the_same_awaited(platform: FakePlatform) -> None:
    async with la.AsyncClient(KEY, platform.url) as client:
        made = await client.batch_predict("m@1", "d@1", "answers")
        assert made.ref == "answers@1"
        assert [batch.id async for batch in client.batch_predictions.list()] == ["bp-1"]
