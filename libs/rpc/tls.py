"""Certificates by which processes know each other: read from files, and again when the files change."""

import os
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from libs.rpc.settings import TlsSettings

# Between two looks at the files.
LOOK_SECONDS = 1.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Certificates:
    """In PEM."""

    authority: bytes
    certificate: bytes
    key: bytes


class CertificateFiles:
    """Of one server or client. Raises ValueError in words where the files cannot be used at the start; later the old ones stay in use."""

    def __init__(self, settings: TlsSettings) -> None:
        self._paths = settings.paths
        self._stamp = self._look()
        self._next_look = time.monotonic() + LOOK_SECONDS
        self.current = self._read()

    def renewed(self) -> Certificates | None:
        """The new ones, once, after the files have changed. Looks at most every second; a look is three stats."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + LOOK_SECONDS
        stamp = self._look()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            self.current = self._read()
        except ValueError as error:
            # Perhaps one of them is written and the other is about to be: then they will have changed again.
            _log.warning("certificates_unusable", error=str(error))
            return None
        _log.info("certificates_renewed", cert_file=str(self._paths[1]))
        return self.current

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]

    def _read(self) -> Certificates:
        authority, certificate, key = self._paths
        try:
            ssl.create_default_context(cafile=str(authority))
            trusted = authority.read_bytes()
        except OSError as error:
            raise ValueError(f"{authority} (TLS__CA_FILE) holds no certificates in PEM: {_why(error)}") from None
        try:
            # Of a key under a password nobody shall be asked.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
            return Certificates(trusted, certificate.read_bytes(), key.read_bytes())
        except OSError as error:
            raise ValueError(
                f"{certificate} (TLS__CERT_FILE) and {key} (TLS__KEY_FILE) are not a certificate and its key in PEM: {_why(error)}"
            ) from None


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Takes only clients whose certificate the authority signed; each handshake sees what the files hold then."""

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        found = files.renewed()
        return _configuration(found) if found else None

    return grpc.dynamic_ssl_server_credentials(_configuration(files.current), renewed, require_client_authentication=True)


def channel_credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    """Takes only a server whose certificate the authority signed for the host that was asked for."""
    return grpc.ssl_channel_credentials(certificates.authority, certificates.key, certificates.certificate)


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificates.key, certificates.certificate)], certificates.authority)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _why(error: OSError) -> str:
    """Without what the file holds."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unreadable").lower().replace("_", " ")
    return error.strerror or type(error).__name__
