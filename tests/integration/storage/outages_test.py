"""The store goes away, falls silent or refuses: callers hear it in words and in time, nothing is half there, and later it works again."""

import asyncio
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from libs.errors import AppError, Transient
from libs.storage import StorageSettings, digest_of, open_store
from libs.storage.s3_bucket import Bucket
from tests.backends import until
from tests.platform import free_port
from tests.s3 import SECRET_KEY, S3Server

MIB = 1 << 20


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def files(folder: Path) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names]


async def test_a_store_that_falls_silent_during_a_put(own_minio: S3Server) -> None:
    store = open_store(own_minio.settings(read_seconds=2), "tests")
    silent = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(10 * MIB)
        await silent.wait()
        yield bytes(40 * MIB)

    putting = asyncio.create_task(store.put(chunks()))
    await asyncio.sleep(1)
    with own_minio.paused():
        began = time.monotonic()
        silent.set()
        with pytest.raises(Transient, match="does not answer in time"):
            await putting
        assert time.monotonic() - began < 30
    assert [digest async for digest, _ in store.list()] == []
    assert (await store.put(stream(bytes(50 * MIB)))).size == 50 * MIB


async def test_a_store_that_falls_silent_does_not_hold_the_event_loop(own_minio: S3Server) -> None:
    store = open_store(own_minio.settings(read_seconds=2), "tests")
    digest = (await store.put(stream(b"x"))).digest
    with own_minio.paused():
        asked = [asyncio.create_task(store.stat(digest)) for _ in range(30)]
        late = 0.0
        for _ in range(20):
            began = time.monotonic()
            await asyncio.sleep(0.05)
            late = max(late, time.monotonic() - began)
        assert late < 1.0
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
    assert await store.stat(digest) == 1


async def test_a_store_that_dies_during_a_fetch(own_minio: S3Server, tmp_path: Path) -> None:
    store = open_store(own_minio.settings(read_seconds=5), "tests")
    source = tmp_path / "source"
    with source.open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(MIB))
    stored = await store.put_file(source)
    fetching = asyncio.create_task(store.fetch(stored.digest, tmp_path / "target" / "file"))
    await asyncio.to_thread(until, lambda: files(tmp_path / "target"), "the first byte")
    own_minio.stop()
    try:
        with pytest.raises(Transient, match=r"cannot be reached|broke the connection|does not answer"):
            await fetching
        assert files(tmp_path / "target") == []
        with pytest.raises(Transient):
            await store.stat(stored.digest)
    finally:
        await asyncio.to_thread(own_minio.start)
    await store.fetch(stored.digest, tmp_path / "target" / "file")
    assert (tmp_path / "target" / "file").stat().st_size == stored.size


async def test_a_download_goes_on_where_the_connection_broke(own_minio: S3Server) -> None:
    store = open_store(own_minio.settings(read_seconds=2), "tests")
    data = os.urandom(60 * MIB)
    digest = (await store.put(stream(data))).digest
    chunks = store.open(digest)
    found = [await anext(chunks)]
    await asyncio.to_thread(own_minio.stop)
    await asyncio.to_thread(own_minio.start)
    found += [chunk async for chunk in chunks]
    assert digest_of(b"".join(found)) == digest


async def test_nobody_listens() -> None:
    store = open_store(settings_of(f"s3+http://127.0.0.1:{free_port()}"), "tests")
    began = time.monotonic()
    with pytest.raises(Transient, match=r"the artifact store at 127\.0\.0\.1:\d+ cannot be reached; try again"):
        await store.put(stream(b"x"))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("change", [{"secret_key": SecretStr("another-secret")}, {"access_key": "nobody"}])
@pytest.mark.parametrize("server", ["minio", "versitygw"])
async def test_a_wrong_key_is_said_and_not_shown(request: pytest.FixtureRequest, server: str, change: dict[str, object]) -> None:
    settings = request.getfixturevalue(server).settings(**change)
    store = open_store(settings, "tests")
    with pytest.raises(Transient, match=r"refuses the key .*check access_key and secret_key") as refused:
        await store.put(stream(b"x"))
    said = "".join(traceback.format_exception(refused.value)) + repr(settings) + repr(store) + str(refused.value.as_dict())
    for secret in (SECRET_KEY, "another-secret", "Signature="):
        assert secret not in said


@pytest.mark.parametrize(
    "change",
    [
        {"url": "s3://key:secret@host:9000"},
        {"url": "s3://host:9000/bucket"},
        {"url": "s3:host"},
        {"url": "s4://key:secret@host"},
        {"secret_key": SecretStr("")},
        {"access_key": ""},
        {"public_url": "host:9000"},
        {"public_url": "https://host/path"},
        {"bucket_prefix": "Not_A_Bucket-"},
    ],
)
def test_settings_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(ValueError) as refused:
        open_store(settings_of("s3+http://127.0.0.1:9").model_copy(update=change), "tests")
    assert "secret@" not in str(refused.value)


def settings_of(url: str) -> StorageSettings:
    return StorageSettings(url=url, access_key="a", secret_key=SecretStr("b"))


CLIENT = """
import asyncio, sys
from pydantic import SecretStr
from libs.storage import StorageSettings, open_store

async def endless():
    sent = 0
    while True:
        yield bytes(1 << 20)
        sent += 1
        if sent > 40:
            print("sent", flush=True)
            await asyncio.sleep(3600)

settings = StorageSettings.model_validate_json(sys.argv[1]).model_copy(update={"secret_key": SecretStr(sys.argv[2])})
asyncio.run(open_store(settings, "tests").put(endless()))
"""


@pytest.mark.parametrize("server", ["minio", "versitygw"])
async def test_a_client_that_is_killed_leaves_nothing_that_shows(request: pytest.FixtureRequest, server: str) -> None:
    server = request.getfixturevalue(server)
    settings = server.settings()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = (sys.executable, "-c", CLIENT, settings.model_dump_json(), SECRET_KEY)
    process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    await process.stdout.readuntil(b"sent\n")
    process.kill()
    await process.wait()
    store, bucket = open_store(settings, "tests"), Bucket(settings, "tests", 1)
    assert [digest async for digest, _ in store.list()] == []

    def uploads() -> list[object]:
        return server.client._list_multipart_uploads(bucket.name).uploads

    assert len(uploads()) == 1
    bucket.clear_leftovers()
    assert len(uploads()) == 1, "it may still be going on"
    await asyncio.sleep(2)
    bucket.clear_leftovers(timedelta(seconds=1))
    assert uploads() == []
    assert list(server.client.list_objects(bucket.name, recursive=True)) == []


async def test_a_broken_stream_leaves_no_parts(minio: S3Server) -> None:
    settings = minio.settings()
    store = open_store(settings, "tests")

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(30 * MIB)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(broken())
    await store.put(stream(bytes(20 * MIB)))
    name = settings.bucket_prefix + "tests"
    assert minio.client._list_multipart_uploads(name).uploads == []
    assert [found.object_name[:3] for found in minio.client.list_objects(name, recursive=True)] != []
    assert not list(minio.client.list_objects(name, prefix="incoming/", recursive=True))


async def test_a_bucket_that_is_removed_is_made_again(minio: S3Server) -> None:
    settings = minio.settings()
    store = open_store(settings, "tests")
    await store.discard((await store.put(stream(b"x"))).digest)
    minio.client.remove_bucket(settings.bucket_prefix + "tests")
    with pytest.raises(Transient, match="has no bucket"):
        await store.put(stream(b"x"))
    assert (await store.put(stream(b"x"))).size == 1


async def test_a_file_that_changes_meanwhile_is_not_stored(minio: S3Server, tmp_path: Path) -> None:
    store = open_store(minio.settings(), "tests")
    source = tmp_path / "source"
    source.write_bytes(bytes(64 * MIB))

    def scribble() -> None:
        while not putting.done():
            with source.open("r+b") as file:
                file.seek(60 * MIB)
                file.write(os.urandom(16))

    putting = asyncio.create_task(store.put_file(source))
    await asyncio.to_thread(scribble)
    with pytest.raises(AppError) as refused:
        await putting
    assert refused.value.code == "stale"
    assert [digest async for digest, _ in store.list()] == []
