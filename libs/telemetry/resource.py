"""What a service is in the eyes of those who gather telemetry."""

import os
import socket
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.sdk.resources import Resource

from libs.telemetry.naming import SERVICE


@cache
def resource_of(service: str) -> Resource:
    """One a name: services that share a process differ in it alone."""
    return Resource({SERVICE: service, "service.instance.id": f"{socket.gethostname()}:{os.getpid()}", "service.version": _version()})


def _version() -> str:
    try:
        return version("lepton-platform")
    except PackageNotFoundError:
        return "unknown"  # Run from a checkout.
