"""Processes that know each other by certificates: who gets in, and what happens when certificates change."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub
from libs.errors import Transient, Unauthenticated
from libs.rpc import Client, Signer, TlsSettings, acting_for, generate_key
from libs.rpc.tls import LOOK_SECONDS
from tests.integration.rpc.scene import Authority, Compute, get, server_of

PRIVATE, PUBLIC = generate_key()


@asynccontextmanager
async def serving(tls: TlsSettings | None, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = server_of(Compute(), listen, PUBLIC, tls)
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop(0)


@asynccontextmanager
async def client_of(address: str, tls: TlsSettings | None, private_key: str = PRIVATE) -> AsyncIterator[Client]:
    client = Client(ComputeServiceStub, address, Signer(private_key, "gateway"), tls=tls)
    try:
        with acting_for("acme"):
            yield client
    finally:
        await client.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_both_show_a_certificate_and_the_caller_still_needs_its_token(authority: Authority) -> None:
    async with serving(authority.issue("compute")) as address:
        async with client_of(address, authority.issue("training")) as client:
            assert (await client.GetAllocation(get())).workspace == "acme"
            assert await client.ready(5)
        async with client_of(address, authority.issue("training"), generate_key()[0]) as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.GetAllocation(get())


async def test_who_is_kept_out(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    strange = other.issue("stranger")
    own = authority.issue("training")
    async with serving(authority.issue("compute")) as address:
        mixed = TlsSettings(ca_file=own.ca_file, cert_file=strange.cert_file, key_file=strange.key_file)
        for tls in (None, strange, mixed):
            async with client_of(address, tls) as client:
                with pytest.raises(Transient, match="the compute service cannot be reached"):
                    await client.GetAllocation(get(), timeout=2)
        # Who has no certificate sees not even whether it serves.
        trusting = grpc.ssl_channel_credentials(_bytes_of(own.ca_file))
        async with grpc.aio.secure_channel(address, trusting) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_is_somebody_else_is_not_talked_to(authority: Authority, tmp_path: Path) -> None:
    for tls in (authority.issue("elsewhere", "127.0.0.9"), Authority(tmp_path, "other").issue("false"), None):
        async with serving(tls) as address, client_of(address, authority.issue("training")) as client:
            with pytest.raises(Transient):
                await client.GetAllocation(get(), timeout=2)


async def test_a_socket_in_a_folder_needs_none(authority: Authority, tmp_path: Path) -> None:
    tls = authority.issue("compute")
    async with serving(tls, f"unix:{tmp_path}/s") as address, client_of(address, tls) as client:
        assert (await client.GetAllocation(get())).workspace == "acme"
    async with serving(tls, f"unix:{tmp_path}/s"):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


async def test_certificates_that_change_are_taken_up_without_a_failed_call(authority: Authority, tmp_path: Path) -> None:
    compute, training = authority.issue("compute"), authority.issue("training")
    async with serving(compute) as address, client_of(address, training) as client:
        await client.GetAllocation(get())
        # A new authority: while it comes in both are trusted, then the old one is gone.
        new = Authority(tmp_path, "new")
        old_pem, new_pem = authority.file.read_bytes(), new.file.read_bytes()

        async def calls_go_on() -> None:
            for _ in range(10):
                await client.GetAllocation(get())
                await asyncio.sleep(LOOK_SECONDS / 4)

        authority.file.write_bytes(old_pem + new_pem)
        await calls_go_on()
        for name in ("compute", "training"):
            new.issue(name)
        await calls_go_on()
        authority.file.write_bytes(new_pem)
        await calls_go_on()
        fresh = TlsSettings(ca_file=str(new.file), cert_file=training.cert_file, key_file=training.key_file)
        async with client_of(address, fresh) as another:
            await another.GetAllocation(get())
        # Whoever still has a certificate of the old authority is out.
        authority.file.write_bytes(old_pem)
        left = authority.issue("left")
        authority.file.write_bytes(new_pem)
        trusts_new = TlsSettings(ca_file=str(new.file), cert_file=left.cert_file, key_file=left.key_file)
        async with client_of(address, trusts_new) as late:
            with pytest.raises(Transient):
                await late.GetAllocation(get(), timeout=2)


async def test_files_that_are_half_written_change_nothing(authority: Authority) -> None:
    compute, training = authority.issue("compute"), authority.issue("training")
    async with serving(compute) as address, client_of(address, training) as client:
        await client.GetAllocation(get())
        key = _bytes_of(compute.key_file).decode()
        with structlog.testing.capture_logs() as logs:
            for tls in (compute, training):
                _cut(tls.key_file)
            await asyncio.sleep(LOOK_SECONDS * 1.1)
            await client.GetAllocation(get())
            async with client_of(address, authority.issue("data")) as another:
                await another.GetAllocation(get())
        assert {entry["event"] for entry in logs} == {"certificates_unusable"}
        assert not any(key[30:60] in str(entry) for entry in logs)


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "key_file"])
async def test_files_that_cannot_be_are_named_at_the_start(authority: Authority, tmp_path: Path, field: str) -> None:
    good = authority.issue("compute")
    other = authority.issue("other")
    empty = tmp_path / "empty"
    empty.write_text("")
    bad = [str(empty), str(tmp_path / "nowhere"), *([other.key_file] if field == "key_file" else [])]
    for path in bad:
        tls = good.model_copy(update={field: path})
        with pytest.raises(ValueError, match=path):
            await server_of(Compute(), "127.0.0.1:0", PUBLIC, tls).start()
        with pytest.raises(ValueError, match=path):
            Client(ComputeServiceStub, "127.0.0.1:1", Signer(PRIVATE, "gateway"), tls=tls)


def _bytes_of(path: str) -> bytes:
    return Path(path).read_bytes()


def _cut(path: str) -> None:
    Path(path).write_bytes(_bytes_of(path)[:60])
