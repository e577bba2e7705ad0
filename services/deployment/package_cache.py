"""Model packages as folders on this machine: fetched once, checked against their digests, dropped when there are too many.

Knows the artifact store; not what the files mean.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from libs.errors import AppError, Invalid
from libs.storage import ArtifactStore

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")
MAX_FILES = 100


class PackageCache:
    """Folders under `root`, named by what is in them. `limit_bytes` bounds those that nobody holds."""

    def __init__(self, store: ArtifactStore, root: Path, limit_bytes: int) -> None:
        self._store, self._root, self._limit_bytes = store, root, limit_bytes
        self._held: Counter[str] = Counter()
        self._filling: dict[str, asyncio.Lock] = {}

    def clean(self) -> None:
        """Drops what an earlier process left half done. Before anything else."""
        for left in self._root.glob("*.part"):
            shutil.rmtree(left, ignore_errors=True)

    @asynccontextmanager
    async def hold(self, files: Sequence[Mapping[str, Any]]) -> AsyncIterator[Path]:
        """A folder with the files ({"path", "digest", "size_bytes"}) that stays while the block runs. Do not write to it.

        Raises AppError: not_found, unavailable, storage_full; invalid_data where the bytes are not those of the digest.
        """
        key = _key(files)
        self._held[key] += 1
        try:
            folder = self._root / key
            async with self._filling.setdefault(key, asyncio.Lock()):
                if not await asyncio.to_thread(folder.is_dir):
                    await self._fill(folder, files)
            yield folder
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
                self._filling.pop(key, None)

    async def _fill(self, folder: Path, files: Sequence[Mapping[str, Any]]) -> None:
        part = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.part")
        try:
            for file in files:
                path = part / file["path"]
                await self._store.fetch(file["digest"], path)
                await asyncio.to_thread(_check, path, file["digest"])
            await asyncio.to_thread(os.replace, part, folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, part, True)
        await asyncio.to_thread(self._drop_surplus)

    def _drop_surplus(self) -> None:
        folders = sorted((f for f in self._root.iterdir() if f.is_dir() and f.suffix != ".part"), key=lambda f: f.stat().st_mtime)
        sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*")) for folder in folders}
        total = sum(sizes.values())
        for folder in folders:
            if total <= self._limit_bytes:
                return
            if not self._held[folder.name]:
                shutil.rmtree(folder, ignore_errors=True)
                total -= sizes[folder]


def _key(files: Sequence[Mapping[str, Any]]) -> str:
    """Raises Invalid where a path could lead out of the folder."""
    if len(files) > MAX_FILES:
        raise Invalid(f"the model package has {len(files)} files; at most {MAX_FILES} can be served", code="invalid_data")
    for file in files:
        if not all(_NAME.fullmatch(part) for part in file["path"].split("/")):
            raise Invalid(f"the model package has a file '{file['path'][:100]}', which is no plain name", code="invalid_data")
    named = sorted((file["path"], file["digest"]) for file in files)
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]


def _check(path: Path, digest: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if f"sha256:{found}" != digest:
        raise AppError(f"{path.name} of the model package is damaged: its content is not that of {digest}", code="invalid_data")
