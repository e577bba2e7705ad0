"""What every artifact store does."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from libs.errors import Invalid, NotFound, Transient
from libs.storage import ArtifactStore, DirectUpload, StorageSettings, Stored, digest_of, open_store

MIB = 1 << 20


@pytest.fixture(params=["memory:", "file://{folder}/artifacts", "minio", "versitygw"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if ":" in request.param:
        return open_store(StorageSettings(url=request.param.format(folder=tmp_path)), "tests")
    return open_store(request.getfixturevalue(request.param).settings(), "tests")


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def sizes(chunks: AsyncIterator[bytes]) -> AsyncIterator[int]:
    async for chunk in chunks:
        yield len(chunk)


async def idle(store: ArtifactStore, digest: str) -> float:
    return {each: seconds async for each, seconds in store.list()}[digest]


async def content(store: ArtifactStore, digest: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.open(digest, offset=offset, length=length)])


async def test_bytes_are_named_by_their_digest(store: ArtifactStore) -> None:
    stored = await store.put(stream(b"ab", b"c"))
    assert stored.digest == f"sha256:{hashlib.sha256(b'abc').hexdigest()}" == digest_of(b"abc")
    assert (stored.size, await store.stat(stored.digest)) == (3, 3)
    assert await content(store, stored.digest) == b"abc"


@pytest.mark.parametrize("size", [0, 1, MIB, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 21 * MIB + 7])
async def test_bytes_of_every_length(store: ArtifactStore, tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    pieces = stream(*(data[start : start + 999_999] for start in range(0, size, 999_999)))
    assert await store.put(pieces) == Stored(digest_of(data), size)
    source = tmp_path / "source"
    source.write_bytes(data[::-1])
    assert await store.put_file(source) == Stored(digest_of(data[::-1]), size)
    for digest, expected in ((digest_of(data), data), (digest_of(data[::-1]), data[::-1])):
        assert await store.stat(digest) == size
        assert await content(store, digest) == expected
        await store.fetch(digest, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == expected
    assert {digest async for digest, _ in store.list()} == {digest_of(data), digest_of(data[::-1])}


async def test_chunks_are_small(store: ArtifactStore) -> None:
    digest = (await store.put(stream(bytes(3 * MIB)))).digest
    assert [size async for size in sizes(store.open(digest))] == [MIB, MIB, MIB]


async def test_the_same_bytes_are_one_object(store: ArtifactStore) -> None:
    first, second = await store.put(stream(b"x")), await store.put(stream(b"x"))
    assert first == second
    assert [digest async for digest, _ in store.list()] == [first.digest]


async def test_ranges(store: ArtifactStore) -> None:
    data = bytes(range(256)) * 10_000
    digest = (await store.put(stream(data))).digest
    assert await content(store, digest, offset=5, length=7) == data[5:12]
    assert await content(store, digest, offset=2_000_000) == data[2_000_000:]
    assert await content(store, digest, offset=len(data)) == b""
    assert await content(store, digest, offset=len(data) + 5, length=5) == b""
    assert await content(store, digest, length=0) == b""
    assert await content(store, digest, length=len(data) + 5) == data


@pytest.mark.parametrize("size", [4, 9 * MIB])
async def test_too_much_leaves_nothing(store: ArtifactStore, size: int) -> None:
    with pytest.raises(Invalid) as refused:
        await store.put(stream(b"1" * size, b"5678"), limit=size + 1)
    assert refused.value.code == "too_large"
    assert [digest async for digest, _ in store.list()] == []


@pytest.mark.parametrize("size", [4, 30 * MIB])
async def test_a_stream_that_breaks_off_leaves_nothing(store: ArtifactStore, size: int) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"h" * size
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(broken())
    assert [digest async for digest, _ in store.list()] == []


async def test_a_caller_that_goes_away_leaves_nothing(store: ArtifactStore) -> None:
    asked = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(20 * MIB)
        asked.set()
        await asyncio.sleep(3600)

    putting = asyncio.create_task(store.put(endless()))
    await asked.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert [digest async for digest, _ in store.list()] == []


async def test_a_reader_may_stop_early(store: ArtifactStore) -> None:
    digest = (await store.put(stream(bytes(20 * MIB)))).digest
    for _ in range(20):
        chunks = store.open(digest)
        await anext(chunks)
        await chunks.aclose()
    assert len(await content(store, digest)) == 20 * MIB


async def test_many_at_once(store: ArtifactStore) -> None:
    contents = [bytes([number]) * (number * 1000 + 9 * MIB * (number % 8 == 0)) for number in range(40)]
    stored = await asyncio.gather(*(store.put(stream(data, data)) for data in contents))
    assert [one.digest for one in stored] == [digest_of(data * 2) for data in contents]
    assert await asyncio.gather(*(content(store, one.digest) for one in stored)) == [data * 2 for data in contents]


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "0" * 64, "sha256:" + "G" * 64])
async def test_only_digests_are_names(store: ArtifactStore, digest: str) -> None:
    with pytest.raises(Invalid):
        await store.stat(digest)
    with pytest.raises(Invalid):
        await store.discard(digest)
    with pytest.raises(Invalid):
        await content(store, digest)
    with pytest.raises(Invalid):
        await store.download_url(digest, seconds=60, file_name="x", media_type="text/plain")
    with pytest.raises(Invalid):
        await store.upload_url(digest=digest, size=1, seconds=60)
    with pytest.raises(Invalid):
        await store.adopt("0" * 32, digest=digest, size=1)


async def test_files_go_in_and_out(store: ArtifactStore, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"weights")
    stored = await store.put_file(source)
    await store.fetch(stored.digest, tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out").read_bytes() == b"weights"


async def test_discard(store: ArtifactStore) -> None:
    digest = (await store.put(stream(b"x"))).digest
    await store.discard(digest, idle_seconds=60)
    assert await store.stat(digest) == 1
    await store.discard(digest)
    await store.discard(digest)
    with pytest.raises(NotFound):
        await store.stat(digest)
    with pytest.raises(NotFound):
        await content(store, digest)
    with pytest.raises(NotFound):
        await content(store, digest, length=0)


async def test_what_is_not_there_makes_no_file(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await store.fetch(digest_of(b"nothing"), tmp_path / "deep" / "out")
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []


@pytest.mark.parametrize("size", [10, 9 * MIB])
async def test_put_again_is_new_again(store: ArtifactStore, tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    digest = (await store.put(stream(data))).digest
    for again in (lambda: store.put(stream(data)), lambda: store.put_file(source)):
        await asyncio.sleep(2.5)
        assert await idle(store, digest) >= 1
        await again()
        await store.discard(digest, idle_seconds=2)
        assert await store.stat(digest) == size
        assert await idle(store, digest) < 2


class TestDirectUploads:
    """A PUT by a client with the address alone, where the store gives one; memory and files do not."""

    SIZES = [1, 9 * MIB]

    @pytest.fixture
    def reached(self, request: pytest.FixtureRequest, store: ArtifactStore) -> ArtifactStore:
        if ":" in request.node.callspec.params["store"]:
            pytest.skip("clients do not reach this store")
        return store

    @pytest.mark.parametrize("size", SIZES)
    async def test_bytes_go_in(self, store: ArtifactStore, request: pytest.FixtureRequest, size: int) -> None:
        data = os.urandom(size)
        upload = await store.upload_url(digest=digest_of(data), size=size, seconds=60)
        assert (upload is None) == (":" in request.node.callspec.params["store"])
        if upload is None:
            return
        with pytest.raises(NotFound, match="nothing was uploaded"):
            await store.adopt(upload.id, digest=digest_of(data), size=size)
        assert (await put(upload, data)).status_code == 200
        assert [digest async for digest, _ in store.list()] == []
        assert await store.adopt(upload.id, digest=digest_of(data), size=size) == Stored(digest_of(data), size)
        assert await content(store, digest_of(data)) == data
        assert [digest async for digest, _ in store.list()] == [digest_of(data)]

    @pytest.mark.parametrize("size", SIZES)
    async def test_asked_again_it_is_the_same(self, reached: ArtifactStore, size: int) -> None:
        data = os.urandom(size)
        upload = await direct(reached, data)
        assert (await put(upload, data)).status_code == 200
        for _ in range(2):
            await reached.adopt(upload.id, digest=digest_of(data), size=size)
        theirs = await reached.put(stream(b"of somebody else"))
        with pytest.raises(NotFound, match="nothing was uploaded"):
            await reached.adopt(upload.id, digest=theirs.digest, size=theirs.size)
        assert (await put(upload, data)).status_code == 200, "a client that did not hear the answer"
        await reached.adopt(upload.id, digest=digest_of(data), size=size)
        assert await content(reached, digest_of(data)) == data
        with pytest.raises(NotFound, match="nothing was uploaded"):
            await reached.adopt((await direct(reached, data)).id, digest=digest_of(data), size=size)
        await reached.discard(digest_of(data))
        with pytest.raises(NotFound, match="there is no object"):
            await reached.adopt(upload.id, digest=digest_of(data), size=size)

    async def test_several_at_once_are_one(self, reached: ArtifactStore) -> None:
        data = os.urandom(MIB)
        upload = await direct(reached, data)
        await put(upload, data)
        adopted = await asyncio.gather(
            *(reached.adopt(upload.id, digest=digest_of(data), size=MIB) for _ in range(4)), return_exceptions=True
        )
        assert all(isinstance(each, Stored | Transient) for each in adopted), adopted
        await reached.adopt(upload.id, digest=digest_of(data), size=MIB)
        assert await content(reached, digest_of(data)) == data

    async def test_the_server_refuses_other_bytes(self, reached: ArtifactStore) -> None:
        data = os.urandom(1000)
        upload = await direct(reached, data)
        for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data + b"x", data[:-1], b""):
            assert 400 <= (await put(upload, wrong)).status_code < 500
            with pytest.raises(NotFound):
                await reached.adopt(upload.id, digest=digest_of(data), size=1000)
        assert [digest async for digest, _ in reached.list()] == []

    async def test_the_server_refuses_another_request(self, reached: ArtifactStore) -> None:
        data, other = os.urandom(1000), os.urandom(1000)
        upload, elsewhere = await direct(reached, data), await direct(reached, other)
        assert 400 <= (await put(replace(upload, headers={}), data)).status_code < 500
        # What would be right bytes, were the header not a part of the signature.
        assert 400 <= (await put(replace(upload, headers=elsewhere.headers), other)).status_code < 500
        assert 400 <= (await put(replace(upload, url=upload.url.replace(upload.id, elsewhere.id)), data)).status_code < 500
        assert 400 <= (await put(replace(upload, url=upload.url.split("?")[0]), data)).status_code < 500
        ahead = upload.url.replace(f"incoming/{upload.id}", digest_of(data)[7:9] + "/" + digest_of(data)[9:])
        assert 400 <= (await put(replace(upload, url=ahead), data)).status_code < 500
        async with httpx.AsyncClient() as client:
            for method in ("GET", "DELETE"):
                assert 400 <= (await client.request(method, upload.url, headers=upload.headers)).status_code < 500
        with pytest.raises(NotFound):
            await reached.adopt(upload.id, digest=digest_of(data), size=1000)

    async def test_an_address_ends(self, reached: ArtifactStore) -> None:
        upload = await direct(reached, b"late", seconds=1)
        await asyncio.sleep(2.5)
        assert 400 <= (await put(upload, b"late")).status_code < 500

    async def test_an_upload_is_what_was_said(self, reached: ArtifactStore) -> None:
        data = os.urandom(1000)
        theirs = await reached.put(stream(b"of somebody else"))
        for digest, size in ((theirs.digest, theirs.size), (theirs.digest, 1000), (digest_of(data), 999)):
            upload = await direct(reached, data)
            assert (await put(upload, data)).status_code == 200
            with pytest.raises(Invalid):
                await reached.adopt(upload.id, digest=digest, size=size)
            with pytest.raises(NotFound, match="nothing was uploaded"):
                await reached.adopt(upload.id, digest=digest_of(data), size=1000)
        assert await content(reached, theirs.digest) == b"of somebody else"

    async def test_what_one_request_cannot_carry_is_refused(self, reached: ArtifactStore) -> None:
        with pytest.raises(Invalid):
            await reached.upload_url(digest=digest_of(b""), size=0, seconds=60)
        with pytest.raises(Invalid) as refused:
            await reached.upload_url(digest=digest_of(b""), size=(5 << 30) + 1, seconds=60)
        assert refused.value.code == "too_large"

    @pytest.mark.parametrize("upload", ["", "0" * 32, "0" * 31, "../" + "0" * 29, "0" * 32 + "/", "\x00" * 32, "ab/" + "0" * 62])
    async def test_only_ids_are_uploads(self, store: ArtifactStore, upload: str) -> None:
        stored = await store.put(stream(b"theirs"))
        with pytest.raises(NotFound, match="nothing was uploaded"):
            await store.adopt(upload, digest=stored.digest, size=stored.size)
        with pytest.raises(NotFound, match="nothing was uploaded"):
            await store.adopt(stored.digest, digest=stored.digest, size=stored.size)

    async def test_addresses_are_not_shown(self, reached: ArtifactStore) -> None:
        upload = await direct(reached, b"x")
        assert "Signature" in upload.url
        assert "Signature" not in repr(upload)


async def direct(store: ArtifactStore, data: bytes, seconds: int = 60) -> DirectUpload:
    upload = await store.upload_url(digest=digest_of(data), size=len(data), seconds=seconds)
    assert upload is not None
    return upload


async def put(upload: DirectUpload, data: bytes) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.put(upload.url, content=data, headers=dict(upload.headers))
