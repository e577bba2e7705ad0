"""Large files go to the store itself: who may announce one, whose token it is, and what becomes of it."""

import time
from typing import Any

import httpx
import jwt
import pytest

from lepton.accounts.v1 import workspace_pb2
from lepton.common.v1 import options_pb2
from libs.errors import Invalid
from libs.rpc import Identity, Signer, generate_key
from libs.storage import DirectUpload, InMemoryArtifactStore, Stored, digest_of
from libs.storage.store import nothing_uploaded
from services.gateway.conftest import PRIVATE, World
from services.gateway.routes.content_test import CSV
from services.gateway.settings import Limits
from services.gateway.transcode_test import check_problem
from services.gateway.uploads import AUDIENCE

PATH = "/v1/datasets/wdbc/content"
ANNOUNCED = {"sha256": digest_of(CSV).removeprefix("sha256:"), "size_bytes": len(CSV)}


class Reached(InMemoryArtifactStore):
    """A store that clients reach: `sent` is what they have PUT."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, bytes] = {}
        self.given: list[tuple[str, int, int]] = []

    async def upload_url(self, *, digest: str, size: int, seconds: int) -> DirectUpload | None:
        self.given.append((digest, size, seconds))
        id = f"{len(self.given):032x}"
        return DirectUpload(id, f"https://store.example/incoming/{id}?signed", {"x-amz-checksum-sha256": "abc"})

    async def adopt(self, upload: str, *, digest: str, size: int) -> Stored:
        if upload not in self.sent:
            raise nothing_uploaded(upload, digest)

        async def chunks() -> Any:
            yield self.sent[upload]

        stored = await self.put(chunks())
        if stored != Stored(digest, size):
            raise Invalid("other bytes", code="invalid_data")
        return stored


@pytest.fixture
def datasets() -> Reached:
    return Reached()


async def announce(world: World, **changes: Any) -> httpx.Response:
    return await world.client.post("/v1/uploads", json={**ANNOUNCED, **changes})


async def begun(world: World, **options: Any) -> str:
    answer = await world.client.post("/v1/uploads", json=ANNOUNCED, **options)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["upload"])


async def name(world: World, token: str, **options: Any) -> httpx.Response:
    return await world.client.put(PATH, params={"upload": token, "filename": "a.csv", "wait": 5}, **options)


def as_(key: str) -> dict[str, Any]:
    return {"headers": {"authorization": f"Bearer {key}"}}


async def test_what_was_sent_there_becomes_a_version(world: World, datasets: Reached) -> None:
    answer = await announce(world)
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    told = answer.json()
    assert told["url"] == f"https://store.example/incoming/{1:032x}?signed"
    assert told["headers"] == {"x-amz-checksum-sha256": "abc"}
    assert datasets.given == [(digest_of(CSV), len(CSV), 3600)]
    datasets.sent[f"{1:032x}"] = CSV
    for _ in range(2):
        made = await name(world, told["upload"], headers={"idempotency-key": "k"})
        assert (made.status_code, made.headers["location"]) == (201, "/v1/datasets/wdbc/versions/1")
        request, key = world.behind.data.requests[-1]
        assert (request.name, request.file_name, request.wait_seconds, key) == ("wdbc", "a.csv", 5, "k")
        assert (request.content.digest, request.content.size_bytes) == (digest_of(CSV), len(CSV))
    assert (await world.client.get("/v1/datasets/wdbc/versions/1/content")).content == CSV


async def test_announcements_that_cannot_be(world: World, datasets: Reached) -> None:
    for changes, fields in (
        ({"sha256": "0" * 63}, ["sha256"]),
        ({"sha256": "A" * 64}, ["sha256"]),
        ({"sha256": "../" + "0" * 61}, ["sha256"]),
        ({"sha256": None, "size_bytes": "9"}, ["sha256", "size_bytes"]),
        ({"size_bytes": 0}, ["size_bytes"]),
        ({"size_bytes": -1}, ["size_bytes"]),
        ({"size_bytes": True}, ["size_bytes"]),
        ({"size_bytes": 1.0}, ["size_bytes"]),
    ):
        problem = check_problem(await announce(world, **changes), 400, "invalid_request")
        assert [each["field"] for each in problem["errors"]] == fields
    problem = check_problem(await announce(world, sizebytes=9), 400, "invalid_request")
    assert problem["errors"][0]["suggestions"] == ["size_bytes"]
    check_problem(await world.client.post("/v1/uploads", json=[]), 400, "invalid_request")
    check_problem(await world.client.post("/v1/uploads"), 400, "invalid_request")
    check_problem(await world.client.post("/v1/uploads", params={"x": "1"}, json=ANNOUNCED), 400, "invalid_request")
    check_problem(await announce(world, size_bytes=2**62), 413, "too_large")
    assert datasets.given == []


async def test_only_who_may_make_versions_may_announce(world: World, datasets: Reached) -> None:
    check_problem(await world.client.post("/v1/uploads", json=ANNOUNCED, **as_("viewer-key")), 403, "forbidden")
    check_problem(await world.client.post("/v1/uploads", json=ANNOUNCED, **as_("nobody")), 401, "unauthenticated")
    assert datasets.given == []
    token = await begun(world)
    datasets.sent[f"{1:032x}"] = CSV
    check_problem(await name(world, token, **as_("viewer-key")), 403, "forbidden")
    assert world.behind.data.requests == []


async def test_what_the_plan_has_no_room_for(world: World) -> None:
    world.behind.accounts.quotas = [workspace_pb2.Quota(metric="storage_bytes", limit=9000, used=1001, remaining=7999)]
    problem = check_problem(await announce(world), 403, "quota_exceeded")
    assert (problem["metric"], problem["remaining"]) == ("storage_bytes", 7999)
    world.behind.accounts.quotas[0].remaining = len(CSV)
    assert (await announce(world)).status_code == 201


class TestBounds:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(upload_bytes=1000)

    async def test_too_large(self, world: World) -> None:
        check_problem(await announce(world), 413, "too_large")


class TestOutOfReach:
    @pytest.fixture
    def datasets(self) -> InMemoryArtifactStore:
        return InMemoryArtifactStore()

    async def test_the_store_is_not_offered(self, world: World) -> None:
        check_problem(await announce(world), 501, "unimplemented")


async def test_a_digest_alone_gives_nothing(world: World, datasets: Reached) -> None:
    await world.client.put(PATH, content=CSV)
    theirs = await begun(world, **as_("buyer-key"))
    check_problem(await name(world, theirs, **as_("buyer-key")), 404, "not_found")
    assert len(world.behind.data.requests) == 1


async def test_a_token_is_of_one_workspace(world: World, datasets: Reached) -> None:
    token = await begun(world)
    datasets.sent[f"{1:032x}"] = CSV
    ours = check_problem(await name(world, "no token", **as_("buyer-key")), 404, "not_found")
    theirs = check_problem(await name(world, token, **as_("buyer-key")), 404, "not_found")
    assert ours["detail"] == theirs["detail"]
    assert (await name(world, token)).status_code == 201


async def test_only_tokens_of_the_gateway_count(world: World, datasets: Reached) -> None:
    token = await begun(world)
    datasets.sent[f"{1:032x}"] = CSV
    claims = jwt.decode(token, options={"verify_signature": False})
    assert 0 < claims["exp"] - time.time() <= 12 * 3600

    def forged(key: str = PRIVATE, **changes: Any) -> str:
        words = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return jwt.encode(words, key, algorithm="EdDSA")

    assert (await name(world, forged())).status_code == 201
    head, body, signature = token.split(".")
    unsigned = jwt.encode(claims, "", algorithm="none")
    tokens = [
        "",
        "x" * 20_000,
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{head}.{forged(digest=digest_of(b'x')).split('.')[1]}.{signature}",
        unsigned,
        forged(generate_key()[0]),
        forged(exp=int(time.time()) - 1),
        forged(exp=None),
        forged(aud="lepton.data.v1.DataService"),
        forged(aud=[AUDIENCE, "other"]),
        forged(aud=None),
        forged(iss="data"),
        forged(size=str(len(CSV))),
        forged(id=None),
        Signer(PRIVATE, "gateway").sign(Identity("", "acme", "m", options_pb2.ROLE_OWNER, "k"), AUDIENCE),
    ]
    for each in tokens:
        check_problem(await name(world, each), 404, "not_found")
    assert len(world.behind.data.requests) == 1


async def test_a_token_is_no_identity(world: World) -> None:
    token = await begun(world)
    check_problem(await world.client.get("/v1/me", **as_(token)), 401, "unauthenticated")


async def test_bytes_come_one_way_only(world: World, datasets: Reached) -> None:
    token = await begun(world)
    datasets.sent[f"{1:032x}"] = CSV

    async def chunked() -> Any:
        yield b"x"

    for content in (b"x", CSV, chunked()):
        problem = check_problem(await name(world, token, content=content), 400, "invalid_request")
        assert problem["errors"][0]["field"] == "upload"
    check_problem(await world.client.put(PATH, params=[("upload", token), ("upload", token)]), 400, "invalid_request")
    check_problem(await world.client.put("/v1/datasets/Wdbc!/content", params={"upload": token}), 400, "invalid_request")
    assert world.behind.data.requests == []
    datasets.sent[f"{1:032x}"] = CSV[1:]
    check_problem(await name(world, token), 422, "invalid_data")
