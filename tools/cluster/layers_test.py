"""A store as Docker's engine keeps one, small, and what becomes of it."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from tools.cluster import layers

FILES = {"app/": b"", "app/code.py": b"print()\n" * 100, "app/empty": b"", "app/exact": b"x" * 512}


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type, info.size, info.mtime = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE, len(data), 1700000000
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def split(data: bytes) -> bytes:
    """What the engine writes down of a tar whose files it keeps elsewhere."""
    lines, at = [], 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            lines.append({"type": 2, "payload": base64.b64encode(data[at : member.offset_data]).decode()})
            raw = {"name_raw": base64.b64encode(member.name.encode()).decode()} if member.name == "app/exact" else {"name": member.name}
            lines.append({"type": 1, **raw, **({"size": member.size} if member.size else {}), "payload": "AAAA"})
            at = member.offset_data + member.size
    lines.append({"type": 2, "payload": base64.b64encode(data[at:]).decode()})
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())


def keep(root: Path, chain: str, data: bytes) -> None:
    place, folder = root / "image/overlay2/layerdb" / chain.replace(":", "/"), chain[-12:]
    place.mkdir(parents=True)
    (place / "cache-id").write_text(folder)
    (place / "tar-split.json.gz").write_bytes(split(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(root / "overlay2" / folder / "diff", filter="data")


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, str, list[str]]:
    """A store, an image in it, and its layers: an old one and one of this code."""
    old, new = b"\0" * 10240, tar()
    digests = [digest_of(old), digest_of(new)]
    keep(tmp_path, digests[0], old)
    keep(tmp_path, digest_of(" ".join(digests).encode()), new)
    config = json.dumps({"rootfs": {"diff_ids": digests}}).encode()
    content = tmp_path / "image/overlay2/imagedb/content/sha256"
    content.mkdir(parents=True)
    (content / hashlib.sha256(config).hexdigest()).write_bytes(config)
    return tmp_path, digest_of(config), digests


def written(store: tuple[Path, str, list[str]], known: set[str]) -> dict[str, bytes]:
    out = io.BytesIO()
    layers.write(out, store[0], store[1], "docker.io/a/b:1", known)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_a_layer_is_the_tar_that_it_was(store: tuple[Path, str, list[str]]) -> None:
    found = written(store, set())
    blobs = {name: data for name, data in found.items() if name.startswith("blobs/")}
    assert all(name == f"blobs/{digest_of(data).replace(':', '/')}" for name, data in blobs.items())
    assert tar() in blobs.values()


def test_what_is_known_is_named_and_left_out(store: tuple[Path, str, list[str]]) -> None:
    old, new = store[2]
    found = written(store, {old})
    (described,) = json.loads(found["index.json"])["manifests"]
    assert described["annotations"] == {"io.containerd.image.name": "docker.io/a/b:1"}
    manifest = json.loads(found[f"blobs/{described['digest'].replace(':', '/')}"])
    assert manifest["config"]["digest"] == store[1]
    assert [(layer["digest"], layer["size"]) for layer in manifest["layers"]] == [(old, 10240), (new, len(tar()))]
    assert f"blobs/{old.replace(':', '/')}" not in found
    assert f"blobs/{new.replace(':', '/')}" in found


def test_a_file_that_is_not_as_it_was_stops_it(store: tuple[Path, str, list[str]]) -> None:
    (changed,) = store[0].glob("overlay2/*/diff/app/code.py")
    changed.write_bytes(b"more" * 1000)
    with pytest.raises(ValueError, match="longer than the engine says"):
        written(store, set())
