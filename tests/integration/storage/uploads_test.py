"""Large files go to the store itself: a gateway, a store that clients reach, and the clients."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import leptonai as la
from libs.storage import StorageSettings, digest_of, open_store
from libs.storage.s3_bucket import INCOMING, Bucket
from tests.integration.storage.conftest import Served
from tests.platform import free_port

MIB = 1 << 20
PATH = "/v1/datasets/wdbc/content"


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, headers={"authorization": "Bearer owner-key"}, timeout=60) as client:
        yield client


def announced(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


async def begun(client: httpx.AsyncClient, data: bytes, **options: Any) -> dict[str, Any]:
    answer = await client.post("/v1/uploads", json=announced(data), **options)
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def put(told: dict[str, Any], data: bytes) -> int:
    async with httpx.AsyncClient(timeout=60) as stranger:
        return (await stranger.put(told["url"], content=data, headers=told["headers"])).status_code


async def kept(settings: StorageSettings, data: bytes) -> bytes:
    store = open_store(settings, "datasets")
    return b"".join([chunk async for chunk in store.open(digest_of(data))])


def incoming(settings: StorageSettings) -> list[int]:
    """Sizes of what was sent past the gateway."""
    with Bucket(settings, "datasets", 1).client() as client:
        return [found.size or 0 for found in client.list_objects(f"{settings.bucket_prefix}datasets", INCOMING, recursive=True)]


async def test_the_sdk_sends_them(served: Served, tmp_path: Path) -> None:
    data, other = os.urandom(20 * MIB), os.urandom(9 * MIB)
    (tmp_path / "data.csv").write_bytes(data)

    def upload() -> Any:
        with la.Client("owner-key", served.url) as client:
            return client.datasets.upload("wdbc", tmp_path / "data.csv")

    assert (await asyncio.to_thread(upload)).ref == "wdbc@1"
    async with la.AsyncClient("owner-key", served.url) as client:
        assert (await client.datasets.upload("wdbc", other, filename="other.csv")).ref == "wdbc@1"
    assert incoming(served.settings) == [0, 0], "both went to the store, and neither is kept twice"
    first, second = (request for request, _ in served.behind.data.requests)
    assert (first.file_name, first.content.digest, first.content.size_bytes) == ("data.csv", digest_of(data), len(data))
    assert (second.file_name, second.content.digest) == ("other.csv", digest_of(other))
    assert await kept(served.settings, data) == data
    assert await kept(served.settings, other) == other


async def test_curl_sends_them(served: Served, tmp_path: Path) -> None:
    data = os.urandom(20 * MIB)
    (tmp_path / "file").write_bytes(data)

    async def curl(*words: str) -> str:
        process = await asyncio.create_subprocess_exec("curl", "--silent", "--show-error", "--fail", *words, stdout=-1, stderr=-1)
        out, problem = await process.communicate()
        assert process.returncode == 0, problem
        return out.decode()

    key = ("-H", "Authorization: Bearer owner-key")
    told = json.loads(await curl(*key, "--json", json.dumps(announced(data)), f"{served.url}/v1/uploads"))
    headers = [word for name, value in told["headers"].items() for word in ("-H", f"{name}: {value}")]
    await curl("--upload-file", str(tmp_path / "file"), *headers, told["url"])
    made = json.loads(await curl(*key, "--request", "PUT", f"{served.url}{PATH}?upload={told['upload']}&filename=a.csv"))
    assert made["dataset"] == "wdbc"
    assert await kept(served.settings, data) == data


async def test_other_bytes_get_nowhere(served: Served, client: httpx.AsyncClient) -> None:
    data = os.urandom(1000)
    told = await begun(client, data)
    assert 400 <= await put(told, data[:-1] + bytes([data[-1] ^ 1])) < 500
    answer = await client.put(PATH, params={"upload": told["upload"]})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "nothing was uploaded" in answer.json()["detail"]
    assert served.behind.data.requests == []


async def test_a_lost_answer_is_asked_for_again(served: Served, client: httpx.AsyncClient) -> None:
    data = os.urandom(9 * MIB)
    told = await begun(client, data)
    assert await put(told, data) == 200
    for _ in range(3):
        made = await client.put(PATH, params={"upload": told["upload"]}, headers={"idempotency-key": "k"})
        assert made.status_code == 201, made.text
    first, *more = served.behind.data.requests
    assert more == [first, first]
    assert await kept(served.settings, data) == data


async def test_nobody_comes_to_the_bytes_of_others(served: Served, client: httpx.AsyncClient) -> None:
    secret, other = os.urandom(1000), os.urandom(1000)
    buyer = {"headers": {"authorization": "Bearer buyer-key"}}
    told = await begun(client, secret)
    assert await put(told, secret) == 200
    assert (await client.put(PATH, params={"upload": told["upload"]})).status_code == 201
    theirs = await begun(client, secret, **buyer)
    assert 400 <= await put(theirs, other) < 500
    for token in (theirs["upload"], told["upload"]):
        assert (await client.put(PATH, params={"upload": token}, **buyer)).status_code == 404
    assert len(served.behind.data.requests) == 1
    assert await kept(served.settings, secret) == secret


class TestNobodyThere:
    @pytest.fixture
    def reached(self, request: pytest.FixtureRequest) -> StorageSettings:
        return request.getfixturevalue("minio").settings(public_url=f"http://127.0.0.1:{free_port()}")

    async def test_then_they_go_through_the_gateway(self, served: Served) -> None:
        data = os.urandom(9 * MIB)
        async with la.AsyncClient("owner-key", served.url) as client:
            assert (await client.datasets.upload("wdbc", data)).ref == "wdbc@1"
        assert incoming(served.settings) == []
        assert await kept(served.settings, data) == data
