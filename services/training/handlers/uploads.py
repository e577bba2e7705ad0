"""Model versions that a member brings: a ZIP in the artifact store becomes the files of a package. Their code is never run here."""

import asyncio
import json
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton.common.v1 import resource_pb2
from lepton.training.v1 import model_pb2
from libs import telemetry
from libs.db import Unit
from libs.errors import Invalid
from libs.modelkit import archive, custom, wheels
from libs.storage import ArtifactStore
from services.training import wire
from services.training.handlers.models import named_model
from services.training.handlers.quota import reservation
from services.training.tables import ModelVersion, StoredFile

MODEL = "model.json"
_MEDIA_TYPES = {".py": "text/x-python", ".json": "application/json", ".txt": "text/plain"}


@dataclass(frozen=True)
class Unpacked:
    """What a package says of itself, and its files, on this machine's disk."""

    said: Mapping[str, Any]
    folder: Path
    paths: Sequence[str]
    size: int


class Unpacking:
    """Of at most two archives at once: each is there as it came and unpacked, on this machine's disk."""

    def __init__(self, store: ArtifactStore, model_image: Mapping[str, str]) -> None:
        self._store, self._image = store, model_image
        self._room = asyncio.Semaphore(2)

    @asynccontextmanager
    async def unpacked(self, digest: str) -> AsyncIterator[Unpacked]:
        """For the block. Awaits the store; raises Invalid in words."""
        async with self._room:
            if await self._store.stat(digest) > archive.MAX_BYTES:
                raise Invalid(f"the ZIP has more than {archive.MAX_BYTES >> 20} MiB, as many as are taken", code="too_large")
            with tempfile.TemporaryDirectory(prefix="lepton-upload-") as place:
                await self._store.fetch(digest, Path(place) / "archive")
                yield await asyncio.to_thread(_unpacked, Path(place) / "archive", Path(place) / "package", self._image)

    async def kept(self, package: Unpacked) -> list[resource_pb2.Artifact]:
        """The files, which are in the store then. Ended half way, it leaves objects that no row names, which are swept."""
        return [await self._kept(package.folder, path) for path in package.paths]

    async def _kept(self, folder: Path, path: str) -> resource_pb2.Artifact:
        stored = await self._store.put_file(folder / path)
        media_type = _MEDIA_TYPES.get(Path(path).suffix, "application/octet-stream")
        return resource_pb2.Artifact(digest=stored.digest, size_bytes=stored.size, path=path, media_type=media_type)


def new_upload() -> str:
    """Names one while it has no number, and where jobs are named afterwards."""
    return f"uploads/{uuid.uuid4().hex}"


async def register_upload(
    unit: Unit, *, workspace: str, name: str, upload: str, package: Mapping[str, Any], files: Sequence[resource_pb2.Artifact]
) -> model_pb2.ModelVersion:
    """The model's next version. Its event says what was reserved for it, so that accounts counts it under its own name from then on."""
    now = time.time()
    model = await named_model(unit, workspace, name, now)
    model.latest_version += 1
    message = wire.uploaded_version(model, package, files, now, telemetry.current_trace_id())
    version = ModelVersion(
        workspace=workspace,
        model=name,
        number=model.latest_version,
        training_job=upload,
        message=message.SerializeToString(),
    )
    await unit.insert(version)
    owned = {"owner": version.owner, "workspace": workspace, "purpose": "models"}
    unit.session.add_all(StoredFile(path=file.path, digest=file.digest, size=file.size_bytes, **owned) for file in files)
    await unit.emit(wire.version_registered(message, reservation(workspace, upload)))
    return message


def _unpacked(sent: Path, folder: Path, image: Mapping[str, str]) -> Unpacked:
    paths = archive.unpack(sent, folder)
    if MODEL in paths:
        raise Invalid(f"{MODEL} is written by the platform; leave it out", code="invalid_data")
    package = custom.describe(folder)
    if package["kind"] == "code":
        wheels.needed(folder, image.get)
    (folder / MODEL).write_text(json.dumps(package))
    paths = [MODEL, *paths]
    return Unpacked(package, folder, paths, sum((folder / path).stat().st_size for path in paths))
