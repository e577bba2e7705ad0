"""The settings of calls between processes: who is where, who is who, and by which certificates. Knows no database."""

from pathlib import Path

from pydantic import SecretStr, model_validator

from libs.rpc.identity import Signer, Verifier, is_pair, public_key_of
from libs.settings import Block


class PeerSettings(Block):
    """gRPC addresses of the services: "unix:/path" or "host:port"; calls are spread over all that a host's name stands for."""

    accounts: str = ""
    data: str = ""
    compute: str = ""
    training: str = ""
    deployment: str = ""
    marketplace: str = ""


class IdentitySettings(Block):
    """Ed25519 keys in PEM by which services know who calls: the process's own, and by service the public ones of its callers.

    Without public keys all processes share one private key: a caller is known to be of the platform, not to be the one it says.
    """

    private_key: SecretStr = SecretStr("")
    public_keys: dict[str, str] = {}

    def signer(self, service: str) -> Signer:
        """Signs as `service`. Raises ValueError in words without a key, or with another one than its callers know."""
        private = self.private_key.get_secret_value()
        signer = Signer(private, service)
        known = self.public_keys.get(service)
        if known is not None and not is_pair(private, known, service):
            raise ValueError(
                f"the private key of {service} (IDENTITY__PRIVATE_KEY) does not belong to its public one (IDENTITY__PUBLIC_KEYS)"
            )
        return signer

    def verifier(self) -> Verifier:
        """Knows the callers."""
        return Verifier(self.public_keys or public_key_of(self.private_key.get_secret_value()))


class TlsSettings(Block):
    """Files in PEM: the authority that signs every process's certificate, this process's certificate and its key.

    Set, calls over TCP are encrypted and either side has to show a certificate; read again when they change. Unset: in the clear.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @model_validator(mode="after")
    def _all_or_none(self) -> "TlsSettings":
        missing = [name for name in type(self).model_fields if not getattr(self, name)]
        if self and missing:
            raise ValueError(f"of ca_file, cert_file and key_file all are needed or none; {', '.join(missing)} is missing")
        return self

    def __bool__(self) -> bool:
        return bool(self.ca_file or self.cert_file or self.key_file)

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """Authority, certificate, key."""
        return Path(self.ca_file), Path(self.cert_file), Path(self.key_file)
