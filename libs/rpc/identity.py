"""Who calls: short-lived signed tokens by which services know each other, and on whose behalf they speak.

Knows keys and tokens; not what anybody may do (server.py) nor where API keys are kept (accounts).
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from lepton.common.v1 import options_pb2
from libs.errors import Unauthenticated

# Signed for so long, and for as much longer as the clocks of two machines may differ: a minute together.
LIFETIME_SECONDS = 50
LEEWAY_SECONDS = 10
# The longest one that a service makes has some 900 bytes.
MAX_TOKEN_BYTES = 4096
# Tokens kept on either side.
CACHE_SIZE = 4096
# The one service that asks members for their keys: of nobody else is it believed who they are and what their role is.
GATEWAY = "gateway"
# Any other service reads in the workspace it works for, and calls what is for services only.
SERVICE_ROLE = options_pb2.ROLE_VIEWER
_PEM_END = "-----END PUBLIC KEY-----"
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
    """Makes tokens as `service` with its Ed25519 key."""

    def __init__(self, private_key_pem: str, service: str) -> None:
        if not private_key_pem:
            raise ValueError(f"no identity key is given: {service} needs its Ed25519 key (IDENTITY__PRIVATE_KEY), in PEM")
        self.service = service
        self._key = _private_key(private_key_pem)
        self._cache: OrderedDict[tuple[str, Identity], tuple[str, float]] = OrderedDict()

    def sign(self, behalf: Identity, audience: str) -> str:
        """A token of at least half its lifetime that only `audience` takes, the full name of a gRPC service.

        It names the workspace of `behalf`; the member, role and key too where this is the gateway.
        """
        now = time.time()
        if self.service != GATEWAY:
            behalf = Identity("", behalf.workspace)
        cached = self._cache.get((audience, behalf))
        if cached is not None and cached[1] > now:
            return cached[0]
        claims: dict[str, str | int] = {"iss": self.service, "aud": audience, "exp": int(now) + LIFETIME_SECONDS, "ws": behalf.workspace}
        if self.service == GATEWAY:
            claims |= {"sub": behalf.member, "role": behalf.role, "key": behalf.key_id}
        token = jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self.service})
        _remember(self._cache, (audience, behalf), (token, now + LIFETIME_SECONDS / 2))
        return token


class Verifier:
    """Knows the tokens of services by their public keys in PEM: a mapping by service, or one key that all of them share.

    While a service changes its key, both stand under its name, one after the other.
    """

    def __init__(self, public_keys: str | Mapping[str, str]) -> None:
        self._shared = _public_keys(public_keys, "the platform") if isinstance(public_keys, str) else []
        self._keys = {} if isinstance(public_keys, str) else {name: _public_keys(pem, name) for name, pem in public_keys.items()}
        self._cache: OrderedDict[tuple[str, str], tuple[Identity, float]] = OrderedDict()

    def verify(self, token: str, audience: str) -> Identity:
        """Raises Unauthenticated for a token that no service known here made, that is not for `audience`, or too old."""
        cached = self._cache.get((audience, token))
        if cached is not None:
            if cached[1] > time.time():
                return cached[0]
            del self._cache[audience, token]
        try:
            identity, expires = self._read(token, audience)
        except Exception as error:  # Whatever a stranger's bytes do to a parser.
            raise Unauthenticated("the caller's service token is not valid") from error
        _remember(self._cache, (audience, token), (identity, expires))
        return identity

    def _read(self, token: str, audience: str) -> tuple[Identity, float]:
        if len(token) > MAX_TOKEN_BYTES:
            raise jwt.InvalidTokenError("too long")
        issuer = jwt.get_unverified_header(token).get("kid", "")
        claims = self._claims(token, audience, issuer)
        expires = claims["exp"] + LEEWAY_SECONDS
        if not 0 < expires - time.time() <= LIFETIME_SECONDS + 2 * LEEWAY_SECONDS:
            raise jwt.InvalidTokenError("too old, or made for longer than services do")
        return _identity(issuer, claims), expires

    def _claims(self, token: str, audience: str, issuer: str) -> dict[str, Any]:
        for key in self._keys.get(issuer, self._shared):
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=["EdDSA"],
                    audience=audience,
                    issuer=issuer,
                    leeway=LEEWAY_SECONDS,
                    options={"require": ["exp", "iss", "aud"], "strict_aud": True, "verify_exp": False},
                )
            except jwt.InvalidSignatureError:
                continue
        raise jwt.InvalidTokenError("signed by none of the issuer's keys")


def _identity(issuer: str, claims: Mapping[str, Any]) -> Identity:
    """What the token may say: a service that is not the gateway names a workspace and no more."""
    allowed = {"ws": str, "sub": str, "role": int, "key": str} if issuer == GATEWAY else {"ws": str}
    told = {name: value for name, value in claims.items() if name not in ("iss", "aud", "exp")}
    if told.keys() != allowed.keys() or any(type(told[name]) is not kind for name, kind in allowed.items()):
        raise jwt.InvalidTokenError(f"{issuer} may say {', '.join(allowed)}")
    if issuer == GATEWAY:
        return Identity(issuer, told["ws"], told["sub"], told["role"], told["key"])
    return Identity(issuer, told["ws"], role=SERVICE_ROLE if told["ws"] else 0)


def generate_key() -> tuple[str, str]:
    """A new (private, public) pair in PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return private, public_key_of(private)


def public_key_of(private_key_pem: str) -> str:
    """The PEM that others verify by."""
    return _private_key(private_key_pem).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def is_pair(private_key_pem: str, public_key_pems: str, whose: str) -> bool:
    """Whether the private key's public one is among those."""
    return _private_key(private_key_pem).public_key() in _public_keys(public_key_pems, whose)


def _private_key(pem: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not chained: what the parser says may quote what it read.
        raise ValueError("the identity key (IDENTITY__PRIVATE_KEY) is no private key in PEM without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("the identity key (IDENTITY__PRIVATE_KEY) is not an Ed25519 key")
    return key


def _public_keys(pems: str, whose: str) -> list[Ed25519PublicKey]:
    """Of one PEM, or several one after the other."""
    keys = []
    for pem in pems.split(_PEM_END)[:-1]:
        try:
            key = load_pem_public_key((pem.lstrip() + _PEM_END).encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"the public key of {whose} (IDENTITY__PUBLIC_KEYS) is none in PEM") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"the public key of {whose} (IDENTITY__PUBLIC_KEYS) is not an Ed25519 key")
        keys.append(key)
    if not keys:
        raise ValueError(f"the public key of {whose} (IDENTITY__PUBLIC_KEYS) is none in PEM")
    return keys


def _remember(cache: "OrderedDict[K, V]", key: K, value: V) -> None:
    cache[key] = value
    if len(cache) > CACHE_SIZE:
        cache.popitem(last=False)
