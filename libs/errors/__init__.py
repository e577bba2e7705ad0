"""How the platform says no: one exception class, one catalogue of codes, one translation to each transport.

Knows nothing of any transport library; gRPC and HTTP statuses are plain names and numbers here.
"""

from libs.errors.catalogue import CATALOGUE, Entry
from libs.errors.errors import (
    AppError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Poison,
    QuotaExceeded,
    Replay,
    Transient,
    Unauthenticated,
    Violation,
    near,
)

__all__ = [
    "CATALOGUE",
    "AppError",
    "Conflict",
    "Entry",
    "Forbidden",
    "Invalid",
    "NotFound",
    "Poison",
    "QuotaExceeded",
    "Replay",
    "Transient",
    "Unauthenticated",
    "Violation",
    "near",
]
