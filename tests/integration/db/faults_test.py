"""PostgreSQL away, cut off, restarted, full, frozen or behind TLS: every unit has committed or said Transient, and on it goes."""

import asyncio
import io
import ipaddress
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import URL, insert, select, text
from testcontainers.core.container import DockerContainer

from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.db import Database, DatabaseTlsSettings
from libs.db.infrastructure import metadata as infrastructure
from libs.db.infrastructure import outbox
from libs.errors import AppError, Invalid, Transient
from libs.events import Event
from tests.backends import container
from tests.postgres import ENVIRONMENT, connected, new_database, run, settings_of, url_at, wait_until_it_answers

tables = sa.MetaData()
things = sa.Table("things", tables, sa.Column("name", sa.String, primary_key=True))
EVENT = Event.of(DatasetVersionReady(version=DatasetVersion(number=1)), key="acme/iris")


async def with_tables(url: URL) -> Database:
    database = Database(settings_of(url))
    async with database.migration() as connection:
        await connection.run_sync(infrastructure.create_all)
        await connection.run_sync(tables.create_all)
    return database


async def add(database: Database, name: str) -> None:
    async with database.unit() as unit:
        await unit.session.execute(insert(things).values(name=name))
        await unit.emit(EVENT)


async def names(database: Database) -> set[str]:
    async with database.read() as session:
        return set((await session.execute(select(things.c.name))).scalars())


class Wire:
    """A TCP port before a server whose own may change: it can be cut."""

    def __init__(self) -> None:
        self.target: tuple[str, int] = ("", 0)
        self.port = 0
        self._ends: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        # Its ends see it.
        await asyncio.sleep(0.1)

    def cut(self) -> None:
        """What is on its way is lost, in both directions."""
        for end in list(self._ends):
            end.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._ends.add(writer)
        with suppress(OSError):
            there, back = await asyncio.open_connection(*self.target)
            ends.add(back)
            self._ends.add(back)
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        for end in ends:
            end.transport.abort()
        self._ends -= ends


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@pytest.fixture
def breakable() -> Iterator[DockerContainer]:
    """A server of this test alone."""
    with container("postgres", 5432, ENVIRONMENT) as (docker, address):
        wait_until_it_answers(url_at(address))
        yield docker


def address_of(docker: DockerContainer) -> tuple[str, int]:
    return docker.get_container_host_ip(), int(docker.get_exposed_port(5432))


async def test_every_unit_commits_or_says_transient_whatever_happens_to_the_server(breakable: DockerContainer) -> None:
    wire = Wire()
    wire.target = address_of(breakable)
    await wire.start()
    url = url_at(f"127.0.0.1:{wire.port}")
    databases = [await with_tables(url), Database(settings_of(url))]
    committed: set[str] = set()
    unknown: set[str] = set()
    running = True

    async def work(worker: int) -> None:
        number = 0
        while running:
            number += 1
            name = f"{worker}-{number}"
            try:
                await add(databases[worker % 2], name)
                committed.add(name)
            except Transient:
                unknown.add(name)
                await asyncio.sleep(0.01)

    async def read() -> None:
        while running:
            with suppress(Transient):
                await names(databases[0])
            await asyncio.sleep(0.02)

    async def again(since: float) -> float:
        """Seconds until both databases have written again."""
        for database in databases:
            while True:
                with suppress(Transient):
                    await add(database, f"again-{time.monotonic()}")
                    break
                await asyncio.sleep(0.02)
        return time.monotonic() - since

    tasks = [asyncio.create_task(work(worker)) for worker in range(8)] + [asyncio.create_task(read())]
    docker = breakable.get_wrapped_container()
    for _ in range(20):
        await asyncio.sleep(0.05)
        wire.cut()
    assert await again(time.monotonic()) < 5
    for end in (docker.kill, docker.stop):
        await asyncio.sleep(0.5)
        before = len(committed)
        await asyncio.to_thread(end)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(docker.start)
        wire.target = address_of(breakable)
        await asyncio.to_thread(wait_until_it_answers, url_at("{}:{}".format(*wire.target)))
        assert await again(time.monotonic()) < 5
        await asyncio.sleep(0.3)
        assert len(committed) > before
    running = False
    await asyncio.gather(*tasks)

    stored = {name for name in await names(databases[1]) if not name.startswith("again")}
    assert unknown, "no fault was met"
    assert committed <= stored <= committed | unknown
    admin = await connected(url)
    assert await admin.fetchval("SELECT count(*) FROM outbox") == await admin.fetchval("SELECT count(*) FROM things")
    await admin.close()
    for database in databases:
        await database.stop()
    await wire.stop()


@pytest.fixture
async def database(postgres: URL) -> AsyncIterator[Database]:
    async with new_database(postgres) as url:
        database = await with_tables(url)
        yield database
        await database.stop()


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("53100", "storage_full"),
        ("25006", "unavailable"),
        ("40001", "unavailable"),
        ("40P01", "unavailable"),
        ("53300", "unavailable"),
        ("55P03", "unavailable"),
        ("57014", "unavailable"),
        ("58030", "unavailable"),
    ],
)
async def test_what_the_server_says_becomes_the_platforms_words(database: Database, state: str, code: str) -> None:
    with pytest.raises(AppError) as refused:
        async with database.unit() as unit:
            await unit.emit(EVENT)
            await unit.session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$"))
    assert refused.value.code == code
    await add(database, "after")
    async with database.read() as session:
        assert len((await session.execute(select(outbox))).all()) == 1


async def test_a_text_that_cannot_be_stored_is_the_callers_mistake(database: Database) -> None:
    with pytest.raises(Invalid, match="NUL"):
        await add(database, "a\0b")


async def test_a_read_writes_nothing(database: Database) -> None:
    with pytest.raises(AppError, match="read-only"):
        async with database.read() as session:
            await session.execute(insert(things).values(name="a"))
    assert await names(database) == set()


async def test_connections_that_the_server_closed_are_replaced_unseen(postgres: URL, database: Database) -> None:
    await asyncio.gather(*(names(database) for _ in range(8)))
    await add(database, "a")
    name = database.settings.url.rsplit("/", 1)[-1]
    await run(postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    await asyncio.sleep(0.1)
    await asyncio.gather(*(names(database) for _ in range(8)))
    await add(database, "b")
    assert await names(database) == {"a", "b"}


@pytest.mark.slow
async def test_a_writer_that_froze_holds_the_others_no_longer_than_half_a_minute(database: Database) -> None:
    frozen = Database(database.settings)

    async def freeze() -> None:
        async with frozen.unit() as unit:
            await unit.session.execute(insert(things).values(name="frozen"))
            await asyncio.sleep(40)

    freezing = asyncio.create_task(freeze())
    await asyncio.sleep(1)
    began = time.monotonic()
    with pytest.raises(Transient, match="others were writing for too long"):
        await add(database, "a")
    assert await asyncio.wait_for(names(database), 1) == set()
    await add(database, "b")
    assert time.monotonic() - began < 30
    with pytest.raises(Transient):
        await freezing
    assert await names(database) == {"b"}
    await frozen.stop()


def certificates(host: str) -> dict[str, bytes]:
    """An authority, and a server's key and certificate from it."""
    now = datetime.now(UTC)

    def signed(name: str, key: ec.EllipticCurvePrivateKey, by: str, with_key: ec.EllipticCurvePrivateKey, is_authority: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        return builder.sign(with_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "ca.pem": signed("authority", authority, "authority", authority, True),
        "server.crt": signed("server", server, "authority", authority, False),
        "server.key": server.private_bytes(*form),
    }


async def test_tls_proves_the_server(breakable: DockerContainer, tmp_path: Path) -> None:
    host, port = address_of(breakable)
    mine, anothers = certificates(host), certificates(host)
    (tmp_path / "ca.pem").write_bytes(mine["ca.pem"])
    (tmp_path / "another.pem").write_bytes(anothers["ca.pem"])
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("server.crt", "server.key"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(mine[name]), 0o644
            tar.addfile(entry, io.BytesIO(mine[name]))
    docker = breakable.get_wrapped_container()
    docker.put_archive("/tmp", archive.getvalue())
    assert docker.exec_run("sh -c 'chown postgres /tmp/server.* && chmod 600 /tmp/server.key'", user="root").exit_code == 0
    url = url_at(f"{host}:{port}")
    await run(
        url,
        "ALTER SYSTEM SET ssl_cert_file = '/tmp/server.crt'",
        "ALTER SYSTEM SET ssl_key_file = '/tmp/server.key'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    )
    encrypted = Database(settings_of(url, tls=DatabaseTlsSettings(ca_file=str(tmp_path / "ca.pem"))))
    await encrypted.start()
    async with encrypted.read() as session:
        assert (await session.execute(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))).scalar() is True
    await encrypted.stop()
    deceived = Database(settings_of(url, tls=DatabaseTlsSettings(ca_file=str(tmp_path / "another.pem")), start_seconds=0))
    with pytest.raises(Transient):
        await deceived.start()
