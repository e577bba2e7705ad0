"""Bytes by their digest: immutable objects that rows of a database name.

Knows no service; what nothing names any more is for the owner of a purpose to sweep.
"""

from libs.storage.in_memory import InMemoryArtifactStore
from libs.storage.local import LocalArtifactStore
from libs.storage.opening import open_store
from libs.storage.store import ArtifactStore, DirectUpload, StorageSettings, Stored, digest_of

__all__ = [
    "ArtifactStore",
    "DirectUpload",
    "InMemoryArtifactStore",
    "LocalArtifactStore",
    "StorageSettings",
    "Stored",
    "digest_of",
    "open_store",
]
