"""A broker that wants TLS, a login or both; who comes otherwise is not let in, and no password is said aloud."""

import ipaddress
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import SecretStr

from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.errors import Transient
from libs.events import EventLogSettings, topic_of
from libs.events import kafka as module
from tests.integration.events.scene import event_log, ready
from tests.kafka import Broker, broker

LOGIN = "org.apache.kafka.common.security"
PASSWORD = "correct-horse"


@dataclass(frozen=True)
class Authority:
    """Signs for the broker and its clients; the files lie in `folder`."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, folder: Path) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        made = cls(folder, key, builder.sign(key, hashes.SHA256()))
        (folder / "ca.pem").write_bytes(made.certificate.public_bytes(serialization.Encoding.PEM))
        return made

    def sign(self, name: str) -> None:
        """`name`.pem and `name`.key, and both in one file for Kafka."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            _builder(subject, self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.folder / f"{name}.pem").write_bytes(certificate)
        (self.folder / f"{name}.key").write_bytes(private)
        (self.folder / f"{name}.both").write_bytes(private + certificate)
        for file in self.folder.iterdir():
            # The broker's user is another one.
            file.chmod(0o644)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("certificates")
    folder.chmod(0o755)
    authority = Authority.new(folder)
    authority.sign("broker")
    authority.sign("client")
    return authority


TLS = {
    "KAFKA_SSL_KEYSTORE_TYPE": "PEM",
    "KAFKA_SSL_KEYSTORE_LOCATION": "/files/broker.both",
    "KAFKA_SSL_TRUSTSTORE_TYPE": "PEM",
    "KAFKA_SSL_TRUSTSTORE_LOCATION": "/files/ca.pem",
}


@pytest.fixture(scope="module")
def tls_and_login(authority: Authority) -> Iterator[Broker]:
    plain = f'{LOGIN}.plain.PlainLoginModule required user_lepton="{PASSWORD}";'
    environment = {
        **TLS,
        "KAFKA_SASL_ENABLED_MECHANISMS": "PLAIN,SCRAM-SHA-512",
        "KAFKA_LISTENER_NAME_CLIENTS_PLAIN_SASL_JAAS_CONFIG": plain,
        "KAFKA_LISTENER_NAME_CLIENTS_SCRAM___SHA___512_SASL_JAAS_CONFIG": f"{LOGIN}.scram.ScramLoginModule required;",
    }
    with broker(protocol="SASL_SSL", environment=environment, files=authority.folder) as started:
        add = f"--alter --entity-type users --entity-name scrammer --add-config 'SCRAM-SHA-512=[password={PASSWORD}]'"
        command = f"java -cp '/opt/kafka/libs/*' kafka.admin.ConfigCommand --bootstrap-server localhost:9094 {add}"
        done = started.container.exec_run(["bash", "-c", command])
        assert done.exit_code == 0, done.output
        yield started


@pytest.fixture(scope="module")
def mutual_tls(authority: Authority) -> Iterator[Broker]:
    with broker(protocol="SSL", environment={**TLS, "KAFKA_SSL_CLIENT_AUTH": "required"}, files=authority.folder) as started:
        yield started


async def goes_round(settings: EventLogSettings, own: str) -> None:
    """Topics, a producer, a group and its lag: every kind of client is let in."""
    async with event_log(settings) as log:
        event = ready(own, 1)
        await log.publish([event])
        subscription = log.subscribe(own, [topic_of(DatasetVersionReady)])
        received = await subscription.poll(100, 5)
        assert event in [item.event for item in received]
        await subscription.commit(received)
        assert await subscription.lag() == 0


async def is_refused(settings: EventLogSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.0)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Transient, match="no Kafka broker") as refused:
        async with event_log(settings):
            raise AssertionError("let in")
    assert PASSWORD not in f"{refused.value!r}{caplog.text}{settings!r}"


def with_login(broker: Broker, authority: Authority, **others: Any) -> EventLogSettings:
    settings = {"username": "lepton", "password": SecretStr(PASSWORD), "mechanism": "PLAIN", "ca_file": str(authority.folder / "ca.pem")}
    return EventLogSettings(url=broker.url, **{**settings, **others})


@pytest.mark.parametrize("login", [{"mechanism": "PLAIN"}, {"mechanism": "SCRAM-SHA-512", "username": "scrammer"}])
async def test_a_login_over_tls(tls_and_login: Broker, authority: Authority, own: str, login: dict[str, str]) -> None:
    await goes_round(with_login(tls_and_login, authority, **login), own)


async def test_a_certificate_of_ones_own(mutual_tls: Broker, authority: Authority, own: str) -> None:
    folder = authority.folder
    files = {"ca_file": str(folder / "ca.pem"), "cert_file": str(folder / "client.pem"), "key_file": str(folder / "client.key")}
    await goes_round(EventLogSettings(url=mutual_tls.url, **files), own)


@pytest.mark.parametrize("wrong", ["password", "mechanism", "authority", "nothing"])
async def test_who_comes_otherwise_is_not_let_in(
    tls_and_login: Broker,
    authority: Authority,
    wrong: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Authority.new(tmp_path)
    settings = {
        "password": with_login(tls_and_login, authority, password=SecretStr(f"{PASSWORD}-not")),
        "mechanism": with_login(tls_and_login, authority, mechanism="SCRAM-SHA-512"),
        "authority": with_login(tls_and_login, authority, ca_file=str(tmp_path / "ca.pem")),
        "nothing": EventLogSettings(url=tls_and_login.url),
    }
    await is_refused(settings[wrong], monkeypatch, caplog)


async def test_no_certificate_is_not_enough(
    mutual_tls: Broker, authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await is_refused(EventLogSettings(url=mutual_tls.url, ca_file=str(authority.folder / "ca.pem")), monkeypatch, caplog)
