#!/usr/bin/env python3
"""Writes an image of the local Docker engine as an archive in OCI's layout, without the layers whose digests standard input names.

`docker save` writes all layers twice for each word that changed. This reads what the engine keeps by its driver overlay2, as root: a
layer's files, and the bytes between them by which its tar was made (github.com/vbatts/tar-split). Who imports it checks the digests.
"""

import base64
import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 20
OCI = "application/vnd.oci.image"


class Layer:
    """One layer of the engine's store `root`, by the digests of itself and of those below it."""

    def __init__(self, root: Path, digests: list[str]) -> None:
        chain = digests[0]
        for digest in digests[1:]:
            chain = f"sha256:{hashlib.sha256(f'{chain} {digest}'.encode()).hexdigest()}"
        kept = root / "image/overlay2/layerdb" / chain.replace(":", "/")
        self.digest = digests[-1]
        self._split = kept / "tar-split.json.gz"
        self._files = root / "overlay2" / (kept / "cache-id").read_text() / "diff"

    def size(self) -> int:
        """Bytes of its tar."""
        return sum(len(piece) if isinstance(piece, bytes) else piece[1] for piece in self._pieces())

    def chunks(self) -> Iterator[bytes]:
        """Its tar."""
        for piece in self._pieces():
            if isinstance(piece, bytes):
                yield piece
            elif piece[1]:
                with (self._files / piece[0]).open("rb") as file:
                    yield from iter(lambda: file.read(CHUNK), b"")

    def _pieces(self) -> Iterator[bytes | tuple[str, int]]:
        """Bytes, or a file's name and size."""
        with gzip.open(self._split) as lines:
            for line in lines:
                entry = json.loads(line)
                if entry["type"] == 2:
                    yield base64.b64decode(entry["payload"])
                elif "name_raw" in entry:
                    yield base64.b64decode(entry["name_raw"]).decode(errors="surrogateescape"), entry.get("size", 0)
                else:
                    yield entry["name"], entry.get("size", 0)


class Archive:
    """A tar that is written from front to back."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Raises ValueError when the chunks are not `size` bytes long."""
        info = tarfile.TarInfo(name)
        info.size = size
        self._out.write(info.tobuf(tarfile.PAX_FORMAT))
        for chunk in chunks:
            self._out.write(chunk)
            size -= len(chunk)
        if size:
            raise ValueError(f"{name} is {-size} bytes longer than the engine says")
        self._out.write(bytes(-info.size % tarfile.BLOCKSIZE))

    def blob(self, kind: str, data: bytes) -> dict[str, Any]:
        """Adds it by its digest, and says how others name it."""
        digest = hashlib.sha256(data).hexdigest()
        self.add(f"blobs/sha256/{digest}", len(data), [data])
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def close(self) -> None:
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        self._out.flush()


def write(out: BinaryIO, root: Path, image: str, name: str, known: set[str]) -> None:
    """Writes the image with the digest `image` as `name`."""
    config = (root / "image/overlay2/imagedb/content" / image.replace(":", "/")).read_bytes()
    digests = json.loads(config)["rootfs"]["diff_ids"]
    layers = [Layer(root, digests[: place + 1]) for place in range(len(digests))]
    sizes = [layer.size() for layer in layers]
    archive = Archive(out)
    for layer, size in zip(layers, sizes, strict=True):
        if layer.digest not in known:
            archive.add(f"blobs/{layer.digest.replace(':', '/')}", size, layer.chunks())
            known = known | {layer.digest}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": archive.blob("config.v1+json", config),
        "layers": [
            {"mediaType": f"{OCI}.layer.v1.tar", "digest": digest, "size": size} for digest, size in zip(digests, sizes, strict=True)
        ],
    }
    described = archive.blob("manifest.v1+json", json.dumps(manifest).encode())
    index = {"schemaVersion": 2, "manifests": [{**described, "annotations": {"io.containerd.image.name": name}}]}
    for file, data in (("index.json", index), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        encoded = json.dumps(data).encode()
        archive.add(file, len(encoded), [encoded])
    archive.close()


def main() -> None:
    image, name = sys.argv[1:]
    root = subprocess.run(["docker", "info", "--format", "{{.DockerRootDir}}"], capture_output=True, text=True, check=True).stdout.strip()
    write(sys.stdout.buffer, Path(root), image, name, set(sys.stdin.read().split()))


if __name__ == "__main__":
    main()
