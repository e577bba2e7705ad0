"""How services call each other: gRPC with identities, deadlines, validation and errors in words; and the JSON and schemas of REST."""

from libs.rpc.call import Call, acting, acting_for, current_call
from libs.rpc.client import Client
from libs.rpc.identity import Identity, Signer, Verifier, generate_key, public_key_of
from libs.rpc.problem import from_problem, to_problem
from libs.rpc.rules import check, validate
from libs.rpc.server import Server
from libs.rpc.settings import IdentitySettings, PeerSettings, TlsSettings

__all__ = [
    "Call",
    "Client",
    "Identity",
    "IdentitySettings",
    "PeerSettings",
    "Server",
    "Signer",
    "TlsSettings",
    "Verifier",
    "acting",
    "acting_for",
    "check",
    "current_call",
    "from_problem",
    "generate_key",
    "public_key_of",
    "to_problem",
    "validate",
]
