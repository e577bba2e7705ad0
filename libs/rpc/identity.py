"""Who calls: short-lived signed tokens by which services know each other, and on whose behalf they speak.

Knows keys and tokens; not what anybody may do (server.py) nor where API keys are kept (accounts).
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar, cast

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from libs.errors import Unauthenticated

LIFETIME_SECONDS = 300
# Clocks of two machines may differ by this much.
LEEWAY_SECONDS = 30
# Tokens kept on either side; one is about 300 bytes.
CACHE_SIZE = 4096
_AUDIENCE = "lepton"
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Identity:
    """Which service calls, and on whose behalf; all but `service` is empty when nobody is behind it. `role` is a common.v1.Role."""

    service: str
    workspace: str = ""
    member: str = ""
    role: int = 0
    key_id: str = ""


NOBODY = Identity("")


class Signer:
    """Makes tokens as `service` with the platform's Ed25519 key."""

    def __init__(self, private_key_pem: str, service: str) -> None:
        if not private_key_pem:
            raise ValueError("no identity key is given: every service needs the platform's Ed25519 key (IDENTITY__PRIVATE_KEY), in PEM")
        self.service = service
        self._key = cast(Ed25519PrivateKey, load_pem_private_key(private_key_pem.encode(), password=None))
        self._cache: OrderedDict[Identity, tuple[str, float]] = OrderedDict()

    def sign(self, behalf: Identity = NOBODY) -> str:
        """A token of at least half its lifetime, for this service on behalf of whom `behalf` names (its `service` is ignored)."""
        now = time.time()
        cached = self._cache.get(behalf)
        if cached is not None and cached[1] > now:
            return cached[0]
        claims = {
            "iss": self.service,
            "aud": _AUDIENCE,
            "exp": int(now) + LIFETIME_SECONDS,
            "ws": behalf.workspace,
            "sub": behalf.member,
            "role": behalf.role,
            "key": behalf.key_id,
        }
        token = jwt.encode(claims, self._key, algorithm="EdDSA")
        _remember(self._cache, behalf, (token, now + LIFETIME_SECONDS / 2))
        return token


class Verifier:
    """Knows the platform's tokens by its public key."""

    def __init__(self, public_key_pem: str) -> None:
        self._key = cast(Ed25519PublicKey, load_pem_public_key(public_key_pem.encode()))
        self._cache: OrderedDict[str, tuple[Identity, float]] = OrderedDict()

    def verify(self, token: str) -> Identity:
        """Raises Unauthenticated for a token that is not the platform's or too old."""
        cached = self._cache.get(token)
        if cached is not None:
            if cached[1] > time.time():
                return cached[0]
            del self._cache[token]
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=["EdDSA"],
                audience=_AUDIENCE,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated("the caller's service token is not valid") from error
        identity = Identity(claims["iss"], claims["ws"], claims["sub"], claims["role"], claims["key"])
        _remember(self._cache, token, (identity, claims["exp"] + LEEWAY_SECONDS))
        return identity


def generate_key() -> tuple[str, str]:
    """A new (private, public) pair in PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return private, public_key_of(private)


def public_key_of(private_key_pem: str) -> str:
    """The PEM that others verify by."""
    key = cast(Ed25519PrivateKey, load_pem_private_key(private_key_pem.encode(), password=None))
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _remember(cache: "OrderedDict[K, V]", key: K, value: V) -> None:
    cache[key] = value
    if len(cache) > CACHE_SIZE:
        cache.popitem(last=False)
