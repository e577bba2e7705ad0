"""What only a store of S3 does: damaged objects, signed addresses, TLS, rules of the server, long copies."""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from libs.errors import AppError, NotFound, Transient
from libs.storage import ArtifactStore, StorageSettings, digest_of, open_store
from libs.storage.s3_bucket import Bucket, name_of
from tests.integration.rpc.scene import Authority
from tests.s3 import S3Server, versitygw_server

MIB = 1 << 20


@pytest.fixture(params=["minio", "versitygw"])
def server(request: pytest.FixtureRequest) -> S3Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def settings(server: S3Server) -> StorageSettings:
    return server.settings()


@pytest.fixture
def store(settings: StorageSettings) -> ArtifactStore:
    return open_store(settings, "tests")


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def get(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.request(method, url, headers=headers)


async def test_a_damaged_object_is_told_from_a_good_one(
    server: S3Server, settings: StorageSettings, store: ArtifactStore, tmp_path: Path
) -> None:
    data = os.urandom(5 * MIB)
    digest = (await store.put(stream(data))).digest
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    server.client.put_object(settings.bucket_prefix + "tests", name_of(digest), io.BytesIO(damaged), len(damaged))
    with pytest.raises(AppError, match="is damaged") as refused:
        await store.fetch(digest, tmp_path / "deep" / "out")
    assert refused.value.code == "invalid_data"
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []
    for length in (None, len(data)):
        found = 0
        with pytest.raises(AppError, match="is damaged"):
            async for chunk in store.open(digest, length=length):
                found += len(chunk)
        assert found < len(data), "a reader that counts would take it for whole"
    await store.put(stream(data))
    await store.fetch(digest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data


async def test_an_object_that_was_cut_is_damaged_too(server: S3Server, settings: StorageSettings, store: ArtifactStore) -> None:
    digest = (await store.put(stream(b"whole"))).digest
    server.client.put_object(settings.bucket_prefix + "tests", name_of(digest), io.BytesIO(b"who"), 3)
    with pytest.raises(AppError, match="is damaged"):
        assert [chunk async for chunk in store.open(digest)] == []


class TestSignedAddresses:
    @pytest.fixture
    async def digests(self, store: ArtifactStore) -> list[str]:
        return [(await store.put(stream(data))).digest for data in (b"mine", b"yours")]

    async def test_they_need_no_key_and_carry_name_and_type(self, store: ArtifactStore, digests: list[str]) -> None:
        url = await store.download_url(digests[0], seconds=60, file_name='ä "x".parquet', media_type="application/x-test")
        assert url
        answer = await get(url)
        assert (answer.status_code, answer.content) == (200, b"mine")
        assert answer.headers["content-type"] == "application/x-test"
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%A4%20%22x%22.parquet"
        part = await get(url, {"range": "bytes=1-2"})
        assert (part.status_code, part.content) == (206, b"in")

    async def test_they_are_good_for_nothing_else(self, store: ArtifactStore, digests: list[str], settings: StorageSettings) -> None:
        url = await store.download_url(digests[0], seconds=60, file_name="x", media_type="text/plain")
        assert url
        bucket, name, other = settings.bucket_prefix + "tests", name_of(digests[0]), name_of(digests[1])
        attempts = [
            ("GET", url.replace(name, other)),
            ("GET", url.replace(f"{bucket}/{name}", bucket)),
            ("GET", url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")),
            ("GET", url.replace("text%2Fplain", "text%2Fhtml")),
            ("GET", url.split("?")[0]),
            ("PUT", url),
            ("DELETE", url),
        ]
        for method, address in attempts:
            assert address != url or method != "GET"
            assert (await get(address, method=method)).status_code in (400, 403), (method, address)
        assert (await get(url)).content == b"mine"

    async def test_they_end(self, store: ArtifactStore, digests: list[str]) -> None:
        url = await store.download_url(digests[0], seconds=1, file_name="x", media_type="text/plain")
        assert url
        await asyncio.sleep(2.5)
        assert (await get(url)).status_code == 403

    async def test_there_are_none_where_clients_do_not_reach_the_store(self, server: S3Server) -> None:
        store = open_store(server.settings(public_url=""), "tests")
        assert await store.download_url(digest_of(b"x"), seconds=60, file_name="x", media_type="text/plain") is None

    async def test_they_name_the_public_address(self, server: S3Server) -> None:
        store = open_store(server.settings(public_url="https://files.example.com"), "tests")
        url = await store.download_url(digest_of(b"x"), seconds=60, file_name="x", media_type="text/plain")
        assert url and url.startswith("https://files.example.com/t")


class TestDirectUploads:
    async def test_they_name_the_public_address_as_clients_do(self, server: S3Server) -> None:
        for url, host in (("https://files.example.com:443", "https://files.example.com/t"), ("http://a:81", "http://a:81/t")):
            upload = await open_store(server.settings(public_url=url), "tests").upload_url(digest=digest_of(b"x"), size=1, seconds=60)
            assert upload and upload.url.startswith(host)

    async def test_what_the_server_did_not_check_is_not_believed(
        self, server: S3Server, settings: StorageSettings, store: ArtifactStore
    ) -> None:
        theirs = await store.put(stream(b"theirs"))
        name = "0" * 32
        server.client.put_object(settings.bucket_prefix + "tests", f"incoming/{name}", io.BytesIO(b"damage"), 6)
        with pytest.raises(AppError) as refused:
            await store.adopt(name, digest=theirs.digest, size=6)
        assert refused.value.code == "unimplemented"
        server.client.put_object(settings.bucket_prefix + "tests", f"incoming/{name}", io.BytesIO(b""), 0)
        with pytest.raises(NotFound, match="nothing was uploaded"):
            await store.adopt(name, digest=theirs.digest, size=6)
        assert [chunk async for chunk in store.open(theirs.digest)] == [b"theirs"]

    async def test_a_store_that_is_away_is_said_so(self, own_minio: S3Server) -> None:
        store = open_store(own_minio.settings(read_seconds=1), "tests")
        data = os.urandom(1000)
        upload = await store.upload_url(digest=digest_of(data), size=1000, seconds=60)
        assert upload is not None
        async with httpx.AsyncClient() as client:
            assert (await client.put(upload.url, content=data, headers=dict(upload.headers))).status_code == 200
        await asyncio.to_thread(own_minio.stop)
        with pytest.raises(Transient):
            await store.adopt(upload.id, digest=digest_of(data), size=1000)
        await asyncio.to_thread(own_minio.start)
        assert (await store.adopt(upload.id, digest=digest_of(data), size=1000)).size == 1000


async def test_tls(minio: S3Server, tmp_path: Path) -> None:
    tls = Authority(tmp_path).issue("store", minio.host)
    with versitygw_server(tls) as server:
        data = os.urandom(20 * MIB)
        digest = (await open_store(server.settings(), "tests").put(stream(data))).digest
        assert digest == digest_of(data)
        with pytest.raises(Transient, match="no certificate that is trusted here"):
            await open_store(server.settings(ca_file=""), "tests").put(stream(b"x"))
        with pytest.raises(Transient, match=r"does not speak S3|broke the connection|refuses|answered"):
            await open_store(server.settings(url=f"s3+http://{server.address}"), "tests").put(stream(b"x"))


class TestRules:
    async def test_leftovers_are_left_to_the_server(self, minio: S3Server) -> None:
        settings = minio.settings()
        await open_store(settings, "tests").put(stream(b"x"))
        rules = minio.client.get_bucket_lifecycle(settings.bucket_prefix + "tests")
        assert rules and [(rule.rule_filter.prefix, rule.expiration.days) for rule in rules.rules] == [("incoming/", 1)]

    async def test_those_of_an_operator_stay(self, minio: S3Server) -> None:
        settings = minio.settings()
        name = settings.bucket_prefix + "tests"
        minio.client.make_bucket(name)
        own = LifecycleConfig([Rule(ENABLED, rule_filter=Filter(prefix="logs/"), rule_id="own", expiration=Expiration(days=9))])
        minio.client.set_bucket_lifecycle(name, own)
        await open_store(settings, "tests").put(stream(b"x"))
        rules = minio.client.get_bucket_lifecycle(name)
        assert rules and [rule.rule_id for rule in rules.rules] == ["own"]


class TestCopies:
    async def test_by_the_piece(self, settings: StorageSettings, store: ArtifactStore) -> None:
        data = os.urandom(21 * MIB)
        digest = digest_of(data)
        first = await store.put(stream(bytes(100)))
        bucket = Bucket(settings, "tests", 1)
        with bucket.client() as client:
            client.put_object(bucket.name, "incoming/x", io.BytesIO(data), len(data))
        bucket.copy("incoming/x", name_of(digest), len(data), piece=5 * MIB)
        assert digest_of(b"".join([chunk async for chunk in store.open(digest)])) == digest
        assert {found async for found, _ in store.list()} == {digest, first.digest}

    async def test_onto_itself_makes_an_object_new(self, settings: StorageSettings, store: ArtifactStore) -> None:
        digest = (await store.put(stream(bytes(9 * MIB)))).digest
        bucket = Bucket(settings, "tests", 1)
        await asyncio.sleep(2.5)
        bucket.refresh(name_of(digest), 9 * MIB)
        assert bucket.stat(digest)[1] >= 1, "it is fresh enough"
        bucket.refresh(name_of(digest), 9 * MIB, older=0.5)
        assert bucket.stat(digest)[1] <= 1
        assert digest_of(b"".join([chunk async for chunk in store.open(digest)])) == digest

    async def test_what_came_out_short_is_not_taken_for_done(self, settings: StorageSettings, store: ArtifactStore) -> None:
        await store.put(stream(b"x"))
        bucket = Bucket(settings, "tests", 1)
        upload = bucket.begin("incoming/y")
        parts = [bucket.send("incoming/y", upload, 1, b"abc")]
        with pytest.raises(Transient, match="did not keep"):
            bucket.complete("incoming/y", upload, parts, 4)
