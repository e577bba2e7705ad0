"""Asks a gRPC server whether it serves, for health checks in containers: `python -m libs.rpc.probe host:port`.

Exits with 0 when it says so, else with 1 and why in words. Certificates are those of the flags, or of LEPTON_PLATFORM_TLS__….
"""

import argparse
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from libs.rpc.settings import TlsSettings
from libs.rpc.tls import CertificateFiles, channel_credentials
from libs.settings import Settings, SettingsConfigDict

_NAMES = {number: name for name, number in health_pb2.HealthCheckResponse.ServingStatus.items()}


class ProbeSettings(Settings):
    """`LEPTON_PROBE_…`, or what all processes of the platform share."""

    model_config = SettingsConfigDict(env_prefix="LEPTON_PROBE_")

    tls: TlsSettings = TlsSettings()


def why_not(address: str, service: str, tls: TlsSettings, *, host: str, seconds: float) -> str:
    """Why `service` does not serve at `address`, empty when it does; `host` is whom the certificate is to name, if not the address."""
    options = [("grpc.enable_http_proxy", 0), *([("grpc.ssl_target_name_override", host)] if host else [])]
    if tls and not address.startswith("unix:"):
        credentials = channel_credentials(CertificateFiles(tls).current)
        channel = grpc.secure_channel(address, credentials, options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else _NAMES[answer.status]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="libs.rpc.probe", description="Whether a gRPC server says that it serves.")
    parser.add_argument("address", help="host:port or unix:/path")
    parser.add_argument("--service", default="", help="full name of a gRPC service; default: the server as a whole")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds (default 2)")
    parser.add_argument("--host", default="", help="whom the server's certificate names, if not the address")
    for name in TlsSettings.model_fields:
        parser.add_argument(f"--tls-{name.replace('_', '-')}", dest=name, default="", help="PEM; the three of them or none")
    asked = parser.parse_args(argv)
    files = {name: getattr(asked, name) for name in TlsSettings.model_fields}
    try:
        tls = TlsSettings(**files) if any(files.values()) else ProbeSettings().tls
        why = why_not(asked.address, asked.service, tls, host=asked.host, seconds=asked.timeout)
    except ValidationError as error:
        why = "; ".join(each["msg"] for each in error.errors())
    except ValueError as error:
        why = str(error)
    if why:
        sys.stderr.write(f"{asked.address} does not serve: {why}\n")
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
