"""Tokens of uploads that go to the artifact store itself: what was announced, by whom, signed here, so that nothing is kept."""

import time
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from libs.errors import NotFound
from libs.rpc import IdentitySettings, public_key_of

# Within this time a client begins; five gigabytes on a slow line then take hours. The store keeps an upload for a day.
BEGIN_SECONDS = 3600
TOKEN_SECONDS = 12 * 3600
# No service has this name: a token is none of those that services know each other by, and none of those is one.
AUDIENCE = "upload"
ISSUER = "gateway"
MAX_TOKEN_BYTES = 2048
_KINDS = {"ws": str, "id": str, "digest": str, "size": int}


@dataclass(frozen=True)
class Upload:
    """`id` is the store's; `digest` and `size` are what the client said before."""

    workspace: str
    id: str
    digest: str
    size: int


class UploadTokens:
    """Signed with the gateway's key, which its replicas share."""

    def __init__(self, identity: IdentitySettings) -> None:
        pem = identity.private_key.get_secret_value()
        self._private = load_pem_private_key(pem.encode(), password=None)
        self._public = load_pem_public_key(public_key_of(pem).encode())

    def make(self, upload: Upload) -> str:
        """For some hours."""
        claims = {"ws": upload.workspace, "id": upload.id, "digest": upload.digest, "size": upload.size}
        expires = int(time.time()) + TOKEN_SECONDS
        return jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "exp": expires, **claims}, self._private, algorithm="EdDSA")  # type: ignore[arg-type]

    def read(self, token: str, workspace: str) -> Upload:
        """Raises NotFound, in the same words whatever is wrong with it."""
        try:
            upload = self._read(token)
        except Exception as error:  # Whatever a stranger's bytes do to a parser.
            raise _unknown() from error
        if upload.workspace != workspace:
            raise _unknown()
        return upload

    def _read(self, token: str) -> Upload:
        if len(token) > MAX_TOKEN_BYTES:
            raise jwt.InvalidTokenError("too long")
        options = {"require": ["exp", "iss", "aud"], "strict_aud": True}
        claims = jwt.decode(token, self._public, algorithms=["EdDSA"], audience=AUDIENCE, issuer=ISSUER, options=options)  # type: ignore[arg-type]
        if any(type(claims.get(name)) is not kind for name, kind in _KINDS.items()):
            raise jwt.InvalidTokenError("not of this kind")
        return Upload(claims["ws"], claims["id"], claims["digest"], claims["size"])


def _unknown() -> NotFound:
    return NotFound("there is no such upload in this workspace, or it was begun too long ago; POST /v1/uploads begins one")
