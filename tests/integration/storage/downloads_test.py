"""Large files come from the store itself: a gateway, a store that clients reach, and the clients."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import leptonai as la
from lepton.common.v1 import resource_pb2
from lepton.data.v1 import dataset_pb2
from libs.storage import ArtifactStore, StorageSettings, open_store
from libs.storage.s3_bucket import Bucket, name_of
from tests.integration.storage.conftest import Served

MIB = 1 << 20
PATH = "/v1/datasets/wdbc/versions/1/content"
KEY = {"authorization": "Bearer owner-key"}


@dataclass
class Scene:
    """A gateway in front of fakes, and `store`, where the bytes of wdbc@1 and of the one file of m@1 are."""

    url: str
    store: ArtifactStore
    settings: StorageSettings
    data: bytes
    digest: str


@pytest.fixture
async def scene(served: Served) -> Scene:
    behind, storage = served.behind, served.settings
    store, data = open_store(storage, "datasets"), os.urandom(20 * MIB)
    async with httpx.AsyncClient(base_url=served.url, headers=KEY, timeout=60) as client:
        answer = await client.put("/v1/datasets/wdbc/content", content=data)
    assert answer.status_code == 201
    digest = behind.data.versions["wdbc"].splits[0].file.digest
    assert behind.data.versions["wdbc"].state == dataset_pb2.VERSION_STATE_READY
    await open_store(storage, "models").put(pieces(data))
    behind.training.files = [resource_pb2.Artifact(digest=digest, path="weights.safetensors")]
    return Scene(served.url, store, storage, data, digest)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_the_sdk_gets_them(scene: Scene, tmp_path: Path) -> None:
    def download(client: Any) -> Path:
        return client.datasets.download("wdbc@1", tmp_path / "sync.parquet")

    with la.Client("owner-key", scene.url) as client:
        assert (await asyncio.to_thread(download, client)).read_bytes() == scene.data
    async with la.AsyncClient("owner-key", scene.url) as other:
        assert (await other.datasets.download("wdbc@1", tmp_path / "async.parquet")).read_bytes() == scene.data
        (file,) = await other.models.download("wdbc@1", tmp_path / "model")
        assert file.read_bytes() == scene.data


async def test_a_damaged_one_is_told_by_the_sdk(scene: Scene, tmp_path: Path) -> None:
    damaged = scene.data[:-1] + bytes([scene.data[-1] ^ 1])
    bucket = Bucket(scene.settings, "datasets", 1)
    upload = bucket.begin(name_of(scene.digest))
    bucket.complete(name_of(scene.digest), upload, [bucket.send(name_of(scene.digest), upload, 1, damaged)], len(damaged))
    async with la.AsyncClient("owner-key", scene.url) as client:
        with pytest.raises(la.LeptonError, match="damaged"):
            await client.datasets.download("wdbc@1", tmp_path / "file")
    assert "file" not in os.listdir(tmp_path)


async def test_curl_gets_them_and_goes_on(scene: Scene, tmp_path: Path) -> None:
    async def curl(*words: str) -> str:
        argv = ("curl", "--silent", "--show-error", "--fail", "--location", *words, "-H", f"Authorization: {KEY['authorization']}")
        process = await asyncio.create_subprocess_exec(*argv, scene.url + PATH, stdout=-1, stderr=-1)
        out, problem = await process.communicate()
        assert process.returncode == 0, problem
        return out.decode()

    target = tmp_path / "file"
    host = await curl("-o", str(target), "--write-out", "%{url_effective}")
    assert target.read_bytes() == scene.data
    assert not host.startswith(scene.url)
    target.write_bytes(scene.data[: 5 * MIB])
    await curl("-o", str(target), "--continue-at", "-")
    assert target.read_bytes() == scene.data


async def test_the_address_alone_is_enough_and_for_this_file_only(scene: Scene) -> None:
    async with httpx.AsyncClient() as client:
        there = await client.get(scene.url + PATH, headers=KEY)
        assert there.status_code == 307
        place = there.headers["location"]
        answer = await client.get(place)
        assert answer.content == scene.data
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''wdbc-1.parquet"
        assert answer.headers["content-type"] == "application/vnd.apache.parquet"
        other = (await scene.store.put(pieces(bytes(2 * MIB)))).digest
        assert (await client.get(place.replace(name_of(scene.digest), name_of(other)))).status_code == 403
        assert (await client.get(place.replace("-datasets/", "-models/"))).status_code == 403
        through = await client.get(scene.url + PATH, headers={**KEY, "x-lepton-redirect": "no"})
        assert (through.status_code, through.content) == (200, scene.data)
        secret = scene.settings.secret_key.get_secret_value()
        assert secret not in place
