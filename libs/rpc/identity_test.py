"""Who is believed: tokens of services, and what strangers and services gone bad make of them."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError

from lepton.common.v1 import options_pb2
from libs.errors import Unauthenticated
from libs.rpc import Identity, IdentitySettings, Signer, TlsSettings, Verifier, generate_key
from libs.rpc.identity import LEEWAY_SECONDS, LIFETIME_SECONDS, MAX_TOKEN_BYTES, NOBODY
from libs.settings import Settings, SettingsConfigDict

GATEWAY, TRAINING, DATA = generate_key(), generate_key(), generate_key()
PUBLIC = {"gateway": GATEWAY[1], "training": TRAINING[1], "data": DATA[1]}
AUDIENCE = "lepton.data.v1.DataService"
ADA = Identity("", "acme", "ada@acme.test", options_pb2.ROLE_OWNER, "key-1")


def claims(**other: Any) -> dict[str, Any]:
    return {"iss": "training", "aud": AUDIENCE, "exp": int(time.time()) + 30, "ws": "acme"} | other


def token(private: str = TRAINING[0], issuer: str = "training", **other: Any) -> str:
    return jwt.encode(claims(**other), private, algorithm="EdDSA", headers={"kid": issuer})


def forged(header: dict[str, Any], body: bytes, signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), body, signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def refused(made: str, audience: str = AUDIENCE) -> None:
    verifier = Verifier(PUBLIC)
    for _ in range(2):  # Nothing refused is remembered.
        with pytest.raises(Unauthenticated, match="the caller's service token is not valid"):
            verifier.verify(made, audience)


def test_the_gateway_speaks_for_members_and_a_service_for_a_workspace() -> None:
    verifier = Verifier(PUBLIC)
    assert verifier.verify(Signer(GATEWAY[0], "gateway").sign(ADA, AUDIENCE), AUDIENCE) == Identity("gateway", *_rest(ADA))
    passed_on = Signer(TRAINING[0], "training").sign(ADA, AUDIENCE)
    assert verifier.verify(passed_on, AUDIENCE) == Identity("training", "acme", role=options_pb2.ROLE_VIEWER)
    alone = Signer(TRAINING[0], "training").sign(NOBODY, AUDIENCE)
    assert verifier.verify(alone, AUDIENCE) == Identity("training")


def _rest(identity: Identity) -> tuple[str, str, int, str]:
    return identity.workspace, identity.member, identity.role, identity.key_id


def test_a_service_cannot_speak_as_another() -> None:
    member = {"sub": "ada@acme.test", "role": options_pb2.ROLE_OWNER, "key": "k"}
    refused(token(issuer="gateway", iss="gateway", **member))
    refused(token(issuer="training", iss="gateway", **member))
    refused(token(issuer="gateway", **member))
    refused(token(DATA[0]))
    refused(token(generate_key()[0]))
    refused(token(issuer="nobody", iss="nobody"))
    refused(token(issuer="", iss=""))


def test_a_service_names_no_member_role_or_key() -> None:
    for more in ({"role": options_pb2.ROLE_OPERATOR}, {"sub": "ada@acme.test"}, {"key": "k"}, {"act": {"sub": "gateway"}}):
        refused(token(**more))


def test_a_token_is_for_one_service_and_one_minute() -> None:
    good = token()
    assert Verifier(PUBLIC).verify(good, AUDIENCE).service == "training"
    refused(good, "lepton.compute.v1.ComputeService")
    refused(token(aud=[AUDIENCE, "lepton.compute.v1.ComputeService"]))
    refused(token(aud="lepton"))
    refused(token(exp=int(time.time()) - LEEWAY_SECONDS - 1))
    refused(token(exp=int(time.time()) + LIFETIME_SECONDS + LEEWAY_SECONDS + 5))
    assert LIFETIME_SECONDS + LEEWAY_SECONDS <= 60


def test_what_was_let_in_once_is_not_let_in_elsewhere_or_later(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, good = Verifier(PUBLIC), token()
    verifier.verify(good, AUDIENCE)
    with pytest.raises(Unauthenticated):
        verifier.verify(good, "lepton.compute.v1.ComputeService")
    later = time.time() + 30 + LEEWAY_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Unauthenticated):
        verifier.verify(good, AUDIENCE)


def test_a_changed_token_is_none() -> None:
    header, _, signature = token().split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(ws="rival")).encode()).rstrip(b"=").decode()
    refused(f"{header}.{body}.{signature}")


def test_no_other_algorithm() -> None:
    body = json.dumps(claims()).encode()
    refused(forged({"alg": "none", "kid": "training"}, body))
    refused(forged({"alg": "None", "kid": "training", "typ": "JWT"}, body))
    refused(forged({"alg": "EdDSA", "kid": "training"}, body))
    # The public key as a shared secret.
    refused(_hs256(PUBLIC["training"]))
    elliptic = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    refused(jwt.encode(claims(), elliptic, algorithm="ES256", headers={"kid": "training"}))


def _hs256(secret: str) -> str:
    signed = forged({"alg": "HS256", "kid": "training"}, json.dumps(claims()).encode()).rpartition(".")[0]
    signature = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    "made",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "a" * (MAX_TOKEN_BYTES + 1),
        "é.é.é",
        forged({"alg": "EdDSA", "kid": ["training"]}, b"{}"),
        forged({"alg": "EdDSA", "kid": "training", "crit": ["exp"]}, b"{}"),
        forged({"alg": "EdDSA", "kid": "training", "jwk": {"kty": "OKP"}}, b"{}"),
        base64.urlsafe_b64encode(b"[" * 2500).decode() + ".e30.",
        base64.urlsafe_b64encode(b'{"alg":"EdDSA","kid":' + b"9" * 2500 + b"}").decode() + ".e30.",
    ],
)
def test_what_is_no_token(made: str) -> None:
    refused(made)


def test_a_signed_token_that_is_too_long_or_of_wrong_types() -> None:
    refused(token(ws="w" * MAX_TOKEN_BYTES))
    for more in ({"ws": 7}, {"ws": None}, {"ws": ["acme"]}, {"exp": "soon"}, {"exp": 1e300}, {"exp": float("nan")}):
        refused(token(**more))
    member = {"iss": "gateway", "sub": "ada@acme.test", "key": "k"}
    for role in (True, "5", 5.0, None):
        refused(token(GATEWAY[0], "gateway", role=role, **member))


def test_while_a_key_is_changed_both_are_known() -> None:
    new = generate_key()
    verifier = Verifier({"training": TRAINING[1] + new[1]})
    for private in (TRAINING[0], new[0]):
        assert verifier.verify(token(private), AUDIENCE).service == "training"


def test_one_key_for_all_is_believed_of_any_service() -> None:
    shared = Verifier(TRAINING[1])
    assert shared.verify(Signer(TRAINING[0], "gateway").sign(ADA, AUDIENCE), AUDIENCE).member == "ada@acme.test"
    assert shared.verify(Signer(TRAINING[0], "data").sign(ADA, AUDIENCE), AUDIENCE) == Identity("data", "acme", role=1)


def test_a_token_is_made_anew_when_half_of_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    signer, now = Signer(TRAINING[0], "training"), time.time()
    first = signer.sign(ADA, AUDIENCE)
    assert signer.sign(ADA, AUDIENCE) == first != signer.sign(ADA, "lepton.compute.v1.ComputeService")
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS / 2 + 1)
    assert signer.sign(ADA, AUDIENCE) != first


class ExampleSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="LEPTON_TRAINING_")

    identity: IdentitySettings = IdentitySettings()
    tls: TlsSettings = TlsSettings()


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_TRAINING_IDENTITY__PRIVATE_KEY", TRAINING[0])
    monkeypatch.setenv("LEPTON_TRAINING_IDENTITY__PUBLIC_KEYS__TRAINING", TRAINING[1])
    monkeypatch.setenv("LEPTON_PLATFORM_IDENTITY__PUBLIC_KEYS", json.dumps({"gateway": GATEWAY[1]}))
    identity = ExampleSettings().identity
    assert identity.public_keys == {"training": TRAINING[1], "gateway": GATEWAY[1]}
    assert identity.verifier().verify(identity.signer("training").sign(ADA, AUDIENCE), AUDIENCE).service == "training"


def test_keys_that_cannot_be_are_refused_without_being_shown() -> None:
    secret = TRAINING[0].splitlines()[1]
    with pytest.raises(ValueError, match=r"the private key of data .* does not belong to its public one"):
        IdentitySettings(private_key=TRAINING[0], public_keys=PUBLIC).signer("data")
    with pytest.raises(ValueError, match="data needs its Ed25519 key"):
        IdentitySettings().signer("data")
    elliptic = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for private in ("x", secret, TRAINING[1], elliptic):
        with pytest.raises(ValueError, match="identity key") as no_key:
            IdentitySettings(private_key=private).signer("data")
        assert secret not in str(no_key.value)
    for public in ("", "x", TRAINING[0], TRAINING[1].replace("MC", "??")):
        with pytest.raises(ValueError, match="public key of data"):
            IdentitySettings(private_key=DATA[0], public_keys={"data": public}).verifier()
    assert secret not in repr(IdentitySettings(private_key=TRAINING[0]))


def test_certificates_are_named_all_or_none() -> None:
    assert not TlsSettings()
    with pytest.raises(ValidationError, match="all are needed or none; key_file is missing"):
        TlsSettings(ca_file="ca.pem", cert_file="cert.pem")
