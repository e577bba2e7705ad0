"""What every artifact store does."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.errors import Invalid, NotFound
from libs.storage import ArtifactStore, StorageSettings, digest_of, open_store


@pytest.fixture(params=["memory:", "file://{folder}/artifacts"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return open_store(StorageSettings(url=request.param.format(folder=tmp_path)), "tests")


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def content(store: ArtifactStore, digest: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.open(digest, offset=offset, length=length)])


async def test_bytes_are_named_by_their_digest(store: ArtifactStore) -> None:
    stored = await store.put(stream(b"ab", b"c"))
    assert stored.digest == f"sha256:{hashlib.sha256(b'abc').hexdigest()}" == digest_of(b"abc")
    assert (stored.size, await store.stat(stored.digest)) == (3, 3)
    assert await content(store, stored.digest) == b"abc"


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


async def test_too_much_leaves_nothing(store: ArtifactStore) -> None:
    with pytest.raises(Invalid) as refused:
        await store.put(stream(b"1234", b"5678"), limit=5)
    assert refused.value.code == "too_large"
    assert [digest async for digest, _ in store.list()] == []


async def test_a_stream_that_breaks_off_leaves_nothing(store: ArtifactStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(broken())
    assert [digest async for digest, _ in store.list()] == []


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "0" * 64, "sha256:" + "G" * 64])
async def test_only_digests_are_names(store: ArtifactStore, digest: str) -> None:
    with pytest.raises(Invalid):
        await store.stat(digest)


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
