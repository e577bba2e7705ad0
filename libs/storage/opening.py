"""Which artifact store a URL means."""

from pathlib import Path

from libs.storage.in_memory import InMemoryArtifactStore
from libs.storage.local import LocalArtifactStore
from libs.storage.store import ArtifactStore, StorageSettings


def open_store(settings: StorageSettings, purpose: str) -> ArtifactStore:
    """The adapter that the URL names, for one purpose ("datasets", "models")."""
    scheme, _, rest = settings.url.partition(":")
    match scheme:
        case "memory":
            return InMemoryArtifactStore()
        case "file":
            return LocalArtifactStore(Path(rest.removeprefix("//")) / purpose)
        case _:
            raise ValueError(f"artifact store URL {settings.url!r}: the scheme must be file or memory")
