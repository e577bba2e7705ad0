"""Who calls: the API key of every request, but for a short list of public paths.

Knows keys only as SHA-256, and never logs them. What a role may do is said by the methods and enforced by the services.
"""

import hashlib

from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lepton.accounts.v1 import accounts_service_pb2
from lepton.common.v1 import options_pb2
from libs.errors import Forbidden, Unauthenticated
from libs.rpc import Call, Client, Identity, acting
from libs.rpc.names import enum_name_by_number
from libs.telemetry import WORKSPACE
from services.gateway.limits import RateLimits
from services.gateway.problems import Problems
from services.gateway.remembered import Remembered

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
KNOWN_SECONDS = 2.0
STALE_SECONDS = 300.0
_LONGEST_KEY = 512
_HOW = "send `Authorization: Bearer KEY` with an API key; `lepton up` prints the first one, POST /v1/api-keys makes more"


class Authenticator:
    """Asks accounts who a key belongs to, and remembers the answer for a moment; known keys stay known while accounts cannot be reached."""

    def __init__(self, accounts: Client) -> None:
        self._accounts = accounts
        self._known: Remembered[bytes, Identity | Unauthenticated] = Remembered(
            self._ask, fresh_seconds=KNOWN_SECONDS, stale_seconds=STALE_SECONDS
        )

    async def identify(self, key: str) -> Identity:
        """Raises Unauthenticated for a key that is unknown or revoked."""
        digest = hashlib.sha256(key.encode()).digest()
        known = await self._known.get(digest)
        if isinstance(known, Unauthenticated):
            raise Unauthenticated(known.detail)
        return known

    def forget(self) -> None:
        """After a key was revoked or a member removed: what is remembered, or being asked right now, may be wrong."""
        self._known.clear()

    async def _ask(self, digest: bytes) -> Identity | Unauthenticated:
        try:
            with acting(Call()):
                found = await self._accounts.Authenticate(accounts_service_pb2.AuthenticateRequest(key_sha256=digest))
        except Unauthenticated:
            return Unauthenticated(f"the API key is unknown or revoked; {_HOW}")
        return Identity("", found.workspace, found.member, found.role, found.api_key_id)


class Authentication:
    """ASGI middleware: default-deny over every path, then the workspace's rate limit, then the caller as the current call."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, rates: RateLimits, problems: Problems) -> None:
        self._app = app
        self._authenticator = authenticator
        self._rates = rates
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        identity = await self._authenticator.identify(_key(scope))
        trace.get_current_span().set_attribute(WORKSPACE, identity.workspace)
        headers, refused = self._rates.hit(identity.workspace, scope["path"])
        if refused is not None:
            await self._problems.response(scope, refused, headers=headers)(scope, receive, send)
            return
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]

        async def send_with_rates(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *raw_headers]}
            await send(message)

        with acting(Call(identity)):
            await self._app(scope, receive, send_with_rates)


def require_role(identity: Identity, role: int) -> None:
    """Before work that only the service behind would refuse, such as receiving an upload."""
    if identity.role < role:
        names = enum_name_by_number(options_pb2.Role.DESCRIPTOR)
        have, needed = names.get(identity.role, "none"), names[role]
        raise Forbidden(
            f"this needs the role {needed} or higher in workspace {identity.workspace}; the key has the role {have}",
            meta={"role": have, "needed": needed},
        )


def _key(scope: Scope) -> str:
    keys = set()
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, credentials = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() != "bearer" or not credentials.strip():
                raise Unauthenticated(f"the Authorization header is not of the kind Bearer; {_HOW}")
            keys.add(credentials.strip())
        elif name == b"x-api-key":
            keys.add(value.decode("latin-1").strip())
    if not keys:
        raise Unauthenticated(f"there is no API key; {_HOW}")
    if len(keys) > 1:
        raise Unauthenticated("there are several API keys; send one")
    key = keys.pop()
    if not key or len(key) > _LONGEST_KEY:
        raise Unauthenticated(f"the API key is unknown or revoked; {_HOW}")
    return key
