"""Everything an epoch ends with, on disk as safetensors and JSON, so that a run that was killed goes on bit for bit.

A process can be killed at any moment: folders appear whole, by a rename. A machine can lose power: a digest tells torn files, and
the checkpoint before is taken.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

TENSORS, STATE = "state.safetensors", "state.json"


def write(folder: Path, state: Mapping[str, Any], *, durable: bool) -> None:
    """`state` is any nesting of dicts, lists, numbers, texts and tensors. `durable`: wait until it would survive a power cut."""
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, tensors)
    content = save(tensors)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_file(temporary / TENSORS, content, durable)
    _write_file(temporary / STATE, json.dumps({"sha256": hashlib.sha256(content).hexdigest(), "state": packed}).encode(), durable)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    if durable:
        _sync(folder.parent)


def read(folder: Path) -> dict[str, Any] | None:
    """The state written there; None where there is none that is whole."""
    try:
        content = (folder / TENSORS).read_bytes()
        data = json.loads((folder / STATE).read_bytes())
        if hashlib.sha256(content).hexdigest() != data["sha256"]:
            return None
        state: dict[str, Any] = _unpack(data["state"], load(content).__getitem__)
        return state
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def latest(root: Path) -> dict[str, Any] | None:
    """The state of the last whole checkpoint under `root`."""
    for folder in sorted(root.glob("epoch-*"), key=_epoch, reverse=True):
        state = read(folder)
        if state is not None:
            return state
    return None


def prune(root: Path, best: int | None) -> None:
    """Keeps the last two and the best."""
    folders = sorted(root.glob("epoch-*"), key=_epoch)
    for folder in folders[:-2]:
        if _epoch(folder) != best:
            shutil.rmtree(folder, ignore_errors=True)


def _epoch(folder: Path) -> int:
    number = folder.name.partition("-")[2]
    return int(number) if number.isdigit() else -1


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors) for item in value], "tuple": isinstance(value, tuple)}
    return value


def _unpack(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensor(value["tensor"])
    if "items" in value:
        return {_unpack(key, tensor): _unpack(item, tensor) for key, item in value["items"]}
    items = [_unpack(item, tensor) for item in value["list"]]
    return tuple(items) if value["tuple"] else items


def _write_file(path: Path, content: bytes, durable: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def random_state() -> dict[str, Tensor]:
    """torch's random generators, for dropout to go on where it was."""
    states = {"cpu": torch.get_rng_state()}
    return {**states, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else states


def set_random_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
