"""The folder of one attempt: what the engine is given, and what it leaves."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import orjson

from lepton.common.v1 import resource_pb2
from libs.errors import Invalid
from libs.storage import ArtifactStore
from services.training.handlers.attempts import Lease
from services.training.supervisor.tools import Stores
from services.training.tables import Checkpoint, StoredFile, TrainingJob

MAX_MODEL_JSON = 64 << 20
MAX_PACKAGE_FILES = 64
_MEDIA_TYPES = {".json": "application/json"}
_SPLITS = ("train", "test", "validation", "all")


class RunFolder:
    """`root`/spec.json, data/, init/, resume/ for the engine; events.jsonl, stdout.log, stderr.log, checkpoints/, package/ of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events, self.stdout, self.stderr = root / "events.jsonl", root / "stdout.log", root / "stderr.log"

    async def prepare(self, stores: Stores, job: TrainingJob, resume: list[StoredFile], traceparent: str) -> None:
        """Fetches everything and writes the spec. Raises NotFound where an object is gone."""
        await asyncio.to_thread(self._make)
        fetches = []
        splits = {}
        for number, split in enumerate(job.inputs["splits"]):
            name = split["name"] if split["name"] in _SPLITS else f"split-{number}"
            splits[split["name"]] = f"data/{name}.parquet"
            fetches.append(stores.datasets.fetch(split["digest"], self.root / splits[split["name"]]))
        fetches += [stores.models.fetch(file["digest"], self.root / "init" / _plain(file["path"])) for file in job.inputs["init"]]
        fetches += [stores.checkpoints.fetch(file.digest, self.root / "resume" / _plain(file.path)) for file in resume]
        await asyncio.gather(*fetches)
        spec = {
            "task": job.task,
            "target": job.target,
            "features": job.features,
            "model": {"architecture": job.model["architecture"], "params": job.model["params"]},
            "training": job.training,
            "data": {"kind": job.inputs["kind"], "splits": splits},
            "init_weights": "init" if job.inputs["init"] else None,
            "resume": "resume" if resume else None,
            "threads": max(1, job.resources["cpu_millis"] // 1000),
            "device": "cuda" if job.resources["accelerator"] == "gpu" else "cpu",
            "traceparent": traceparent,
        }
        await asyncio.to_thread((self.root / "spec.json").write_bytes, orjson.dumps(spec))

    def _make(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root / "tmp").mkdir(parents=True)

    async def keep_checkpoint(self, store: ArtifactStore, lease: Lease, epoch: int) -> list[StoredFile]:
        """Puts the files of an epoch's checkpoint into the store. Raises FileNotFoundError where the run has replaced it by now."""
        owner = Checkpoint(job_id=lease.job_id, epoch=epoch, workspace=lease.workspace, step=0, create_time=0).owner
        kept = []
        for path in _files(self.root / "checkpoints" / f"epoch-{epoch}"):
            stored = await store.put_file(path)
            kept.append(
                StoredFile(
                    owner=owner, path=path.name, workspace=lease.workspace, purpose="checkpoints", digest=stored.digest, size=stored.size
                )
            )
        return kept

    async def keep_package(self, store: ArtifactStore) -> tuple[dict[str, Any], list[resource_pb2.Artifact]]:
        """model.json and the files of the package, in the store. Raises Invalid where the run left none that is whole."""
        folder = self.root / "package"
        try:
            package = await asyncio.to_thread(_read_model, folder / "model.json")
            paths = _files(folder)
        except (OSError, ValueError) as error:
            raise Invalid(f"the run left no model package: {error}", code="invalid_data") from error
        artifacts = []
        for path in paths:
            stored = await store.put_file(path)
            media_type = _MEDIA_TYPES.get(path.suffix, "application/octet-stream")
            artifacts.append(resource_pb2.Artifact(digest=stored.digest, size_bytes=stored.size, path=path.name, media_type=media_type))
        return package, artifacts

    async def remove(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self.root, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    """Plain files of a folder that another process made: no links, not too many."""
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
    if not found or len(found) > MAX_PACKAGE_FILES:
        raise FileNotFoundError(f"{folder.name} holds {len(found)} files")
    return sorted(found)


def _read_model(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_MODEL_JSON:
        raise ValueError("model.json is too large")
    package = orjson.loads(path.read_bytes())
    if not isinstance(package, dict) or not {"architecture", "signature", "preprocessing"} <= set(package):
        raise ValueError("model.json is incomplete")
    return package


def _plain(name: str) -> str:
    """A file name that leads nowhere else."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise Invalid(f"'{name}' is no file name", code="invalid_data")
    return name
